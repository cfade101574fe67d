"""`suture table` and `suture plot`: measurements side by side, as text and as a drawing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.terminal import emit, emit_json
from suture.errors import SutureError

if TYPE_CHECKING:
    from suture.ledger import Measurement
    from suture.report.leanings import Leaning, Panel

_JSON = typer.Option("--json", help="one JSON object on standard output")
_SUITE = "personality"
_MOST = 4  # models beside each other in a drawing
Files = Annotated[
    list[str],
    typer.Argument(help="measurement files, or LABEL=FILE: files of one label are its seeds"),
]


def table(
    measurements: Files,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="file ending in .md, .csv or .tex")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="columns: SUITE.METRIC, * and ? allowed; may be repeated"),
    ] = None,
    digits: Annotated[int, typer.Option("--digits", min=0, max=9, help="decimals shown")] = 3,
    percent: Annotated[bool, typer.Option("--percent", help="shares in percent")] = False,
    rank: Annotated[
        bool, typer.Option("--rank", help="last column: the mean rank over the others")
    ] = False,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Models down, metrics across, seeds together; the best in bold only if intervals show it.

    Folders that differ only in a seed at their end are seeds of one model. Of two seeds or more a
    cell is their mean with its interval over seeds, of one the value with its interval over rows.
    """
    from suture.report.grouping import grouped, named_files
    from suture.report.seeds import tabulate
    from suture.report.tables import as_markdown, renderer, write_table

    if out is not None:
        renderer(out)  # a wrong ending is told before anything is computed
    found = tabulate(grouped(named_files(measurements)), metric or ())
    replaced = out is not None and out.exists()
    if out is not None:
        write_table(found, out, digits=digits, percent=percent, rank=rank)
    if json:
        emit_json({**found.as_dict(), "file": None if out is None else str(out)})
        return
    if out is None:
        emit(as_markdown(found, digits=digits, percent=percent, rank=rank).rstrip())
        return
    word = "replaced" if replaced else "wrote"
    emit(f"{word} {out}: {len(found.lines)} rows, {len(found.columns)} metrics")


def plot(
    measurements: Files,
    out: Annotated[Path, typer.Option("-o", "--output", help="SVG file to write")],
    bias: Annotated[
        bool,
        typer.Option(
            "--bias", help="bias and polarisation with intervals instead of distributions"
        ),
    ] = False,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Draw how the answers of `personality` measurements lean: to the ends, or to one pole.

    Distributions of answers and labels, soft form only; with --bias both leanings as intervals.
    Answers that could not be read are counted, and stand in no distribution.
    """
    from suture.checkpoint.jsonfile import write_atomic
    from suture.report.grouping import grouped, named_files
    from suture.report.leanings import distributions, leanings
    from suture.report.svg import check_ending, standalone

    check_ending(out)
    groups = grouped(named_files(measurements))
    drawn = leanings(_leanings(groups)) if bias else distributions(_panels(groups))
    if not drawn:
        raise SutureError(
            "E634",
            "there is nothing to draw: no measurement has answers beside labels",
            where=", ".join(measurements),
            fix="give measurements of the suite personality on labelled people"
            + ("" if bias else ", made with form=soft"),
        )
    replaced = out.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, standalone(drawn).encode("utf-8"))
    unread = {name: _unread(group) for name, group in groups.items()}
    if json:
        counts = {name: {"unread": lost, "of": total} for name, (lost, total) in unread.items()}
        emit_json({"file": str(out), "models": list(groups), "answers": counts})
        return
    emit(f"{'replaced' if replaced else 'wrote'} {out}: {', '.join(groups)}")
    for name, (lost, total) in unread.items():
        if lost:
            counted = "they count as the measurement says (`unread`)" if bias else "left out"
            emit(f"{name}: {lost} of {total} answers could not be read: {counted}")


def _panels(groups: Mapping[str, Sequence[Measurement]]) -> dict[str, list[Panel]]:
    """The scales of each model, seeds pooled. E631: they are about other people."""
    from suture.report.leanings import Panel
    from suture.report.seeds import same_data
    from suture.suites.mbti.columns import was_read
    from suture.suites.mbti.dimensions import dimensions

    if len(groups) > _MOST:
        raise SutureError(
            "E634",
            f"{len(groups)} models do not fit beside each other",
            fix=f"draw at most {_MOST}, or their intervals with --bias",
        )
    soft = {
        label: [one for one in group if _options(one).get("form", "soft") == "soft"]
        for label, group in groups.items()
    }
    soft = {label: [one for one in group if one.suite == _SUITE] for label, group in soft.items()}
    same_data([one for group in soft.values() for one in group])
    found: dict[str, list[Panel]] = {}
    for label, group in soft.items():
        panels = []
        for name, about in dimensions().items():
            rows = [
                (row.scores, was_read(row, _options(one)))
                for one in group
                for row in one.rows
                if row.item.endswith(f"/{name.replace('/', '')}")
            ]
            truth, said = f"{about.key}.truth", f"{about.key}.said"
            labels = [scores[truth] for scores, _ in rows if truth in scores]
            answers = [scores[said] for scores, read in rows if read and truth in scores]
            unread = sum(not read for _, read in rows)
            if labels:
                poles = (about.first.name, about.second.name)
                panels.append(Panel(name, *poles, labels, answers, unread))
        if panels:
            found[label] = panels
    if found and not any(panel.said for panels in found.values() for panel in panels):
        raise SutureError(
            "E634",
            "there is nothing to draw: none of the answers could be read",
            fix="measure with --set parser=lenient, or draw a model that answers in the form "
            "asked for",
        )
    return found


def _options(one: Measurement) -> Mapping[str, Any]:
    options: Mapping[str, Any] = one.data.get("options", {})
    return options


def _unread(group: Sequence[Measurement]) -> tuple[int, int]:
    """Of the answers about personality, how many could not be read, and how many there are."""
    from suture.suites.mbti.columns import was_read

    read = [
        was_read(row, _options(one)) for one in group if one.suite == _SUITE for row in one.rows
    ]
    return read.count(False), len(read)


def _leanings(
    groups: Mapping[str, Sequence[Measurement]],
) -> dict[str, dict[str, dict[str, Leaning]]]:
    """Bias and polarisation with their intervals, as the table has them."""
    from suture.report.leanings import Leaning
    from suture.report.seeds import tabulate
    from suture.suites.mbti.columns import LEANINGS
    from suture.suites.mbti.dimensions import dimensions

    names = {about.key: name for name, about in dimensions().items()}
    shown = [f"{one.suite}.{m}" for group in groups.values() for one in group for m in one.metrics]
    wanted = [name for name in dict.fromkeys(shown) if name.rpartition(".")[2] in LEANINGS]
    if not wanted:
        return {}
    found = tabulate(groups, wanted)
    drawn: dict[str, dict[str, dict[str, Leaning]]] = {}
    for column in found.columns:
        key, _, measure = column.metric.partition(".")
        if measure not in LEANINGS or key not in names:
            continue
        for line in found.lines:
            cell = line.cells.get(column.name)
            if cell is not None and cell.low is not None and cell.high is not None:
                lost, total = _unread(groups.get(line.label, ()))
                told = f" ({1 - lost / total:.0%} read)" if lost else ""
                titled = f"{measure}: {LEANINGS[measure]}"
                scales = drawn.setdefault(titled, {}).setdefault(names[key], {})
                scales[line.label + told] = Leaning(cell.value, cell.low, cell.high, cell.n)
    return drawn


COMMANDS: dict[str, Callable[..., Any]] = {"table": table, "plot": plot}
