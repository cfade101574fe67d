"""Run one suite on one model, on an address or on a baseline."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data import ChatTemplate
from suture.errors import SutureError
from suture.ledger import Measurement, ReplyRow, load_replies
from suture.progress import note
from suture.suites import scorers
from suture.suites.answerers import Answerer, refuse_weights, seeing
from suture.suites.assembling import (
    data_files,
    declared,
    in_order,
    measurement,
    others,
    spoken,
    told,
    traced,
)
from suture.suites.common import Suite, items_sha256, part_of
from suture.suites.finding import load_suite
from suture.suites.judging import check_judge, judged, ready, scored_by
from suture.suites.scorers import Scorer
from suture.suites.turns import check_names, check_replies
from suture.versions import versions

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.inference import LoadedModel, Precision
    from suture.inference.decoding import Decoding
    from suture.inference.memory import AnswerCache
    from suture.suites.judges import Judge


def measure(
    name: str,
    source: TensorSource | LoadedModel | Answerer | str,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    replies: str | Path | None = None,
    limit: int | None = None,
    part: tuple[float, float] | None = None,
    before: TensorSource | LoadedModel | None = None,
    device: str = "auto",
    dtype: Precision = "auto",
    chat_template: str | Path | None = None,
    max_new_tokens: int | None = None,
    scorer: Scorer | None = None,
    options: Mapping[str, Any] | None = None,
    judge: Judge | None = None,
    decoding: Decoding | None = None,
    cache: str | Path | None = None,
    keep: str | Path | None = None,
) -> Measurement:
    """Run suite `name` on a model; returns its Measurement, the replies in `.replies`.

    `source`: weights, a model already loaded, or, together with `replies`, just the name of a model
    that answered elsewhere; or an `Answerer`, an address or a baseline. `data`: files instead of
    the suite's own. `replies`: texts made elsewhere ({"item", "reply"} per line), scored instead of
    generating. `limit`: at most so many items, spread evenly. `part`: of these only the ones that
    `suites.common.part_of` puts between the two shares. `before`: the model for log-probabilities
    and KL. Everything else as in `suture.inference.load`; the defaults of `max_new_tokens` and
    `scorer` are the suite's.

    `options`: of the suite itself, such as shots or jailbreaks. `judge`: adds the outcomes of
    `suture.suites.judges` to each row. `decoding`: how the model's replies are made, a part of the
    model as the ledger sees it; where nothing is replied it changes nothing, and is not recorded.
    `cache`: folder of answers to keep and to look up. `keep`: file that holds the measurement and
    its replies before the judge reads them, so that a judge that fails loses nothing.

    Errors: E520 no such suite, E521 no before model, E522 replies that do not cover the items,
    E528 no model, E529 a suite without options, E537 a suite that no judge reads, E588 an address
    or a baseline with what only weights have, E594 replies to other questions, E595 an item called
    as a turn of another; those of the data files and of loading.
    """
    suite = load_suite(name, options)
    if isinstance(source, Answerer):
        refuse_weights(before=before, decoding=decoding, chat_template=chat_template)
    check_judge(suite, judge)
    tokens = suite.max_new_tokens if max_new_tokens is None else max_new_tokens
    if suite.needs_before and before is None:
        raise SutureError(
            "E521",
            f"{suite.name} compares with a before model, and none was given",
            fix="add --before DIR",
        )
    if (runs_on := getattr(suite, "runs_on", None)) is not None:
        runs_on(device, None if cache is None else Path(cache))
    files = data_files(suite, data)
    items = part_of(suite.read(files, limit), part)
    if scorer is None and suite.scorer is not None:
        scorer = scorers.load(suite.scorer)
    about: dict[str, Any] = {
        "suite": suite.name,
        "data": {
            "name": "+".join(file.name for file in files),
            "files": [told(file) for file in files],
            "sha256": items_sha256(items),
            "n": len(items),
            "limit": limit,
        },
        "scorer": scored_by(suite, scorer, judge),
        "decoding": {"greedy": True, "max_new_tokens": tokens},
    }
    if (described := getattr(suite, "described", None)) is not None:
        about["data"] |= described(items)
    if part is not None:
        about["data"]["part"] = list(part)
    if options:
        about["data"]["options"] = {key: _plain(value) for key, value in options.items()}
        # options of what follows from the rows only
        unasked: frozenset[str] = getattr(suite, "unasked", frozenset())
        about["decoding"]["asked"] = {
            key: value for key, value in about["data"]["options"].items() if key not in unasked
        }
    if judge is not None:
        ready(judge)
    began = time.monotonic()
    found: list[ReplyRow] | None = None
    if replies is not None:
        given, asked = load_replies(replies), spoken(suite, items)
        check_names(suite, asked)
        check_replies(suite, asked, given, Path(replies))
        found = in_order(suite, asked, given, Path(replies))
        about["model"] = declared("model" if isinstance(source, Answerer) else source)
        about["decoding"] = {"declared": True}
        if chat_template is not None:
            template = ChatTemplate.from_folder(about["model"]["path"], chat_template)
            about["template"] = {"fingerprint": template.fingerprint}
    elif isinstance(source := seeing(source, device, dtype), Answerer):
        found = source.answer(suite, spoken(suite, items), max_new_tokens=tokens)
        about["model"], about["template"] = source.identity, source.template
    if found is not None:
        rows = suite.score(items, found, scorer)
        rows, words = judged(suite, items, rows, found, judge, others(suite, items))
        return measurement(suite, rows, found, words, about, began)
    if isinstance(source, str):
        raise SutureError(
            "E528",
            f"'{source}' is only a name: there is no model to ask",
            fix="give a checkpoint folder, or the replies it made elsewhere with --replies",
        )
    weights: Any = source
    if getattr(suite, "reads", False):
        from suture.inference.reading import load_reader

        reader: Any = load_reader(getattr(weights, "source", weights), device=device)
        answers = suite.measure(reader, items, max_new_tokens=tokens, scorer=scorer)
        about["model"] = traced(reader)
        return measurement(suite, answers.rows, (), (), about, began)
    lm = _loaded(weights, device, dtype, chat_template)
    kept = None if cache is None else _cache(cache, lm)
    lm = replace(lm, cache=kept) if kept is not None else lm
    plain = lm
    if decoding is not None and not _replied(suite, items):
        note(f"--decoding changes nothing in {suite.name}: no model replies here")
    elif decoding is not None:
        from suture.inference.decoding import decoded

        lm = decoded(lm, decoding)
    other = None
    if before is not None:
        same = before is source or _fingerprint(before) == lm.fingerprint
        other = _undecoded(plain) if same else _loaded(before, device, dtype, chat_template)
    elif getattr(suite, "before_is_itself", False):
        other = _undecoded(plain)
    if other is not None:
        about["before"] = {"fingerprint": other.fingerprint}
    try:
        answers = suite.measure(lm, items, max_new_tokens=tokens, scorer=scorer, before=other)
    finally:
        if kept is not None:
            kept.close()
    about["model"] = traced(lm)
    if lm.decoding is not None:
        about["model"]["decoding"] = lm.decoding.identity
    about["template"] = {"fingerprint": lm.template.fingerprint}
    if judge is not None and keep is not None:
        unjudged = {**about, "scorer": scored_by(suite, scorer, None)}
        measurement(suite, answers.rows, answers.replies, (), unjudged, began).save(keep)
        note(f"the replies are saved in {keep}; the judge reads them now")
    try:
        rows, words = judged(suite, items, answers.rows, answers.replies, judge, answers.other)
    except SutureError as error:
        if keep is not None:
            error = _kept(error, Path(keep))
        raise error from None
    return measurement(suite, rows, answers.replies, words, about, began)


def measure_log(
    name: str, log: str | Path, *, options: Mapping[str, Any] | None = None
) -> Measurement:
    """Suite `name` on a log of rows instead of a model: tofu and unlearning (E558: any other).

    `log`: TOFU's published per-row log or a measurement file. `options`: of the suite; `reference`
    names the log to compare with.
    """
    suite = load_suite(name, options)
    score_log = getattr(suite, "score_log", None)
    if score_log is None:
        raise SutureError(
            "E558",
            f"the suite {suite.name} reads no logs of rows",
            where="--logs",
            fix="use it with tofu or unlearning; `suture import` brings in other logs",
        )
    found: Measurement = score_log(Path(log), options or {})
    return found


def _kept(error: SutureError, file: Path) -> SutureError:
    """A judge's refusal that says where the replies are."""
    onwards = file.with_name(f"{file.stem}.graded.json")
    go_on = f"the replies are saved, go on with: suture score {file} -o {onwards} --judge ..."
    fix = f"{error.fix}; {go_on}" if error.fix else go_on
    return SutureError(error.code, error.what, where=error.where, why=error.why, fix=fix)


def _undecoded(lm: LoadedModel) -> LoadedModel:
    """The same weights, answering for themselves."""
    return lm if lm.decoding is None else replace(lm, decoding=None)


def _cache(folder: str | Path, lm: LoadedModel) -> AnswerCache:
    from suture.inference.memory import AnswerCache

    identity = {
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype),
        "device": lm.device.type,
        "versions": {k: versions().get(k) for k in ("torch", "transformers", "tokenizers")},
    }
    return AnswerCache(folder, identity)


def _plain(value: Any) -> Any:
    """As JSON keeps it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _replied(suite: Suite, items: list[Any]) -> bool:
    """Whether the model measured replies to anything: of most suites it does."""
    asked = getattr(suite, "generates", None)
    return True if asked is None else bool(asked(items))


def _loaded(
    source: TensorSource | LoadedModel, device: str, dtype: Precision, template: str | Path | None
) -> LoadedModel:
    from suture.inference import LoadedModel, load

    if isinstance(source, LoadedModel):
        return source
    path = None if template is None else Path(template)
    return load(source, device=device, dtype=dtype, chat_template=path)


def _fingerprint(source: TensorSource | LoadedModel) -> str:
    found = source.fingerprint
    return found if isinstance(found, str) else found()
