"""Measurements of several models as one table: seeds together, intervals, the best where it is
shown to be the best.

Rows are models, columns metrics. Of two or more seeds a cell is their mean with Student's interval
over seeds; of one it is the value with its interval over rows. A cell is the best of its column
when the interval of its difference to every other row, the constant answer included, lies on the
better side of zero: Welch's over seeds where both rows have at least two, else a bootstrap of the
rows that both answered (the same clusters drawn for both, seeds averaged). A maximum of many such
tests needs no correction: all of them must hold. And a number about less than nine tenths of the
rows that another row's number is about is marked nowhere: what was left out may be what is hard.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.lazy import np
from suture.ledger import Better, Measurement, Statistic, interval_of, is_trivial
from suture.ledger.statistics import FEWEST, resampled, summed
from suture.ledger.student import mean_interval, welch

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONSTANT = "constant answer"
_TAIL = "_constant"
_COVERED = 0.9
_READ = ("parsed_strict", "parsed_lenient")


@dataclass(frozen=True)
class Cell:
    """One number of one row. `low`, `high`: 95%, where there is an interval; `over`: what it is
    over, `seeds` or `rows`; `n`: items, of seeds the fewest."""

    value: float
    low: float | None
    high: float | None
    over: str
    n: int
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A metric of a suite, and which way is better; `best`: a value in between that is."""

    suite: str
    metric: str
    better: Better
    best: float | None = None

    @property
    def name(self) -> str:
        return f"{self.suite}.{self.metric}"


@dataclass(frozen=True)
class Line:
    """A row of the table: `cells` by column name, absent where the model was not measured.

    `read`: shares of replies that could be read, by metric, shown whichever columns are. `rank`:
    the mean over the columns of the row's place among the models, 1 the best, ties shared; None for
    the constant answer and where a cell is missing.
    """

    label: str
    seeds: int
    cells: dict[str, Cell]
    read: dict[str, float] = field(default_factory=dict)
    rank: float | None = None


@dataclass(frozen=True)
class Table:
    """What `suture table` shows. `data`: of each suite its data's name, size and hash."""

    columns: list[Column]
    lines: list[Line]
    data: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "columns": [{**c.__dict__, "name": c.name} for c in self.columns],
            "rows": [
                {
                    "model": line.label,
                    "seeds": line.seeds,
                    "rank": line.rank,
                    "read": line.read,
                    "cells": {name: cell.__dict__ for name, cell in line.cells.items()},
                }
                for line in self.lines
            ],
            "data": self.data,
        }


@dataclass(frozen=True)
class _Side:
    """One metric of one row: the measurements behind it, and what each calls the metric."""

    runs: list[Measurement]
    metric: str

    @property
    def mean(self) -> float:
        """Over its runs."""
        return fmean(run.metrics[self.metric] for run in self.runs)

    @property
    def n(self) -> int:
        """How many rows the number is about, in the run that has fewest."""
        return min(_count(run, self.metric) for run in self.runs)

    def statistic(self, run: Measurement) -> Statistic | None:
        """None: a number about all rows that nothing can be resampled of."""
        about = run.derived.get(self.metric)
        if about is None:
            return Statistic("mean", (self.metric,))
        return Statistic.load(about["statistic"]) if "statistic" in about else None


def tabulate(groups: Mapping[str, Sequence[Measurement]], metrics: Sequence[str] = ()) -> Table:
    """The table of `groups`, by label the measurements of a model: of several suites, and of each
    suite one for each seed. `metrics`: names or patterns SUITE.METRIC; default all
    but what is trivial of every model (`is_trivial`).

    Errors: E631 measurements of other data or scorers, E632 no metric of these names.
    """
    data = same_data([one for group in groups.values() for one in group])
    columns = _columns(groups, metrics)
    sides: dict[str, dict[str, _Side]] = {}
    for column in columns:
        own = sides.setdefault(column.name, {})
        for label, group in groups.items():
            runs = [m for m in group if m.suite == column.suite and column.metric in m.metrics]
            if runs:
                own[label] = _Side(runs, column.metric)
        if constant := _constant(groups, column):
            own[CONSTANT] = constant
    best = {column.name: _best(sides[column.name], column) for column in columns}
    ranks = _ranks(list(groups), columns, sides)
    lines = [
        Line(
            label,
            _seeds(groups.get(label, ())),
            {
                name: _cell(own[label], best[name] == label)
                for name, own in sides.items()
                if label in own
            },
            _read(groups.get(label, ()), columns),
            ranks.get(label),
        )
        for label in (*groups, CONSTANT)
        if any(label in own for own in sides.values())
    ]
    return Table(columns, lines, data)


