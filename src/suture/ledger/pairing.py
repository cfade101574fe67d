"""The same items on two sides: refuse what cannot be paired, estimate the difference."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from suture.errors import SutureError
from suture.lazy import np
from suture.ledger.intervals import bca_mean, mcnemar_midp, tango, tango_score
from suture.ledger.kinds import counted
from suture.ledger.measurement import Better, Measurement, Row
from suture.ledger.statistics import Statistic, resampled, summed

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_ITEMS = 100  # for the bootstrap; binary scores have Tango, which holds at any n
LEAST_CLUSTERS = 30  # inferred: below it a cluster bootstrap covers too little
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A paired difference, oriented so that + is better, its interval and its tests.

    `p_value`: two-sided, of no difference. `p_below`: one-sided, of "not below the floor".
    `spread`: mean square difference per item times the design effect. `enough`: whether there
    are as many items (and clusters) as the test needs.
    """

    n: int
    difference: float
    low: float
    high: float
    p_value: float
    p_below: float
    spread: float
    test: str
    binary: bool
    enough: bool
    clusters: int | None


def estimate_difference(
    base: NDArray[np.float64],
    other: NDArray[np.float64],
    clusters: list[str] | None,
    *,
    better: Better,
    floor: float,
    seed: int,
    name: str,
) -> Estimate:
    """Paired `other - base`, oriented so that + is better; `floor` is where "broken" begins.

    Counts (`kinds`) that are independent: Tango, with McNemar's mid-p. Otherwise BCa over items, or
    over clusters; clusters of one item each are none. Clustered binary scores without any change
    would give a bootstrap interval of width 0: they get Tango's with one pair per cluster.
    `name`: SUITE.METRIC; it decides the draws.
    """
    n = len(base)
    if clusters is not None and len(set(clusters)) == n:
        clusters = None
    change = other - base if better == "higher" else base - other
    binary = counted(name.rpartition(".")[2], (*base.tolist(), *other.tolist()))
    units = len(set(clusters)) if clusters is not None else n
    spread = float((change**2).mean())
    difference = float(change.mean())
    if binary and (clusters is None or spread == 0.0):
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        low, high = (float(x) for x in tango(gained, lost, units))
        return Estimate(
            n=n,
            difference=difference,
            low=low,
            high=high,
            p_value=mcnemar_midp(gained, lost),
            p_below=_NORMAL.cdf(tango_score(gained, lost, units, floor)),
            spread=spread,
            test="Tango" if clusters is None else "Tango over clusters",
            binary=True,
            enough=True,
            clusters=None if clusters is None else units,
        )
    test = "BCa bootstrap over items" if clusters is None else "BCa bootstrap over clusters"
    if units < 2:
        raise SutureError(
            "E607",
            f"{name}: {n} items in one cluster give no interval",
            fix="measure more items, from several clusters",
        )
    boot = bca_mean(change, clusters, seed=seed, name=name)
    variance = float(change.var())
    design = max(1.0, boot.error**2 * n / variance) if variance > 0 else 1.0
    return Estimate(
        n=n,
        difference=difference,
        low=boot.low,
        high=boot.high,
        p_value=min(1.0, 2 * min(boot.p_at_least(0.0), boot.p_at_most(0.0))),
        p_below=boot.p_at_least(floor),
        spread=difference**2 + variance * (design if clusters is not None else 1.0),
        test=test,
        binary=binary,
        enough=n >= LEAST_ITEMS and (clusters is None or units >= LEAST_CLUSTERS),
        clusters=None if clusters is None else units,
    )


