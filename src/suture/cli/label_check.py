"""`suture labels agreement` and `check`: who agrees, and which self-reports are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.label_options import (
    Dimensions,
    Json,
    Limit,
    ModeText,
    ScaleText,
    VotesFile,
    mode_of,
    tell_without_item,
    votes_of,
)
from suture.cli.terminal import emit, emit_json, table

if TYPE_CHECKING:
    from suture.labels import MislabelRate


def agreement(
    votes: VotesFile,
    scale: ScaleText = None,
    dimension: Dimensions = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """How far annotators agree: Cohen, Fleiss, Krippendorff and unanimity, on poles and on symbols.

    Needs the extra: pip install 'suture[labels]'. Intervals resample items; each number has the n
    items that it stands on.
    """
    from suture.labels import agreement as agree

    read = votes_of(votes, scale, limit, dimension)
    by_dimension = {name: agree(read, name) for name in read.ballots}
    if json:
        facts = {"items": len(read.items), "annotators": read.annotators}
        emit_json({**facts, "agreement": by_dimension})
        return
    rows = []
    for name, levels in by_dimension.items():
        for level, values in levels.items():
            cells = [_with_interval(values[key]) for key in ("fleiss", "krippendorff", "unanimous")]
            ordinal = values.get("krippendorff_ordinal", {"value": None})
            rows.append((name, level, _pairs(values), *cells, _with_interval(ordinal)))
    head = ("dimension", "level", "Cohen, pairs", "Fleiss", "Krippendorff", "unanimous", "ordinal")
    emit(table(rows, head))


def _pairs(values: dict[str, Any]) -> str:
    """The pairs of annotators who agree least and most."""
    known = [pair for pair in values.get("cohen", ()) if pair["value"] is not None]
    if not known:
        return "-"
    ends = [pick(known, key=lambda pair: pair["value"]) for pick in (min, max)]
    told = [f"{pair['value']:.2f} ({', '.join(pair['annotators'])})" for pair in ends]
    return told[0] if len(known) == 1 else " to ".join(told)


def _with_interval(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    ends = found["interval"]
    interval = f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""
    return f"{found['value']:.2f}{interval} n={found['n']:,}"


def check(
    votes: VotesFile,
    self_report: Annotated[
        Path | None,
        typer.Option(
            "--self-report",
            help="rows with id and self_report (or type); default: the votes' own column",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="per item: what is stated, seen, and how likely it is"),
    ] = None,
    mode: ModeText = "released",
    scale: ScaleText = None,
    dimension: Dimensions = None,
    below: Annotated[
        float,
        typer.Option("--below", help="count labels whose posterior is below this as doubtful"),
    ] = 0.1,
    json: Json = False,
) -> None:
    """Which self-reported labels the annotators contradict, and what share of them is wrong."""
    from suture.labels import confidence, declared, estimate, mislabel_rate
    from suture.labels.files import refuse_inputs, write_rows
    from suture.labels.mislabels import rate_by_dimension

    refuse_inputs([output], [votes, self_report])
    mode = mode_of(mode)
    read = votes_of(votes, scale, None, dimension)
    said = declared(read, self_report)
    labels = estimate(read, mode=mode)
    hard = {name: own.names for name, own in labels.items()}
    seen = [{name: hard[name][place] for name in hard} for place in range(len(read.items))]
    trust = confidence(said.labels, labels)
    rate = mislabel_rate(said.labels, seen)
    by_dimension = rate_by_dimension(said.labels, seen, [*labels])
    every = [value for row in trust for value in row.values()]
    facts: dict[str, Any] = {
        **rate.as_dict(),
        "without_item": len(said.without_item),
        "expected_rate": 1 - sum(every) / len(every),
        "doubtful": sum(value < below for value in every),
        "below": below,
        "by_dimension": {name: own.as_dict() for name, own in by_dimension.items()},
        "mode": mode,
    }
    if output is not None:
        columns = zip(read.ids, said.labels, seen, trust, strict=True)
        write_rows(
            output,
            [
                {"id": item, "self_report": own, "hardlabels": labelled, "confidence": sure}
                for item, own, labelled, sure in columns
                if own
            ],
        )
        facts["rows"] = str(output)
    if json:
        emit_json(facts)
        return
    _tell_rates(rate, by_dimension)
    emit(
        f"\nexpected from the posteriors: {facts['expected_rate']:.1%}; "
        f"{facts['doubtful']} labels with a posterior below {below:g}"
    )
    tell_without_item(said.without_item, self_report)
    if output is not None:
        emit(f"rows written: {output}")


def _tell_rates(rate: MislabelRate, by_dimension: dict[str, MislabelRate]) -> None:
    rows = [
        (name, own.labels, own.wrong, _share(own.rate, own.interval))
        for name, own in (("all labels", rate), *by_dimension.items())
    ]
    users = _share(rate.user_rate, rate.user_interval)
    rows.append(("users with any", rate.users, rate.users_wrong, users))
    emit(table(rows, ("stated", "count", "differ", "share")))
    if rate.interval is None:
        emit("no interval over users: they are too few, or every one differs in the same share")


def _share(rate: float, ends: tuple[float, float] | None) -> str:
    return f"{rate:.1%}" + (f" [{ends[0]:.1%}, {ends[1]:.1%}]" if ends else "")
