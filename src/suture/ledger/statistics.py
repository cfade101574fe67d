"""Numbers about all rows at once that can be resampled: F1, RMSE, correlation, and means of them.

Such a number is no mean of a column, but it follows from sums: every row has features (of macro-F1:
for each label whether it was hit, asked for and given), and the number is a closed form of their
sums over rows. So a bootstrap is one matrix product, the jackknife is the total less each unit, and
two models can be paired: the same clusters are drawn for both.

A statistic is its `kind`, the columns it reads and its options. `columns` of 0/1 or of codes
(labels by their index, `NONE` for no label) are floats as all scores are.

    mean             [x]                        mean of a column
    ratio            [a, b]                     sum of a / sum of b
    mae, rmse        [gold, said] or [error]    absolute and root of squared errors
    pearson          [gold, said]               correlation; 0 where one side does not vary
    accuracy         [gold, said]               of codes
    macro_f1         [gold, said]               F1 of each label, averaged over the labels that are
                                                asked for or given, as scikit-learn does
    weighted_f1      [gold, said]               the same, weighted by how often each is asked for
    f1_of, precision_of, recall_of  [gold, said], `label`    of one code
    micro_f1, micro_precision, micro_recall  [tp, fp, fn]    of counts over all rows
    macro_count_f1   [tp, fp, fn] of each class              averaged over classes that occur
    weighted_pair_f1 [tp, fp, fn] of each class              weighted by tp + fn (inferred: how
                                                emotion-cause pairs are averaged over emotions)
    bleu             [hits, total] of each order, then [length, length of the reference]
    mean_of          `parts`: statistics, each over the rows that have its columns
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError, nearest
from suture.lazy import np
from suture.ledger.intervals import Bootstrap, bca, wilson
from suture.ledger.kinds import counted
from suture.ledger.measurement import Better, Measurement, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Features = Callable[[Array, Mapping[str, Any]], Array]  # also of sums to a number

NONE = -1.0  # the code of "no label was given"
_MEASURED = {"ratio", "mae", "rmse", "pearson", "bleu"}  # kinds that are no share of rows
_SHARES = {"mean", "accuracy"}  # kinds that are a share of rows where they count hits
FEWEST = 5  # rows or clusters below which a bootstrap says nothing


@dataclass(frozen=True)
class Statistic:
    """One of the kinds above, of these columns. `where`: only rows in which these columns have
    these values. As JSON it stands in `Measurement.derived[name]["statistic"]`."""

    kind: str
    columns: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, about: Mapping[str, Any]) -> Statistic:
        """From the form that `as_dict` gives (E620: it names no kind that is known)."""
        options = dict(about)
        kind, columns = options.pop("kind", ""), options.pop("columns", ())
        where = options.pop("where", {})
        known = [*_KINDS, "mean_of"]
        if kind not in known:
            close = nearest(str(kind), known)
            raise SutureError(
                "E620",
                f"there is no statistic '{kind}'",
                fix=f"did you mean '{close}'?" if close else f"there are: {', '.join(known)}",
            )
        return cls(kind, tuple(columns), options, where)

    def as_dict(self) -> dict[str, Any]:
        """What a measurement keeps of it."""
        where = {"where": dict(self.where)} if self.where else {}
        return {"kind": self.kind, "columns": list(self.columns), **self.options, **where}

    @property
    def parts(self) -> list[Statistic]:
        """Of a `mean_of`."""
        return [Statistic.load(part) for part in self.options["parts"]]

    def counts(self, rows: Sequence[Row]) -> bool:
        """Whether it is made of the hits and misses of `rows`, ones that it `takes`: then it lies
        between 0 and 1, and that nothing varies among these rows does not make it certain."""
        if self.kind == "mean_of":
            return all(part.counts([row for row in rows if part.takes(row)]) for part in self.parts)
        if self.kind == "mean":  # its column's name, without the task, and values tell
            name = self.columns[0]
            return counted(name.rpartition(".")[2], (row.scores[name] for row in rows))
        return self.kind not in _MEASURED

    @property
    def width(self) -> int:
        """How many features it has."""
        if self.kind == "mean_of":
            return sum(part.width for part in self.parts)
        return int(self.features([]).shape[1])

    def takes(self, row: Row) -> bool:
        """Whether the row has what this is made of."""
        if self.kind == "mean_of":
            return any(part.takes(row) for part in self.parts)
        return all(name in row.scores for name in self.columns) and all(
            row.scores.get(name) == value for name, value in self.where.items()
        )

    def features(self, rows: Sequence[Row]) -> Array:
        """(rows, features); `rows` are ones that it `takes`."""
        if self.kind == "mean_of":
            blocks = []
            for part in self.parts:
                taken = [part.takes(row) for row in rows]
                own = part.features([row for row, took in zip(rows, taken, strict=True) if took])
                block = np.zeros((len(rows), own.shape[1]))
                block[np.array(taken, dtype=bool)] = own
                blocks.append(block)
            return np.concatenate(blocks, axis=1)
        values = [[row.scores[name] for name in self.columns] for row in rows]
        table = np.array(values, dtype=np.float64).reshape(len(rows), len(self.columns))
        return _KINDS[self.kind][0](table, self.options)

    def value(self, sums: Array) -> Array:
        """The number that sums of features (..., features) give: (...)."""
        if self.kind == "mean_of":
            found, at = [], 0
            for part in self.parts:
                found.append(part.value(sums[..., at : at + part.width]))
                at += part.width
            return np.asarray(np.mean(found, axis=0), dtype=np.float64)
        return _KINDS[self.kind][1](sums, self.options)

    def of(self, rows: Sequence[Row]) -> float:
        """The number over `rows`."""
        return float(self.value(self.features(rows).sum(axis=0)))


def derive(
    rows: Sequence[Row],
    kind: str,
    columns: Sequence[str],
    *,
    definition: str,
    better: Better,
    seed: int = 0,
    where: Mapping[str, float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A number about `rows` as an entry of `Measurement.derived`.

    `kind`, `columns`, `options`: the statistic, as above; rows without the columns are left out,
    and `n` counts the rest. `where`: only rows with these values. `definition`: it in words.
    Returns {value, definition, direction, n, interval, statistic}: the interval is Wilson's of
    shares of independent rows, else BCa's at 95%, whole clusters drawn and the same ones for every
    number of as many clusters. Where no draw differs from another, hits and misses have Wilson's
    over rows or clusters (inferred for F1), other numbers none. Below `FEWEST` clusters only shares
    have one.
    Errors: E620 no such kind, E621 no row has the columns.
    """
    content = {"kind": kind, "columns": list(columns), **options, "where": dict(where or {})}
    statistic = Statistic.load(content)
    taken = [row for row in rows if statistic.takes(row)]
    if not taken:
        raise SutureError(
            "E621",
            f"no row has what {kind} is made of",
            where=", ".join([*columns, *(where or {})]) or "mean_of",
            fix="derive it from rows that have these columns",
        )
    features = statistic.features(taken)
    found: dict[str, Any] = {
        "value": float(statistic.value(features.sum(axis=0))),
        "definition": definition,
        "direction": better,
        "n": len(taken),
    }
    units = summed(features, [row.cluster or row.item for row in taken])
    counts = statistic.counts(taken)
    alone = len(units) == len(taken) or found["value"] in (0.0, 1.0)  # a bootstrap would see none
    if kind in _SHARES and counts and alone:
        found["interval"] = list(wilson(found["value"], len(units)))
    elif len(units) >= FEWEST:
        boot = resampled(lambda sums: statistic.value(sums), units, seed=seed, name="derive")
        if boot.low < boot.high:
            found["interval"] = [boot.low, boot.high]
        elif counts:  # nothing varies among these; among others it might
            found["interval"] = list(wilson(found["value"], len(units)))
    return {**found, "statistic": statistic.as_dict()}


