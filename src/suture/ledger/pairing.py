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


def paired(
    base: Measurement, other: Measurement, column: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str] | None]:
    """The scores of `column` for the same items in both, and their clusters if there are any.

    An item whose judge could not be read on either side is left out (`unread`). E607 when another
    item has the score on one side only.
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
    `COLUMN_unparsed` is 1 (for `grade_turn_1` and the like `grade_unparsed`)."""
    mark = f"{column.partition('_turn_')[0]}_unparsed"
    rows = (*base.rows, *other.rows)
    return {row.item for row in rows if column not in row.scores and row.scores.get(mark) == 1.0}


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
            base.decoding,
            other.decoding,
            "give both the same --max-new-tokens and the same options with --set",
        ),
        (
            "scorer",
            base.scorer,
            other.scorer,
            "score both with the same phrases and judge: suture score FILE -o FILE --judge ...",
        ),
    ):
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
