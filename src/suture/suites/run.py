"""Run one suite on one model, or score its replies again.

Suites are found by module name: `over-refusal` is `suture.suites.over_refusal`. A new suite is a
new file with a `SUITE`; nothing else has to be told.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data import ChatTemplate
from suture.errors import SutureError, nearest
from suture.ledger import (
    Measurement,
    ReplyRow,
    Row,
    load_judged,
    load_replies,
    mean_scores,
    replies_path,
    replies_sha256,
)
from suture.progress import note
from suture.suites import scorers
from suture.suites.common import DATA, Suite, items_sha256, part_of
from suture.suites.judging import check_judge, judged, ready, scored_by
from suture.suites.scorers import Scorer
from suture.versions import versions

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.inference import LoadedModel, Precision
    from suture.inference.decoding import Decoding
    from suture.inference.memory import AnswerCache
    from suture.ledger import JudgedRow
    from suture.suites.judges import Judge

# modules beside the suites that are none
_NOT_SUITES = {"coherence", "common", "extraction", "forgetting", "importing", "jailbreaks"}
_NOT_SUITES |= {"judges", "judging", "prompts", "questions", "run", "scorers"}
_BUILTIN = "builtin:"


def available() -> list[str]:
    """The names of all suites."""
    folder = [str(Path(__file__).parent)]
    modules = {module.name for module in pkgutil.iter_modules(folder)} - _NOT_SUITES
    return sorted(name.replace("_", "-") for name in modules)


def load_suite(name: str, options: Mapping[str, Any] | None = None) -> Suite:
    """The suite called `name` (E520: none is), with its options if it takes any (E529)."""
    known = available()
    if name.replace("_", "-") not in known:
        close = nearest(name, known)
        raise SutureError(
            "E520",
            f"no suite is called '{name}'",
            fix=f"did you mean '{close}'?" if close else f"there are: {', '.join(known)}",
        )
    suite: Suite = importlib.import_module(f"suture.suites.{name.replace('-', '_')}").SUITE
    return _configured(suite, options)


def measure(
    name: str,
    source: TensorSource | LoadedModel | str,
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
    that answered elsewhere. `data`: JSONL files instead of the suite's own. `replies`: texts
    made elsewhere ({"item", "reply"} per line), scored instead of generating. `limit`: at most
    so many items, spread evenly. `part`: of these only the ones that `suites.common.part_of` puts
    between the two shares. `before`: the model for log-probabilities and KL. Everything else
    as in `suture.inference.load`; the defaults of `max_new_tokens` and `scorer` are the suite's.

    `options`: of the suite itself, such as shots or jailbreaks. `judge`: adds the outcomes of
    `suture.suites.judges` to each row. `decoding`: how the model's replies are made, a part of the
    model as the ledger sees it; where nothing is replied it changes nothing, and is not recorded.
    `cache`: folder of answers to keep and to look up. `keep`: file that holds the measurement and
    its replies before the judge reads them, so that a judge that fails loses nothing.

    Errors: E520 no such suite, E521 no before model, E522 replies that do not cover the items,
    E528 no model, E529 a suite without options, E537 a suite that no judge reads; those of the data
    files and of loading.
    """
    suite = load_suite(name, options)
    check_judge(suite, judge)
    tokens = suite.max_new_tokens if max_new_tokens is None else max_new_tokens
    if suite.needs_before and before is None:
        raise SutureError(
            "E521",
            f"{suite.name} compares with a before model, and none was given",
            fix="add --before DIR",
        )
    files = _files(suite, data)
    items = part_of(suite.read(files, limit), part)
    if scorer is None and suite.scorer is not None:
        scorer = scorers.load(suite.scorer)
    about: dict[str, Any] = {
        "suite": suite.name,
        "data": {
            "name": "+".join(file.name for file in files),
            "files": [_told(file) for file in files],
            "sha256": items_sha256(items),
            "n": len(items),
            "limit": limit,
        },
        "scorer": scored_by(scorer, judge),
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
    if replies is not None:
        found = _in_order(_spoken(suite, items), load_replies(replies), Path(replies))
        about["model"] = _declared(source)
        about["decoding"] = {"declared": True}
        if chat_template is not None:
            template = ChatTemplate.from_folder(about["model"]["path"], chat_template)
            about["template"] = {"fingerprint": template.fingerprint}
        rows = suite.score(items, found, scorer)
        rows, words = judged(suite, items, rows, found, judge, _others(suite, items))
        return _measurement(suite, rows, found, words, about, began)
    if isinstance(source, str):
        raise SutureError(
            "E528",
            f"'{source}' is only a name: there is no model to ask",
            fix="give a checkpoint folder, or the replies it made elsewhere with --replies",
        )
    lm = _loaded(source, device, dtype, chat_template)
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
    about["model"] = {
        "fingerprint": lm.fingerprint,
        "path": str(lm.source.path),
        "patches": [patch.info.fingerprint for patch in getattr(lm.source, "patches", ())],
        "identity": "fingerprint",
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
    }
    if lm.decoding is not None:
        about["model"]["decoding"] = lm.decoding.identity
    about["template"] = {"fingerprint": lm.template.fingerprint}
    if judge is not None and keep is not None:
        unjudged = {**about, "scorer": scored_by(scorer, None)}
        _measurement(suite, answers.rows, answers.replies, (), unjudged, began).save(keep)
        note(f"the replies are saved in {keep}; the judge reads them now")
    try:
        rows, words = judged(suite, items, answers.rows, answers.replies, judge, answers.other)
    except SutureError as error:
        if keep is not None:
            error = _kept(error, Path(keep))
        raise error from None
    return _measurement(suite, rows, answers.replies, words, about, began)


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


def rescore(
    measurement: str | Path,
    replies: str | Path | None = None,
    out: str | Path | None = None,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    scorer: Scorer | None = None,
    judge: Judge | None = None,
) -> Measurement:
    """Score saved replies again, with today's phrases, without a model; with `judge`, judge them.

    `replies`: default, the file beside the measurement. `data`: default, the files the measurement
    names; their items must be the ones measured (E523). Scores that need the model (log-likelihood,
    `logprob_before`) are kept as they are. Replies other than those measured, by their SHA-256,
    cannot be traced to the model: they are scored as `measure(..., replies=...)` does, for a model
    that is only declared, with the scores that follow from the texts. Written to `out` if given.
    """
    old = Measurement.load(measurement)
    asked = old.data.get("options")
    suite = load_suite(str(old.data.get("suite", old.suite)), asked)  # a run may give it a label
    if judge is not None:
        check_judge(suite, judge)
    texts = Path(replies) if replies is not None else replies_path(measurement)
    files = _files(suite, data if data is not None else _untold(old.data.get("files")))
    items = part_of(suite.read(files, old.data.get("limit")), old.data.get("part"))
    if items_sha256(items) != old.data.get("sha256"):
        raise SutureError(
            "E523",
            "the data is not what was measured",
            where=", ".join(map(str, files)),
            why="labels and answers could belong to other items",
            fix="give the same files with --data, or measure again",
        )
    if scorer is None and suite.scorer is not None:
        scorer = scorers.load(suite.scorer)
    found = _in_order(_spoken(suite, items), load_replies(texts), texts)
    digest = replies_sha256(found)
    kept = {row.item: row.scores for row in old.rows}
    if digest != old.replies_sha256:
        kept = {}
        model = _declared(str(old.model.get("path", "model")))
        decoding = {"declared": True}
        old = replace(old, model=model, decoding=decoding, template={}, before={})
    rows = [
        # in the order of the old columns, so that scoring twice gives the same bytes
        Row(row.item, {**kept.get(row.item, {}), **row.scores}, row.cluster)
        for row in suite.score(items, found, scorer)
    ]
    words = load_judged(measurement)
    if judge is not None:
        other = _others(suite, items, words)
        rows, words = judged(suite, items, rows, found, judge, other)
    elif digest != old.replies_sha256:
        words = []
    metrics, derived = _numbers(suite, rows)
    directions = {**old.better, **suite.metrics}
    new = replace(
        old,
        rows=rows,
        metrics=metrics,
        derived=derived,
        better={name: directions[name] for name in metrics if name in directions},
        scorer=scored_by(scorer, judge) if judge is not None else _again(scorer, old, rows),
        replies_sha256=digest,
        replies=found,
        judged=words,
    )
    if out is not None:
        new.save(out)
    return new


def _measurement(
    suite: Suite,
    rows: list[Row],
    replies: Sequence[ReplyRow],
    words: Sequence[JudgedRow],
    about: dict[str, Any],
    began: float,
) -> Measurement:
    metrics, derived = _numbers(suite, rows)
    return Measurement(
        **about,
        n=len(rows),
        metrics=metrics,
        derived=derived,
        better={name: suite.metrics[name] for name in metrics},
        rows=rows,
        versions=versions(),
        seconds=round(time.monotonic() - began, 3),
        replies_sha256=replies_sha256(replies) if replies else None,
        replies=replies,
        judged=words,
    )


def _numbers(suite: Suite, rows: list[Row]) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """The metrics, and what the suite derives from the rows.

    A suite that derives anything (`derived(rows)`) says so for all its metrics; columns it does not
    name are only what they follow from.
    """
    derive = getattr(suite, "derived", None)
    if derive is None:
        return _in_suites_order(suite, mean_scores(rows)), {}
    derived: dict[str, dict[str, Any]] = derive(rows)
    return {name: about["value"] for name, about in derived.items()}, derived


def _in_suites_order(suite: Suite, metrics: Mapping[str, float]) -> dict[str, float]:
    """What the suite names first comes first, whichever row has it first."""
    order = list(suite.metrics)
    places = {name: order.index(name) if name in order else len(order) for name in metrics}
    return {name: metrics[name] for name in sorted(metrics, key=lambda name: places[name])}


def _configured(suite: Suite, options: Mapping[str, Any] | None) -> Suite:
    """The suite with its options, where it takes any (E529)."""
    if not options:
        return suite
    configure = getattr(suite, "configure", None)
    if configure is None:
        raise SutureError(
            "E529",
            f"the suite {suite.name} takes no options",
            where=", ".join(options),
            fix="leave --set out",
        )
    found: Suite = configure(options)
    return found


def _again(scorer: Scorer | None, old: Measurement, rows: list[Row]) -> dict[str, Any]:
    """Scored again by phrases, what a judge has said before stays, and so does who said it."""
    found = {} if scorer is None else dict(scorer.identity)
    columns = {name for row in rows for name in row.scores}
    if columns & {"judged_safe", "grade_unparsed"} and "judge" in old.scorer:
        found["judge"] = old.scorer["judge"]
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


def _others(suite: Suite, items: list[Any], said: Sequence[JudgedRow] = ()) -> Mapping[str, str]:
    """What another model replied, for suites that compare."""
    find = getattr(suite, "others", None)
    found: Mapping[str, str] = {} if find is None else find(items, said)
    return found


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


def _spoken(suite: Suite, items: list[Any]) -> list[Any]:
    """The items that are replied to: all, unless the suite says which."""
    asked = getattr(suite, "replied_to", None)
    return items if asked is None else [item for item in items if asked(item)]


def _replied(suite: Suite, items: list[Any]) -> bool:
    """Whether the model measured replies to anything: of most suites it does."""
    asked = getattr(suite, "generates", None)
    return True if asked is None else bool(asked(items))


def spoken_items(
    suite: Suite, data: str | Path | Sequence[str | Path] | None, limit: int | None
) -> list[Any]:
    """The items of a suite that are replied to."""
    return _spoken(suite, suite.read(_files(suite, data), limit))


def _in_order(items: Sequence[Any], replies: Sequence[ReplyRow], path: Path) -> list[ReplyRow]:
    """The replies in the items' order, their prompts filled in."""
    by_item = {reply.item: reply for reply in replies}
    missing = [item.id for item in items if item.id not in by_item]
    if missing:
        raise SutureError(
            "E522",
            f"{len(missing)} of {len(items)} items have no reply, the first is '{missing[0]}'",
            where=str(path),
            why="an average over the items that were answered would be another metric",
            fix="give one reply per item, with the item's id",
        )
    return [replace(by_item[item.id], prompt=item.prompt) for item in items]


def _files(suite: Suite, data: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if data is None:
        return list(suite.default_data)
    return [Path(data)] if isinstance(data, str | Path) else [Path(file) for file in data]


def _told(file: Path) -> str:
    return f"{_BUILTIN}{file.name}" if file.parent == DATA else str(file.resolve())


def _untold(files: Sequence[str] | None) -> list[Path] | None:
    if not files:
        return None
    return [
        DATA / file.removeprefix(_BUILTIN) if file.startswith(_BUILTIN) else Path(file)
        for file in files
    ]


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


def _declared(source: TensorSource | LoadedModel | str) -> dict[str, Any]:
    """Replies cannot be traced to weights, so the model is what somebody says it is."""
    name = source if isinstance(source, str) else str(getattr(source, "path", "model"))
    return {"fingerprint": None, "path": name, "patches": [], "identity": "declared"}