def without_interval(measurement: Measurement, name: str) -> str:
    """Why a metric has none, in words."""
    about = measurement.derived.get(name)
    told = None if about is None else about.get("statistic")
    statistic = Statistic("mean", (name,)) if told is None else Statistic.load(told)
    if told is None and not any(map(statistic.takes, measurement.rows)):
        return "one number about all rows"
    units = {row.cluster or row.item for row in measurement.rows if statistic.takes(row)}
    if len(units) < FEWEST:
        return f"fewer than {FEWEST} rows or clusters, no share of them"
    return "nothing varies among the rows, and it is no share of them"


def summed(features: Array, clusters: Sequence[str]) -> Array:
    """The features summed within each cluster: (clusters, features), clusters in name order."""
    _, group = np.unique(np.asarray(clusters), return_inverse=True)
    units = np.zeros((int(group.max()) + 1, features.shape[1]))
    np.add.at(units, group, features)
    return units


def resampled(value: Callable[[Array], Array], units: Array, *, seed: int, name: str) -> Bootstrap:
    """BCa over independent units (units, features): `value` maps sums (k, features) to (k,)."""
    count = len(units)

    def statistic(index: NDArray[np.int64]) -> Array:
        drawn = len(index)
        flat = (index + np.arange(drawn)[:, None] * count).ravel()
        times = np.bincount(flat, minlength=drawn * count).reshape(drawn, count)
        return value(times @ units)

    rest = value(units.sum(axis=0) - units)
    return bca(statistic, count, seed=seed, name=name, jackknife=rest)


