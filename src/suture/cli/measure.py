"""`suture measure`, `score` and `compare`: from models to rows, from rows to verdicts."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from suture.cli.measured import save, show
from suture.cli.terminal import emit, emit_json
from suture.cli.verdicts import ledger_text
from suture.config import override
from suture.errors import SutureError

if TYPE_CHECKING:
    from suture.ledger import Role

_JSON = typer.Option("--json", help="one JSON object on standard output")


def measure(
    suite: Annotated[
        str,
        typer.Argument(help="safety, utility, tofu, ...: `suture list suites` names them all"),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="checkpoint folder; endpoint:url=URL,model=NAME; baseline:NAME; with --replies "
            "any name will do",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="measurement file to write; optional with --logs"),
    ] = None,
    patch: Annotated[
        list[Path] | None, typer.Option("--patch", help="patches on the model, never written")
    ] = None,
    aligned: Annotated[
        Path | None, typer.Option("--aligned", help="base checkpoint, where MODEL is an adapter")
    ] = None,
    before: Annotated[
        Path | None, typer.Option("--before", help="model for drift, speed and log-probabilities")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="data file instead of the suite's own")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="option of the suite, as KEY=VALUE: shots=5")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="phrases, or chat:, classifier:, endpoint: KEY=VALUE,..."),
    ] = None,
    decoding: Annotated[
        str | None,
        typer.Option(
            "--decoding",
            help="safe-decoding:expert=DIR, self-cd, rose, whos-harry-potter; or a file",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="folder of answers to keep and look up")
    ] = None,
    replies: Annotated[
        Path | None,
        typer.Option(
            "--replies",
            help="score these replies instead of generating; with --prompts, the ones so far",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="write what is asked, of several turns the next one, to this file instead",
        ),
    ] = None,
    logs: Annotated[
        Path | None, typer.Option("--logs", help="per-row log to score instead of a model (tofu)")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="log of a model that never saw the rows; or `none`"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            help="at most so many items, spread evenly (over-refusal: of each kind; safety: "
            "requests, before templates; open-ended: questions; text tasks: of each task)",
        ),
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option("--chat-template", help="jinja file instead of the folder's own")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="length limit of a reply")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda:N or mps")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16")] = "auto",
    redact: Annotated[bool, typer.Option("--redact", help="do not write the replies")] = False,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Run one suite on one model; the replies go beside the file, readable by you only."""
    from suture.suites import measure_log

    asked = override({}, options or ())
    if reference is not None:
        asked["reference"] = reference
    if logs is not None:
        _refuse_with_logs(
            model=model, replies=replies, before=before, data=data, patch=patch, judge=judge,
            decoding=decoding, limit=limit,
        )  # fmt: skip
        found = measure_log(suite, logs, options=asked)
        show(found, out, json, replaced=save(found, out, redact=redact))
        return
    if prompts is not None:
        _write_prompts(suite, prompts, replies, data or None, limit, asked, json)
        return
    if model is None or out is None:
        raise _missing("--model" if model is None else "--output")
    from suture.inference.decoding import load_decoding
    from suture.inference.loading import check_precision
    from suture.suites import load_suite
    from suture.suites import measure as run
    from suture.suites.answerers import load_answerer, refuse_weights
    from suture.suites.judges import load_judge
    from suture.suites.judging import asked_for

    asks = asked_for(load_suite(suite))
    judged = None if judge is None else load_judge(judge, asks)
    decoded = None if decoding is None else load_decoding(decoding)
    precision = check_precision(dtype)
    if limit is not None and limit < 1:
        raise SutureError("E702", f"limit is {limit}", where="--limit", fix="give at least 1")
    replaces = out.exists()
    source: Any = model
    other = None
    kept = None if redact else out.with_name(f"{out.stem}.answers")
    answerer = load_answerer(model, cache=cache or kept) if replies is None else None
    if answerer is not None:
        refuse_weights(patch=patch, aligned=aligned, before=before)
        source = answerer
    elif replies is None:
        from suture.checkpoint.staging import refuse_inside
        from suture.patch import open_model

        for folder in filter(None, (Path(model), aligned, before, *(patch or ()))):
            refuse_inside(out, folder)
        base = None if aligned is None else open_model(aligned)
        source = open_model(Path(model), base=base, patches=patch or ())
        other = None if before is None else open_model(before, base=base)
    measurement = run(
        suite,
        source,
        data=data or None,
        replies=replies,
        limit=limit,
        before=other,
        device=device,
        dtype=precision,
        chat_template=chat_template,
        max_new_tokens=max_new_tokens,
        options=asked,
        judge=judged,
        decoding=decoded,
        cache=cache,
        keep=None if redact else out,
    )
    save(measurement, out, redact=redact)
    show(measurement, out, json, replaced=replaces)


