"""A table of measurements as Markdown, CSV and LaTeX.

Markdown and LaTeX show a row per model: value, interval, and the best in bold where it is shown to
be the best. CSV has a line per cell with everything a plot needs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from suture.errors import SutureError
from suture.report import figures
from suture.report.markdown import table as markdown_table
from suture.report.seeds import Cell, Column, Table
from suture.report.visible import markdown, one_line

_ARROWS = {"higher": "↑", "lower": "↓"}
_LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{char: f"\\{char}" for char in "&%$#_{}"},
        figures.MINUS: "$-$",
    }
)
_CSV_HEAD = (
    *("model", "seeds", "suite", "metric", "better", "best_value"),
    *("value", "low", "high", "over", "n", "bold"),
)


def as_markdown(table: Table, *, digits: int = 3, percent: bool = False, rank: bool = False) -> str:
    """The table, and what its intervals, bold figures and data are below it."""
    head = ["model", *(f"{markdown(name)} {arrow}" for name, arrow in _heads(table, _ARROWS))]
    head += ["mean rank ↓"] * rank
    rows = [
        [
            markdown(_label(line.label, line.seeds)),
            *(
                _shown(line.cells.get(c.name), c, digits, percent, "**{}**", " [{}, {}]", "–")
                for c in table.columns
            ),
            *[figures.fixed(line.rank, 2)] * rank,
        ]
        for line in table.lines
    ]
    notes = "\n".join(f"- {markdown(note)}" for note in _notes(table, percent))
    return f"{markdown_table(head, rows)}\n\n{notes}\n"


def as_latex(table: Table, *, digits: int = 3, percent: bool = False, rank: bool = False) -> str:
    """A tabular for booktabs, its notes as comments."""
    heads = [f"{latex(name)} {arrow}" for name, arrow in _heads(table, _LATEX_ARROWS)]
    heads += [r"mean rank $\downarrow$"] * rank
    interval = r" {{\scriptsize [{}, {}]}}"
    body = [
        " & ".join(
            [
                latex(_label(line.label, line.seeds)),
                *(
                    _shown(
                        line.cells.get(c.name), c, digits, percent, r"\textbf{{{}}}", interval, "--"
                    ).translate({ord(figures.MINUS): "$-$"})
                    for c in table.columns
                ),
                *["--" if line.rank is None else f"{line.rank:.2f}"] * rank,
            ]
        )
        + r" \\"
        for line in table.lines
    ]
    return "\n".join(
        [
            *(f"% {one_line(note)}" for note in _notes(table, percent)),
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
            r"\toprule",
            " & ".join(["model", *heads]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def as_csv(table: Table) -> str:
    """One line per cell, numbers in full: value, interval, whether it is shown to be the best.

    `better` is `nearer` where a value in between is best: `best_value`, else empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for line in table.lines:
        for column in table.columns:
            cell = line.cells.get(column.name)
            if cell is None:
                continue
            ends = ["" if end is None else repr(end) for end in (cell.low, cell.high)]
            label = [_unquoted(line.label), line.seeds, column.suite, column.metric]
            aim = [column.better, ""] if column.best is None else ["nearer", repr(column.best)]
            writer.writerow(
                [*label, *aim, repr(cell.value), *ends, cell.over, cell.n, int(cell.best)]
            )
    return out.getvalue()


FORMATS: dict[str, Callable[..., str]] = {
    ".md": as_markdown,
    ".tex": as_latex,
    ".csv": lambda table, **_: as_csv(table),
}


def write_table(
    table: Table, out: Path, *, digits: int = 3, percent: bool = False, rank: bool = False
) -> None:
    """Write the table in the form of the file's ending. Error E633: none of .md, .csv, .tex."""
    from suture.checkpoint.jsonfile import write_atomic

    text = renderer(out)(table, digits=digits, percent=percent, rank=rank)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text.encode("utf-8"))


def renderer(out: Path) -> Callable[..., str]:
    """What writes a file of this name."""
    if out.suffix not in FORMATS:
        raise SutureError(
            "E633",
            f"a table is not written as '{out.suffix or out.name}'",
            where=str(out),
            fix=f"end the file's name in one of {', '.join(FORMATS)}",
        )
    return FORMATS[out.suffix]


def latex(text: object) -> str:
    """One line of LaTeX that shows `text` literally."""
    return one_line(str(text)).translate(_LATEX)


def _label(label: str, seeds: int) -> str:
    return label if seeds == 1 else f"{label} ({seeds} seeds)"


def _heads(table: Table, arrows: dict[str, str]) -> list[tuple[str, str]]:
    """Metric names, with the suite where there are several."""
    several = len({column.suite for column in table.columns}) > 1
    return [
        (c.name if several else c.metric, arrows[c.better] if c.best is None else f"({c.best:g})")
        for c in table.columns
    ]


def _shown(
    cell: Cell | None,
    column: Column,
    digits: int,
    percent: bool,
    bold: str,
    interval: str,
    missing: str,
) -> str:
    if cell is None:
        return missing
    as_percent = percent and figures.is_share({"metric": column.metric, "after": cell.value})

    def number(value: float) -> str:
        return figures.fixed(100 * value if as_percent else value, digits)

    value = bold.format(number(cell.value)) if cell.best else number(cell.value)
    if cell.low is None or cell.high is None:
        return value
    return value + interval.format(number(cell.low), number(cell.high))


def _notes(table: Table, percent: bool) -> list[str]:
    cells = [cell for line in table.lines for cell in line.cells.values()]
    found = []
    if any(cell.over == "seeds" for cell in cells):
        found.append("in brackets, of several seeds: 95% interval of the mean over seeds (Student)")
    if any(cell.over == "rows" and cell.low is not None for cell in cells):
        found.append("in brackets, of one run: 95% interval over rows (Wilson of shares, else BCa)")
    if any(cell.best for cell in cells):
        found.append("bold: better than every other row, by intervals of the differences (95%)")
    else:
        found.append("no figure is bold: none is shown to be better than every other row")
    if any(column.best is not None for column in table.columns):
        found.append("a number in brackets after a metric: the value that is best")
    for column in table.columns:
        counts = {
            line.label: cell.n for line in table.lines if (cell := line.cells.get(column.name))
        }
        most = max(counts.values(), default=0)
        if fewer := [f"{label} {n}" for label, n in counts.items() if n < most]:
            found.append(f"{column.name} is about {most} items, but of {', '.join(fewer)}")
    for line in table.lines:
        if line.read:
            told = ", ".join(f"{name} {100 * value:.1f}%" for name, value in line.read.items())
            found.append(f"replies that could be read, {line.label}: {told}")
    if percent:
        found.append("shares in percent")
    for suite, about in table.data.items():
        sha = str(about.get("sha256"))[:12]
        found.append(
            f"{suite}: {about.get('name')}, {about.get('n')} items, data {sha}{_asked(about)}"
        )
    return found


def _asked(about: Mapping[str, Any]) -> str:
    """The task and split that a data folder's name does not tell."""
    options = about.get("options") or {}
    told = [f"{key} {options[key]}" for key in ("task", "split") if key in options]
    return f", {', '.join(told)}" if told else ""


def _unquoted(label: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    plain = one_line(label)
    return f"'{plain}" if plain[:1] in ("=", "+", "-", "@") else plain
