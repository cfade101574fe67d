"""`suture labels clean`, `compare` and `plot`: what stands beside the estimate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.label_options import (
    Dimensions,
    Json,
    Limit,
    ScaleText,
    VotesFile,
    tell_without_item,
    votes_of,
)
from suture.cli.terminal import emit, emit_json, table

if TYPE_CHECKING:
    from suture.report.label_plot import Panel


def clean(
    posts: Annotated[Path, typer.Argument(help="rows with id and posts (a list), or text")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the rows without what leaks")],
    removed: Annotated[
        Path | None,
        typer.Option(
            "--removed", help="what was removed, row by row [default: OUTPUT.removed.jsonl]"
        ),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option("--rules", help="YAML of KIND: {NAME: expression} instead of those for MBTI"),
    ] = None,
    mask: Annotated[
        bool, typer.Option("--mask", help="put [...] in the place of a leak, and keep the post")
    ] = False,
    min_words: Annotated[
        int,
        typer.Option(
            "--min-words", help="remove users with fewer words left; 0: those with nothing left"
        ),
    ] = 100,
    json: Json = False,
) -> None:
    """Posts without leaks of the label, links, garbled text, and users who say too little."""
    from suture.labels.cleaning import MBTI_RULES, Cleaning, read_rules
    from suture.labels.cleaning import clean as cleaned
    from suture.labels.files import refuse_inputs, write_rows

    removed = removed or output.with_name(f"{output.name.removesuffix('.jsonl')}.removed.jsonl")
    refuse_inputs([output, removed], [posts, rules])
    knobs = {"leaks": "mask" if mask else "drop", "min_words": min_words}
    result = cleaned(
        posts, read_rules(rules or MBTI_RULES), Cleaning.load(knobs, where="command line")
    )
    write_rows(output, result.rows)
    write_rows(removed, result.removed)
    facts: dict[str, Any] = {
        "users": dict(zip(("before", "after"), result.users, strict=True)),
        "posts": dict(zip(("before", "after"), result.posts, strict=True)),
        "words": dict(zip(("before", "after"), result.words, strict=True)),
        "removed": result.counts(),
        "output": str(output),
        "removals": str(removed),
    }
    if json:
        emit_json(facts)
        return
    _tell_cleaned(facts, min_words)
    emit(f"\nwritten: {output}, and what was removed: {removed}")


def _tell_cleaned(facts: dict[str, Any], min_words: int) -> None:
    counted = [(key, facts[key]) for key in ("users", "posts", "words")]
    rows = [(key, f"{n['before']:,}", f"{n['after']:,}") for key, n in counted]
    emit(table(rows, ("", "before", "after")))
    listed = [(k, rule, n) for k, named in facts["removed"].items() for rule, n in named.items()]
    if listed:
        emit("\n" + table(listed, ("kind", "rule", "found")))
    few = facts["removed"].get("noise", {}).get("too little left", 0)
    if few and min_words:
        emit(
            f"\n{few} of {facts['users']['before']} users have fewer than {min_words} words left "
            "and were removed; --min-words 0 keeps all who have any"
        )


def compare(
    votes: VotesFile,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            "--estimator",
            help="released, converged, majority, dawid-skene, glad, mace; the first is the measure "
            "[default: all]",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option("--truth", help="rows with id and label (or hardlabels, type), where known"),
    ] = None,
    scale: ScaleText = None,
    dimension: Dimensions = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Our estimates beside majority vote, Dawid-Skene, GLAD and MACE, on the same votes.

    "as majority": the share of items with a majority that have its label; "as first" and "moved":
    the share with the hard label of the dimension's first row, and the mean change of the posterior
    from it. "ties": items whose poles are exactly as probable; each counts as a half (of two).
    released needs two poles and is left out elsewhere.

    Needs the extra: pip install 'suture[labels]'.
    """
    from suture.labels import declared
    from suture.labels.declared import TRUTH
    from suture.labels.peers import OURS, PEERS, compare_estimators
    from suture.progress import track

    read = votes_of(votes, scale, limit, dimension)
    known = declared(read, truth, columns=TRUTH) if truth is not None else None
    methods = tuple(estimator or (*OURS, *PEERS))
    found = {
        name: compare_estimators(read, name, methods, truth=known.labels if known else None)
        for name in track([*read.ballots], "estimators by dimension")
    }
    if json:
        facts = {"items": len(read.items), "estimators": found}
        emit_json(facts | ({"without_item": len(known.without_item)} if known else {}))
        return
    rows = []
    for name, listed in found.items():
        for row in listed:
            cells = [
                name,
                row["estimator"],
                row["ties"],
                *map(_number, (row["hard_as_majority"], row["hard_as_first"], row["moved"])),
            ]
            if known is not None:
                cells += map(_number, (row["accuracy"], row["brier"]))
            rows.append([*cells, f"{row['seconds']:.3f}"])
    head = ["dimension", "estimator", "ties", "as majority", "as first", "moved"]
    emit(table(rows, [*head, *(("accuracy", "Brier") if known is not None else ()), "seconds"]))
    if known is not None:
        tell_without_item(known.without_item, truth)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def plot(
    labels: Annotated[Path, typer.Argument(help="labels that `estimate` has written")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the drawing, SVG")],
    against: Annotated[
        Path | None, typer.Option("--against", help="other labels of the same items, as dots")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="said to screen readers")] = None,
    json: Json = False,
) -> None:
    """The distribution of soft labels by dimension, stacked by hard label, as one SVG."""
    from suture.labels.files import refuse_ending, refuse_inputs, write_bytes
    from suture.labels.stored import read_labels
    from suture.report import standalone
    from suture.report.label_plot import label_plot

    refuse_ending(output, ".svg")
    refuse_inputs([output], [labels, against])
    panels: list[Panel] = _panels(read_labels(labels))
    over = _panels(read_labels(against)) if against is not None else []
    drawn = label_plot(
        panels,
        title=title or "Distribution of labels",
        over=over,
        names=(labels.name, against.name if against else ""),
    )
    write_bytes(output, standalone(drawn).encode())
    known = {panel.name for panel in over}
    bare = [panel.name for panel in panels if over and panel.name not in known]
    if json:
        names = [panel.name for panel in panels]
        emit_json({"plot": str(output), "dimensions": names, "without_dots": bare})
        return
    emit(f"drawn: {output}")
    if bare and against is not None:
        emit(f"without dots, as {against.name} has no labels of it: {', '.join(bare)}")


def _panels(rows: list[Any]) -> list[Panel]:
    from suture.report.label_plot import Panel

    panels = []
    items = [row.id for row in rows]
    for name in rows[0].soft if rows else ():
        soft, hard = [row.soft[name] for row in rows], [row.hard.get(name) for row in rows]
        shared = next((value for value in soft if isinstance(value, dict)), None)
        if shared is not None:
            known = [value for value in soft if value is not None]
            shares = {pole: sum(v[pole] for v in known) / len(known) for pole in shared}
            panels.append(Panel(name, tuple(shared), [], hard, shares, items))
            continue
        panels.append(Panel(name, _ends(soft, hard), soft, hard, items=items))
    return panels


def _ends(soft: list[Any], hard: list[Any]) -> tuple[str, str]:
    """First and second pole: what the items below and above .5 are called."""
    names = []
    for below, unknown in ((True, "first"), (False, "second")):
        side = [
            pole
            for value, pole in zip(soft, hard, strict=True)
            if pole is not None and value is not None and (value < 0.5) == below
        ]
        names.append(max(set(side), key=side.count) if side else unknown)
    return names[0], names[1]