def _over(top: Array, bottom: Array) -> Array:
    """top / bottom, and 0 where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _plain(table: Array, _: Mapping[str, Any]) -> Array:
    return table


def _with_count(values: Array) -> Array:
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)


def _counted(table: Array, _: Mapping[str, Any]) -> Array:
    return _with_count(table)


def _error(table: Array) -> Array:
    """Of [error] or [gold, said]."""
    return table[:, :1] if table.shape[1] == 1 else table[:, 1:2] - table[:, :1]


def _mean(sums: Array, _: Mapping[str, Any]) -> Array:
    return _over(sums[..., 0], sums[..., 1])


def _root_mean(sums: Array, _: Mapping[str, Any]) -> Array:
    return np.sqrt(_mean(sums, _))


def _moments(table: Array, _: Mapping[str, Any]) -> Array:
    """Around the means of all rows, which a correlation does not feel and sums of squares do."""
    x, y = (table - (table.mean(axis=0) if len(table) else 0.0)).T
    return _with_count(np.stack([x, y, x * x, y * y, x * y], axis=1))


def _pearson(sums: Array, _: Mapping[str, Any]) -> Array:
    x, y, xx, yy, xy, n = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * xx - x * x, 0.0) * np.maximum(n * yy - y * y, 0.0)
    # rounding leaves a constant column a spread of this order
    spread = np.where(spread <= 1e-20 * (n * xx) * (n * yy), 0.0, spread)
    return _over(n * xy - x * y, np.sqrt(spread))


def _hits(table: Array, options: Mapping[str, Any]) -> Array:
    """For each code: hit, asked for, given. `labels`: how many codes there are."""
    codes = np.arange(int(options["labels"]), dtype=np.float64)
    gold, said = table[:, :1] == codes, table[:, 1:2] == codes
    return np.concatenate([gold & said, gold, said], axis=1).astype(np.float64)


def _of_label(table: Array, options: Mapping[str, Any]) -> Array:
    gold, said = (table == float(options["label"])).T
    return np.stack([gold & said, gold, said], axis=1).astype(np.float64)


def _thirds(sums: Array) -> tuple[Array, Array, Array]:
    hit, asked, given = np.split(sums, 3, axis=-1)
    return hit, asked, given


def _macro_f1(sums: Array, _: Mapping[str, Any]) -> Array:
    hit, asked, given = _thirds(sums)
    occurs = (asked + given > 0).sum(axis=-1).astype(np.float64)
    return _over(_over(2 * hit, asked + given).sum(axis=-1), occurs)


def _weighted_f1(sums: Array, _: Mapping[str, Any]) -> Array:
    hit, asked, given = _thirds(sums)
    return _over((asked * _over(2 * hit, asked + given)).sum(axis=-1), asked.sum(axis=-1))


def _classes(sums: Array) -> tuple[Array, Array]:
    """F1 of each class from (tp, fp, fn) of each, and how often it is asked for."""
    tp, fp, fn = (sums[..., place::3] for place in range(3))
    return _over(2 * tp, 2 * tp + fp + fn), tp + fn


def _macro_count_f1(sums: Array, _: Mapping[str, Any]) -> Array:
    f1, _asked = _classes(sums)
    occurs = (sums[..., 0::3] + sums[..., 1::3] + sums[..., 2::3] > 0).sum(axis=-1)
    return _over(f1.sum(axis=-1), occurs.astype(np.float64))


def _weighted_pair_f1(sums: Array, _: Mapping[str, Any]) -> Array:
    f1, asked = _classes(sums)
    return _over((f1 * asked).sum(axis=-1), asked.sum(axis=-1))


def _bleu(sums: Array, _: Mapping[str, Any]) -> Array:
    """Of the corpus (Papineni et al. 2002), unsmoothed: 0 where an order has no hit."""
    hits, totals = sums[..., 0:-2:2], sums[..., 1:-2:2]
    length, wanted = sums[..., -2], sums[..., -1]
    shares = _over(hits, totals)
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(shares).mean(axis=-1))
    brief = np.exp(np.minimum(0.0, 1.0 - _over(wanted, length)))
    return np.where(length > 0, brief * mean, 0.0)


_KINDS: dict[str, tuple[Features, Features]] = {
    "mean": (_counted, _mean),
    "ratio": (_plain, _mean),
    "mae": (lambda table, _: _with_count(np.abs(_error(table))), _mean),
    "rmse": (lambda table, _: _with_count(_error(table) ** 2), _root_mean),
    "pearson": (_moments, _pearson),
    "accuracy": (
        lambda table, _: _with_count((table[:, :1] == table[:, 1:2]).astype(np.float64)),
        _mean,
    ),
    "macro_f1": (_hits, _macro_f1),
    "weighted_f1": (_hits, _weighted_f1),
    "f1_of": (_of_label, lambda s, _: _over(2 * s[..., 0], s[..., 1] + s[..., 2])),
    "precision_of": (_of_label, lambda s, _: _over(s[..., 0], s[..., 2])),
    "recall_of": (_of_label, lambda s, _: _over(s[..., 0], s[..., 1])),
    "micro_f1": (
        _plain,
        lambda s, _: _over(2 * s[..., 0], 2 * s[..., 0] + s[..., 1] + s[..., 2]),
    ),
    "micro_precision": (_plain, lambda s, _: _over(s[..., 0], s[..., 0] + s[..., 1])),
    "micro_recall": (_plain, lambda s, _: _over(s[..., 0], s[..., 0] + s[..., 2])),
    "macro_count_f1": (_plain, _macro_count_f1),
    "weighted_pair_f1": (_plain, _weighted_pair_f1),
    "bleu": (_plain, _bleu),
}
