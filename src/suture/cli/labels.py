"""`suture labels`: its verbs, and `estimate`, from annotators' votes to soft labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.label_check import agreement, check
from suture.cli.label_options import (
    Dimensions,
    Json,
    Limit,
    ModeText,
    ScaleText,
    VotesFile,
    mode_of,
    one_of,
    votes_of,
)
from suture.cli.label_tools import clean, compare, plot
from suture.cli.terminal import emit, emit_json, table
from suture.errors import SutureError

if TYPE_CHECKING:
    from suture.labels import EM, Labels, Stability, Votes

_MOST = 12  # annotators that are shown


def estimate(
    votes: VotesFile,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="labels, one JSON object per item")
    ] = None,
    mode: ModeText = "released",
    scale: ScaleText = None,
    dimension: Dimensions = None,
    soft: Annotated[
        str | None,
        typer.Option("--soft", help="spread (by frequency, two poles) or posterior"),
    ] = None,
    smoothing: Annotated[
        float | None, typer.Option("--smoothing", help="votes added to every cell [default: 1]")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="stop below this move [default: 1e-6]")
    ] = None,
    prior: Annotated[
        str | None, typer.Option("--prior", help="soft (mean posterior) or hard (count)")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="share (of votes) or median (vote)")
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option("--draws", help="resample the items so often, for intervals; 200 will do"),
    ] = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Soft labels, hard labels and posteriors from the votes of several annotators.

    Each row of the output has id, softlabels (0 = first pole, 1 = second), hardlabels and posterior
    (of the second pole), by dimension. How they were made goes to OUTPUT.estimate.json. Smoothing,
    tolerance, prior and start are knobs of --mode converged. In the table, "M steps" are the rounds
    of EM, "ties" the items whose votes have no majority, and "overturned" the items whose posterior
    is on another side than their majority.
    """
    from suture.labels import against_stored, label_rows, stability
    from suture.labels import estimate as estimated
    from suture.labels.files import record_path, refuse_ending, refuse_inputs, write_rows
    from suture.progress import track

    knobs = {"smoothing": smoothing, "tolerance": tolerance, "prior": prior, "start": start}
    em, mode = _em(mode, knobs), mode_of(mode)
    wanted = one_of(soft, "--soft", ("spread", "posterior"))
    refuse_ending(output, ".jsonl")
    refuse_inputs([output, record_path(output) if output else None], [votes])
    read = votes_of(votes, scale, limit, dimension)
    labels = estimated(read, mode=mode, em=em, soft=wanted)
    sure: dict[str, Stability] = {}
    if draws is not None:
        for name, own in labels.items():
            sure[name] = stability(own, em, soft=wanted, draws=draws)
    facts = _facts(read, mode, labels, sure)
    facts["stored"] = against_stored(read, labels)
    if output is not None:
        rows = track(label_rows(read, labels, sure), "labels", total=len(read.items))
        write_rows(output, rows)
        _record(record_path(output), votes, em, wanted, labels, facts)
        facts["labels"] = str(output)
    if json:
        emit_json(facts)
        return
    _tell_dimensions(facts)
    _tell_reliability(facts["reliability"])
    _tell_doubts(facts)
    if output is not None:
        emit(f"\nlabels written: {output}")


def _facts(
    read: Votes, mode: str, labels: dict[str, Labels], sure: dict[str, Stability]
) -> dict[str, Any]:
    """What was estimated from what, as --json and the record have it."""
    from suture.labels import reliability

    return {
        "items": len(read.items),
        "annotators": len(read.annotators),
        "mode": mode,
        "dimensions": {name: own.facts() for name, own in labels.items()},
        "reliability": {
            name: reliability(own.fit, own.ballot.scale, read.annotators)
            for name, own in labels.items()
        },
        "stability": {name: own.facts() for name, own in sure.items()},
    }


def _record(
    path: Path,
    votes: Path,
    em: EM,
    soft: str | None,
    labels: dict[str, Labels],
    facts: dict[str, Any],
) -> None:
    from suture.checkpoint.jsonfile import write_json
    from suture.data import sha256_file
    from suture.labels.files import PRIVATE
    from suture.versions import versions

    write_json(
        path,
        {
            "votes": {"path": str(votes), "sha256": sha256_file(votes)},
            "knobs": em.model_dump(),
            "soft": soft or "spread",
            "scales": {name: own.ballot.scale.poles for name, own in labels.items()},
            **facts,
            "versions": versions(),
        },
        mode=PRIVATE,
    )