def _read(group: Sequence[Measurement], columns: Sequence[Column]) -> dict[str, float]:
    """`parsed_strict` and `parsed_lenient` of what the columns are about, the mean over seeds."""
    shown = {column.name.rpartition(".")[0] for column in columns}
    found: dict[str, list[float]] = {}
    for one in group:
        for metric, value in one.metrics.items():
            about, _, end = f"{one.suite}.{metric}".rpartition(".")
            if end in _READ and any(
                name == about or name.startswith(f"{about}.") for name in shown
            ):
                found.setdefault(f"{about}.{end}", []).append(value)
    return {name: fmean(values) for name, values in found.items()}


def _ranks(
    labels: Sequence[str], columns: Sequence[Column], sides: Mapping[str, Mapping[str, _Side]]
) -> dict[str, float]:
    """Of the models that have every column, the mean place; columns without a better end are left
    out."""
    ranked = [column for column in columns if column.best is None]
    whole = [label for label in labels if all(label in sides[c.name] for c in ranked)]
    places: dict[str, list[float]] = {label: [] for label in whole}
    for column in ranked:
        sign = -1.0 if column.better == "higher" else 1.0
        values = {label: sign * sides[column.name][label].mean for label in whole}
        for label, value in values.items():
            before = sum(other < value for other in values.values())
            alike = sum(other == value for other in values.values())
            places[label].append(before + (alike + 1) / 2)
    return {label: fmean(found) for label, found in places.items() if found}


def _seeds(group: Sequence[Measurement]) -> int:
    """The seeds of a model: the most measurements of any suite."""
    counts: dict[str, int] = {}
    for one in group:
        counts[one.suite] = counts.get(one.suite, 0) + 1
    return max(counts.values(), default=1)


def _columns(groups: Mapping[str, Sequence[Measurement]], wanted: Sequence[str]) -> list[Column]:
    """Every metric once, in the order of files; the constants' become a row of their own."""
    found: dict[str, Column] = {}
    telling = set()
    for group in groups.values():
        for one in group:
            for metric in one.metrics:
                if metric in one.better and not metric.endswith(_TAIL):
                    best = one.derived.get(metric, {}).get("best")
                    column = Column(one.suite, metric, one.better[metric], best)
                    found.setdefault(column.name, column)
                    if not is_trivial(one, metric):
                        telling.add(column.name)
    if not wanted:
        return [column for name, column in found.items() if name in telling]
    chosen = [
        column
        for pattern in wanted
        for name, column in found.items()
        if fnmatch.fnmatchcase(name, pattern)
    ]
    if not chosen:
        raise SutureError(
            "E632",
            f"no metric is called {' or '.join(wanted)}",
            where="--metric",
            fix=f"there are: {', '.join(found)}",
        )
    return list(dict.fromkeys(chosen))


def same_data(measurements: Sequence[Measurement]) -> dict[str, dict[str, Any]]:
    """Refuse (E631) columns whose numbers are about other items, or were scored in other ways."""
    first: dict[str, Measurement] = {}
    for one in measurements:
        known = first.setdefault(one.suite, one)
        for what, mine, theirs in (
            ("data", known.data.get("sha256"), one.data.get("sha256")),
            ("scorer", known.scorer, one.scorer),
        ):
            if mine != theirs:
                raise SutureError(
                    "E631",
                    f"{one.suite}: two measurements differ in {what}",
                    where=f"{known.file or known.model.get('path')} and "
                    f"{one.file or one.model.get('path')}",
                    why="their numbers in one column would not be about the same thing",
                    fix="measure all models on the same data, or make two tables",
                )
    return {
        suite: {key: one.data.get(key) for key in ("name", "sha256", "n", "limit", "options")}
        for suite, one in first.items()
    }