def score(
    measurement: Annotated[Path, typer.Argument(help="measurement file with replies beside it")],
    out: Annotated[Path, typer.Option("-o", "--output", help="measurement file to write")],
    replies: Annotated[
        Path | None, typer.Option("--replies", help="replies file, if it lies elsewhere")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="the data measured, if it has moved")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="judge the replies too, as in `measure`")
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="do not write the replies")] = False,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Score saved replies again, with the phrases of this version and without the model."""
    from suture.ledger import Measurement
    from suture.suites import load_suite, rescore
    from suture.suites.judges import load_judge
    from suture.suites.judging import asked_for

    began = time.monotonic()
    judged = None
    if judge is not None:
        old = Measurement.load(measurement)
        asks = asked_for(load_suite(str(old.data.get("suite", old.suite))))
        judged = load_judge(judge, asks)
    if out.exists() and measurement.exists() and out.samefile(measurement):
        raise SutureError(
            "E571",
            "the output is the measurement that is scored",
            where=str(out),
            why="the old scores would be lost",
            fix="give another name with -o",
        )
    new = rescore(measurement, replies, data=data or None, judge=judged)
    seconds = time.monotonic() - began
    show(new, out, json, replaced=save(new, out, redact=redact), seconds=seconds)


def compare(
    before: Annotated[list[Path], typer.Option("--before", help="measurements of the model as is")],
    after: Annotated[list[Path], typer.Option("--after", help="measurements of the edited model")],
    reference: Annotated[
        list[Path] | None, typer.Option("--reference", help="measurements of the model to match")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="SUITE.METRIC[:higher|lower][:MIN_GAIN]")
    ] = None,
    kept: Annotated[
        list[str] | None, typer.Option("--kept", help="SUITE.METRIC:MARGIN[@reference]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="seed of the bootstrap")] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the ledger here, as JSON")
    ] = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Pair measurements by item and give verdicts: exit 0 proven, 2 broken, 3 not proven.

    Example: --target safety.refusal_rate:higher --kept task.accuracy:0.03
    --kept over-refusal.harmless_refused:0.03@reference
    """
    from suture.ledger import Measurement, Role
    from suture.ledger import compare as judge

    roles: list[Role] = [Role.target(text) for text in target or ()]
    roles += [Role.kept(text) for text in kept or ()]
    ledger = judge(
        [Measurement.load(path) for path in before],
        [Measurement.load(path) for path in after],
        [Measurement.load(path) for path in reference or ()],
        roles,
        seed=seed,
    )
    if out is not None:
        from suture.checkpoint import write_json

        write_json(out, ledger.as_dict())
    if json:
        emit_json(ledger.as_dict())
    else:
        emit(ledger_text(ledger))
        emit(f"\n{ledger.verdict.upper()}")
    raise typer.Exit(ledger.exit_code)


def _refuse_with_logs(**about_models: Any) -> None:
    if given := [f"--{name}" for name, value in about_models.items() if value]:
        raise SutureError(
            "E559",
            f"--logs is scored without a model, so there is no use for {given[0]}",
            where="suture measure",
            fix=f"leave out {', '.join(given)}, or --logs",
        )


def _missing(option: str) -> SutureError:
    return SutureError(
        "E712",
        f"missing option '{option}'",
        where="suture measure",
        fix="add --model DIR and -o FILE, or score a log with --logs FILE",
    )


def _write_prompts(
    suite: str,
    path: Path,
    replies: Path | None,
    data: list[Path] | None,
    limit: int | None,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    from suture.suites.prompts import prompts, write_prompts

    rows = prompts(suite, data=data, limit=limit, options=options, replies=replies)
    word = "replaced" if path.exists() else "wrote"
    write_prompts(path, rows)
    if as_json:
        emit_json({"file": str(path), "n": len(rows)})
        return
    emit(f"{word} {path}: {len(rows)} prompts")
    if not rows:
        emit(
            "nothing is left to ask: "
            f"suture measure {suite} --model NAME --replies {replies} -o FILE, all else the same"
        )
        return
    if any("after" in row for row in rows):
        emit("rows with `after` go on from the reply to that item")
    if any("then" in row for row in rows):
        emit(
            "turns are left (`then`): add the replies to one file and write the next ones with "
            f"suture measure {suite} --prompts NEXT --replies FILE, with the same options"
        )
        return
    file = "FILE" if replies is None else str(replies)
    answer = "answer them elsewhere as rows of item and reply"
    emit(
        f"{answer if replies is None else f'add their replies to {file}'}, then: "
        f"suture measure {suite} --model NAME --replies {file} -o FILE, with the same options"
    )


def spread(args: Sequence[str], flags: Collection[str], words: Collection[str] = ()) -> list[str]:
    """Give a flag several values: `--before A B` becomes `--before A --before B`.

    `words` are never taken for a further value (positional arguments).
    """
    found: list[str] = []
    flag, taken = "", False
    for arg in args:
        if arg.startswith("-") and arg != "-":
            flag, taken = (arg if arg in flags else ""), False
        elif flag and taken and arg not in words:
            found.append(flag)
        else:
            taken = True
        found.append(arg)
    return found


class _Compare(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = ("--before", "--after", "--reference", "--target", "--kept")
        return super().parse_args(ctx, spread(args, flags))


class _Measure(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from suture.suites import available

        words = available()
        return super().parse_args(ctx, spread(args, ("--patch", "--data", "--set"), words))


def _app(name: str, function: Any, kind: type[TyperCommand]) -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    settings = {"help_option_names": ["-h", "--help"]}
    app.command(name, cls=kind, context_settings=settings)(function)
    return app


COMMANDS: dict[str, Any] = {
    "measure": _app("measure", measure, _Measure),
    "score": score,
    "compare": _app("compare", compare, _Compare),
}