def _tell_dimensions(facts: dict[str, Any]) -> None:
    emit(f"{facts['items']:,} items, {facts['annotators']} annotators, mode {facts['mode']}")
    rows = []
    for name, own in facts["dimensions"].items():
        share = " ".join(f"{pole} {value:.3f}" for pole, value in own["prior"].items())
        rows.append(
            (
                name,
                f"{own['votes']:,}",
                own["patterns"],
                own["m_steps"],
                ("yes" if own["converged"] else "no") + f" ({own['moved']:.1g})",
                share,
                own["no_majority"],
                own["majority_overturned"],
            )
        )
    head = ("dimension", "votes", "patterns", "M steps", "converged", "prior", "ties", "overturned")
    emit("\n" + table(rows, head))


def _tell_reliability(by_dimension: dict[str, list[dict[str, Any]]]) -> None:
    rows = [
        (
            name,
            row["annotator"],
            row["votes"],
            f"{row['accuracy']:.3f}",
            f"{row['informedness']:.3f}",
        )
        for name, listed in by_dimension.items()
        for row in listed[:_MOST]
    ]
    emit("\n" + table(rows, ("dimension", "annotator", "votes", "accuracy", "informedness")))
    if any(len(listed) > _MOST for listed in by_dimension.values()):
        emit(f"the first {_MOST} annotators; --json and the record have all")


def _tell_doubts(facts: dict[str, Any]) -> None:
    """Whatever a reader of the labels must know, a line each."""
    for name, own in facts["stability"].items():
        used = own["draws"] - own["failed"]
        emit(
            f"{name}: 95% intervals of soft labels are {own['mean_width']:.2f} wide on average; "
            f"{_percent(own['settled'])} of posteriors are on the hard label's side in 95% of "
            f"{used} draws"
        )
        if own["failed"]:
            emit(
                f"{name}: {own['failed']} of {own['draws']} draws have no estimate and are left "
                "out: what is said of the others is too sure; --mode converged has them all"
            )
        if own["partly"]:
            emit(
                f"{name}: {own['partly']} items have no label in some draws, as nobody else votes "
                "so; their intervals rest on the other draws"
            )
    for name, own in facts["dimensions"].items():
        if not own["converged"]:
            emit(f"{name}: still moving by {own['moved']:.1g} after {own['rounds']} rounds")
        if own["items_without_votes"]:
            emit(f"{name}: {own['items_without_votes']} items have no vote and get null")
        if own["without_hard_label"]:
            emit(f"{name}: {own['without_hard_label']} exact ties get no hard label")
        if own["collapsed_to"]:
            emit(
                f"{name}: do not trust these labels: the estimate gives (nearly) all items the "
                f"pole '{own['collapsed_to']}'; the votes are too few or too contrary"
            )
        if own["hard_without_vote"]:
            emit(f"{name}: {own['hard_without_vote']} items have a hard label nobody voted for")
    if facts["stored"] is not None:
        same = facts["stored"]
        emit(
            f"\nagainst the labels stored in the file: {same['soft_equal']:,} of {same['soft']:,} "
            f"soft labels equal to 1e-12 (largest difference {same['largest_difference']:.2g}), "
            f"{same['hard_equal']:,} of {same['hard']:,} hard labels equal"
        )


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _em(mode: str, knobs: dict[str, Any]) -> EM:
    from suture.labels import EM

    given = {name: value for name, value in knobs.items() if value is not None}
    if mode == "released" and given:
        raise SutureError(
            "E399",
            f"the released procedure has no --{next(iter(given))}",
            why="it is MBTIBench's to the digit, and any change would change its labels",
            fix=f"use --mode converged --{next(iter(given))} {next(iter(given.values()))}",
        )
    base = EM.of(mode_of(mode))
    return EM.load({**base.model_dump(), **given}, where="command line")


COMMANDS: dict[str, Callable[..., Any]] = {
    "labels estimate": estimate,
    "labels agreement": agreement,
    "labels check": check,
    "labels clean": clean,
    "labels compare": compare,
    "labels plot": plot,
}