def _constant(groups: Mapping[str, Sequence[Measurement]], column: Column) -> _Side | None:
    """The constant answer's metric; it is about the labels, so it is the same in all."""
    for group in groups.values():
        for one in group:
            if one.suite == column.suite and f"{column.metric}{_TAIL}" in one.metrics:
                return _Side([one], f"{column.metric}{_TAIL}")
    return None


def _count(run: Measurement, metric: str) -> int:
    rows = sum(metric in row.scores for row in run.rows)
    return int(run.derived.get(metric, {}).get("n", rows))


def _cell(side: _Side, best: bool) -> Cell:
    values = [run.metrics[side.metric] for run in side.runs]
    n = side.n
    if len(values) > 1:
        return Cell(fmean(values), *_over_seeds(side, values), "seeds", n, best)
    ends = interval_of(side.runs[0], side.metric)
    low, high = (None, None) if ends is None else ends
    return Cell(values[0], low, high, "rows", n, best)


def _over_seeds(side: _Side, values: Sequence[float]) -> tuple[float, float]:
    """Student's interval; of shares, which are known to lie there, cut at 0 and 1."""
    low, high = mean_interval(values)
    for run in side.runs:
        statistic = side.statistic(run)
        rows = [row for row in run.rows if statistic is not None and statistic.takes(row)]
        if statistic is None or not rows or not statistic.counts(rows):
            return low, high
    return max(low, 0.0), min(high, 1.0)


def _best(sides: Mapping[str, _Side], column: Column) -> str | None:
    """The label that beats every other; None: nobody is shown to, or neither end is best."""
    sign = 1.0 if column.better == "higher" else -1.0
    means = {label: sign * side.mean for label, side in sides.items()}
    if len(means) < 2 or column.best is not None:
        return None
    first = max(means, key=lambda label: means[label])
    if sides[first].n < _COVERED * max(side.n for side in sides.values()):
        return None
    others = [side for label, side in sides.items() if label != first]
    return first if all(_beats(sides[first], other, sign) for other in others) else None


def _beats(side: _Side, other: _Side, sign: float) -> bool:
    if min(len(side.runs), len(other.runs)) > 1:
        mine, theirs = (
            [sign * run.metrics[one.metric] for run in one.runs] for one in (side, other)
        )
        return welch(theirs, mine).low > 0
    low = _paired_low(side, other, sign)
    return low is not None and low > 0


def _paired_low(side: _Side, other: _Side, sign: float) -> float | None:
    """The lower end of the difference over the rows that all runs have; None: it has none."""
    runs = [(one, run, one.statistic(run)) for one in (side, other) for run in one.runs]
    if any(statistic is None for _, _, statistic in runs):
        return None
    known = [(one, run, s) for one, run, s in runs if s is not None]
    rows = [{row.item: row for row in run.rows if s.takes(row)} for _, run, s in known]
    items = sorted(set.intersection(*(set(own) for own in rows)))
    clusters = [rows[0][item].cluster or item for item in items]
    if len(set(clusters)) < FEWEST:
        return None
    blocks = [
        s.features([own[item] for item in items])
        for own, (_, _, s) in zip(rows, known, strict=True)
    ]
    weights = [sign / len(one.runs) * (1 if one is side else -1) for one, _, _ in known]

    def difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = zip(weights, known, _cut(sums, [b.shape[1] for b in blocks]), strict=True)
        return np.asarray(sum(w * s.value(part) for w, (_, _, s), part in parts))

    units = summed(np.concatenate(blocks, axis=1), clusters)
    boot = resampled(difference, units, seed=0, name=f"table/{side.metric}")
    return boot.low if boot.error > 0 else None


def _cut(sums: NDArray[np.float64], widths: Sequence[int]) -> Iterator[NDArray[np.float64]]:
    at = 0
    for width in widths:
        yield sums[..., at : at + width]
        at += width
