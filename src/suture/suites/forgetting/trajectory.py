"""Readings of a trajectory: one measurement after each epoch, in order.

The published rule takes the epoch at which forget quality first peaks within ten, which chooses on
the number that is then reported; so a fixed epoch is read beside it, and the whole trajectory is
kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from suture.errors import SutureError
from suture.ledger import Measurement


@dataclass(frozen=True)
class Reading:
    """One epoch of a trajectory. `epoch`: from 1; `rule`: how it was chosen."""

    epoch: int
    rule: str
    measurement: Measurement

    @property
    def metrics(self) -> dict[str, float]:
        return self.measurement.metrics


def first_peak(
    measurements: Sequence[Measurement], metric: str = "forget_quality", *, within: int = 10
) -> Reading:
    """The earliest epoch that has the best value of `metric` among the first `within`.

    Best is the largest, or the smallest where lower is better. That "first peaks" means the
    earliest of the highest, and not the first local maximum, is our reading (inferred). Errors:
    E557 no measurement, or one without the metric.
    """
    values = trajectory(measurements, metric)[:within]
    lower = measurements[0].better.get(metric) == "lower"
    best = min(values) if lower else max(values)
    at = values.index(best)
    return Reading(at + 1, f"first peak of {metric} within {within}", measurements[at])


def fixed_epoch(measurements: Sequence[Measurement], epoch: int) -> Reading:
    """The measurement after `epoch` epochs, counted from 1 (E557: there is none)."""
    if not 1 <= epoch <= len(measurements):
        raise SutureError(
            "E557",
            f"there is no epoch {epoch}: the trajectory has {len(measurements)}",
            fix="choose the fixed epoch before the run, within its epochs",
        )
    return Reading(epoch, f"epoch {epoch}", measurements[epoch - 1])


def readings(
    measurements: Sequence[Measurement],
    epoch: int,
    metric: str = "forget_quality",
    *,
    within: int = 10,
) -> dict[str, Any]:
    """Both readings and the whole trajectory as JSON: `first_peak`, `fixed_epoch`, `trajectory`.

    `epoch`: the fixed one. The trajectory has every metric that all epochs have.
    """
    both = first_peak(measurements, metric, within=within), fixed_epoch(measurements, epoch)
    told = [{"epoch": r.epoch, "rule": r.rule, "metrics": r.metrics} for r in both]
    shared = [m for m in measurements[0].metrics if all(m in one.metrics for one in measurements)]
    return {
        "first_peak": told[0],
        "fixed_epoch": told[1],
        "trajectory": {name: trajectory(measurements, name) for name in shared},
    }


def trajectory(measurements: Sequence[Measurement], metric: str) -> list[float]:
    """The value of `metric` after each epoch (E557 where one has none)."""
    if not measurements:
        raise SutureError("E557", "a trajectory needs a measurement", fix="measure every epoch")
    for number, found in enumerate(measurements, 1):
        if metric not in found.metrics:
            raise SutureError(
                "E557",
                f"the measurement of epoch {number} has no '{metric}'",
                fix=f"it has: {', '.join(found.metrics)}",
            )
    return [found.metrics[metric] for found in measurements]