def estimate_statistic(
    base: Measurement,
    other: Measurement,
    column: str,
    *,
    better: Better,
    floor: float,
    seed: int,
    best: float | None = None,
) -> tuple[Estimate, float, float]:
    """Paired difference of a number made of sums over rows, and the number on either side.

    Both models answered the same items, so the same clusters are drawn for both and the number is
    made anew of each draw. Items that lack its columns on a side (an answer that could not be read)
    are left out on both. `best`: where a value in between is best, the difference is how much
    nearer to it the other side is, |base - best| - |other - best|, in each draw. E607: two other
    statistics, or no item that both sides have.
    """
    one, two = (_statistic(side, column) for side in (base, other))
    name = f"{base.suite}.{column}"
    if one.as_dict() != two.as_dict():
        raise SutureError(
            "E607",
            f"{name} is another statistic on each side",
            where=f"{_named(base)} and {_named(other)}",
            fix="measure both models with this version and the same task",
        )
    left = {row.item: row for row in base.rows if one.takes(row)}
    right = {row.item: row for row in other.rows if one.takes(row)}
    items = sorted(left.keys() & right.keys())
    clusters = [left[item].cluster or item for item in items]
    units = len(set(clusters))
    if units < 2:
        raise SutureError(
            "E607",
            f"{name}: {len(items)} items in {units} clusters on both sides give no interval",
            fix="measure more items, from several clusters",
        )
    mine = one.features([left[item] for item in items])
    theirs = one.features([right[item] for item in items])
    width, sign = mine.shape[1], 1.0 if better == "higher" else -1.0

    def change(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        was, is_now = one.value(sums[..., :width]), one.value(sums[..., width:])
        if best is not None:
            return np.abs(was - best) - np.abs(is_now - best)
        return sign * (is_now - was)

    both = np.concatenate([mine, theirs], axis=1)
    boot = resampled(change, summed(both, clusters), seed=seed, name=name)
    grouped = units < len(items)
    level, after = (float(one.value(side.sum(axis=0))) for side in (mine, theirs))
    still = boot.low == boot.high == 0.0
    if still and one.counts([*left.values(), *right.values()]):  # as of counts without any change
        low, high = (float(end) for end in tango(0, 0, units))
        unchanged = Estimate(
            n=len(items),
            difference=0.0,
            low=low,
            high=high,
            p_value=mcnemar_midp(0, 0),
            p_below=_NORMAL.cdf(tango_score(0, 0, units, floor)),
            spread=0.0,
            test="Tango over clusters" if grouped else "Tango",
            binary=True,
            enough=True,
            clusters=units if grouped else None,
        )
        return unchanged, level, after
    estimate = Estimate(
        n=len(items),
        difference=boot.estimate,
        low=boot.low,
        high=boot.high,
        p_value=min(1.0, 2 * min(boot.p_at_least(0.0), boot.p_at_most(0.0))),
        p_below=boot.p_at_least(floor),
        # per item, as a mean with this standard error would have it
        spread=boot.estimate**2 + boot.error**2 * len(items),
        test=f"BCa bootstrap over {'clusters' if grouped else 'items'}",
        binary=False,
        enough=len(items) >= LEAST_ITEMS and (not grouped or units >= LEAST_CLUSTERS),
        clusters=units if grouped else None,
    )
    return estimate, level, after


def _statistic(measurement: Measurement, column: str) -> Statistic:
    """Its own; else the mean of the rows' column."""
    if has_statistic(measurement, column):
        return Statistic.load(measurement.derived[column]["statistic"])
    return Statistic("mean", (column,))


def has_statistic(measurement: Measurement, column: str) -> bool:
    """Whether `column` is derived from sums over rows, so that two models can be paired in it."""
    return "statistic" in measurement.derived.get(column, {})


def best_of(measurement: Measurement, column: str) -> float | None:
    """The value that is best, of a metric of which neither end is."""
    best = measurement.derived.get(column, {}).get("best")
    return None if best is None else float(best)


def left_out(base: Measurement, other: Measurement, column: str) -> int:
    """Items that have what a statistic is made of on one side only."""
    statistic = _statistic(base, column)
    one, two = ({r.item for r in side.rows if statistic.takes(r)} for side in (base, other))
    return len(one ^ two)


def paired(
    base: Measurement, other: Measurement, column: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str] | None]:
    """The scores of `column` for the same items in both, and their clusters if there are any.

    An item whose judge, or under policy=drop whose answer, could not be read on a side is left out
    (`unread`). E607 when another item has the score on one side only.
    """
    gone = unread(base, other, column)
    left = {row.item: row for row in _having(base, column) if row.item not in gone}
    right = {row.item: row for row in _having(other, column) if row.item not in gone}
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        raise SutureError(
            "E607",
            f"{base.suite}.{column}: {len(odd)} items have a score on one side only",
            where=f"item '{odd[0]}'",
            why="a paired comparison needs both answers to every item",
            fix="measure both models on the same data file, with the same limit",
        )
    if gone and not left:
        raise SutureError(
            "E607",
            f"{base.suite}.{column}: no item has an answer that could be read on both sides",
            where=f"{_named(base)} and {_named(other)}",
            fix="measure both with --set policy=abstain: an answer that cannot be read is wrong",
        )
    items = sorted(left)
    names = [left[item].cluster for item in items]
    clusters = [name or item for name, item in zip(names, items, strict=True)]
    return (
        np.array([left[item].scores[column] for item in items], dtype=np.float64),
        np.array([right[item].scores[column] for item in items], dtype=np.float64),
        clusters if any(name is not None for name in names) else None,
    )


def unread(base: Measurement, other: Measurement, column: str) -> set[str]:
    """Items without `column` on a side because the judge's words could not be read there: their
    `COLUMN_unparsed` is 1 (for `grade_turn_1` and the like `grade_unparsed`); or because the policy
    drops answers that cannot be read, as `left_out` counts them of other statistics."""
    mark = f"{column.partition('_turn_')[0]}_unparsed"
    rows = (*base.rows, *other.rows)
    if drops(base) and drops(other):
        one, two = ({row.item for row in _having(side, column)} for side in (base, other))
        return one ^ two
    return {row.item for row in rows if column not in row.scores and row.scores.get(mark) == 1.0}


def drops(measurement: Measurement) -> bool:
    """Whether answers that could not be read have no row (`policy=drop`)."""
    return (measurement.data.get("options") or {}).get("policy") == "drop"


def _having(measurement: Measurement, column: str) -> list[Row]:
    return [row for row in measurement.rows if column in row.scores]


def check_pairable(base: Measurement, other: Measurement) -> None:
    """Refuse (E607) measurements of other items, or of the same ones asked another way."""
    where = f"{_named(base)} and {_named(other)}"
    if base.data.get("sha256") != other.data.get("sha256"):
        raise SutureError(
            "E607",
            f"{base.suite}: the two measurements differ in data",
            where=where,
            why="the difference would mix the models with what they were asked",
            fix="measure both models on the same data file, with the same limit and options",
        )
    declared = [one for one in (base, other) if one.decoding.get("declared")]
    if len(declared) == 1:
        raise SutureError(
            "E607",
            f"{base.suite}: one side was declared: its replies or scores were made elsewhere",
            where=where,
            why=f"nothing says how {_named(declared[0])} was asked, so the difference would mix "
            "the models with the way they were asked",
            fix="measure both models here, or make both sides' replies elsewhere in the same way",
        )
    for what, one, two, fix in (
        (
            "chat template",
            base.template.get("fingerprint"),
            other.template.get("fingerprint"),
            "give the same --chat-template to both",
        ),
        (
            "decoding",
            _settings(base),
            _settings(other),
            "give both the same --max-new-tokens and the same options with --set",
        ),
        (
            "scorer",
            base.scorer,
            other.scorer,
            "score both with the same phrases and judge: suture score FILE -o FILE --judge ...",
        ),
    ):
        if what == "chat template" and any(
            side.template.get("elsewhere") for side in (base, other)
        ):
            continue  # an address puts its own template around the same messages
        if one != two:
            raise SutureError(
                "E607",
                f"{base.suite}: the two measurements differ in {what}{_apart(one, two)}",
                where=where,
                why="the difference would mix the models with the way they were asked",
                fix=fix,
            )
    if {row.item for row in base.rows} != {row.item for row in other.rows}:
        raise SutureError(
            "E607",
            f"{base.suite}: the two measurements hold other items",
            where=where,
            fix="measure both models on the same data file, with the same limit",
        )


def _settings(measurement: Measurement) -> dict[str, object]:
    """How the model was asked; options of which none changes that are none."""
    return {key: value for key, value in measurement.decoding.items() if value != {}}


def _named(measurement: Measurement) -> str:
    """The file of a measurement, else its model's folder."""
    return measurement.file or str(measurement.model.get("path", "a measurement"))


def _apart(one: object, two: object) -> str:
    """The settings that differ, where there are any to be told."""
    if not isinstance(one, dict) or not isinstance(two, dict):
        return ": only one side names one" if None in (one, two) else ""
    keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
    told = [f"{key} {one.get(key)} and {two.get(key)}" for key in keys if "sha256" not in key]
    return f" ({', '.join(told)})" if told else ""
