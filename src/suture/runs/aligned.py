"""Architectures at equal pre-training: at equal dev loss, and at equal steps.

CEA (arXiv 2403.02436, section 9) compares models whose language-modelling loss on held-out text is
the same, since a model that has learnt more is better at everything. Between two checkpoints values
are interpolated in the dev loss (inferred: the paper takes checkpoints of similar performance and
states no tolerance). Strictly aligned comparisons are at equal steps.

A run is one architecture under one seed. Runs of a seed saw the same blocks in the same order, so
differences are taken by seed; their interval is Student's over seeds, which is wide for three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from suture.errors import SutureError
from suture.ledger.student import mean_interval

How = Literal["loss", "steps"]


@dataclass(frozen=True)
class Point:
    """A checkpoint: its step, its dev loss in nats, and what was measured on it."""

    step: int
    dev: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Arm:
    """The measured checkpoints of one architecture under one seed, in order of steps."""

    name: str
    seed: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Level:
    """One architecture's values at the place of comparison, by seed; `mean`: over seeds."""

    arm: str
    metric: str
    by_seed: dict[int, float]
    ends: tuple[float, float] | None

    @property
    def mean(self) -> float:
        return sum(self.by_seed.values()) / len(self.by_seed)


@dataclass(frozen=True)
class Gap:
    """An architecture less the baseline, paired by seed. `ends`: 95% interval of the mean, None
    for a single seed; `settled`: the interval leaves out 0."""

    arm: str
    against: str
    metric: str
    by_seed: dict[int, float]
    mean: float
    ends: tuple[float, float] | None
    settled: bool


@dataclass(frozen=True)
class Aligned:
    """`places`: the dev loss, or the step, at which each seed's runs were compared."""

    how: How
    baseline: str
    places: dict[int, float]
    levels: list[Level] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


def compare(runs: Sequence[Arm], *, how: How, baseline: str) -> Aligned:
    """Every architecture against `baseline`, seed by seed.

    `loss`: at the lowest dev loss that all runs of the seed reached. `steps`: after the last step
    that all runs of the seed were measured at. Metrics that a run lacks are left out for its seed.
    Errors: E953 no baseline, or a seed without it; E954 runs that share no loss, or no step.
    """
    seeds = sorted({run.seed for run in runs})
    for seed in seeds:
        if not any(run.seed == seed and run.name == baseline for run in runs):
            names = ", ".join(sorted({run.name for run in runs}))
            raise SutureError(
                "E953",
                f"there is no run of '{baseline}' with seed {seed}",
                why="differences are taken between runs of one seed",
                fix=f"train it, or compare with one of: {names}",
            )
    places: dict[int, float] = {}
    found: dict[tuple[str, str], dict[int, float]] = {}
    for seed in seeds:
        own = [run for run in runs if run.seed == seed]
        places[seed] = common_loss(own) if how == "loss" else float(common_step(own))
        for run in own:
            at = at_loss(run, places[seed]) if how == "loss" else at_step(run, int(places[seed]))
            for metric, value in at.items():
                found.setdefault((run.name, metric), {})[seed] = value
    levels = [
        Level(arm, metric, by_seed, interval(list(by_seed.values())))
        for (arm, metric), by_seed in found.items()
    ]
    gaps = []
    for (arm, metric), by_seed in found.items():
        base = found.get((baseline, metric), {})
        both = {seed: by_seed[seed] - base[seed] for seed in by_seed if seed in base}
        if arm != baseline and both:
            ends = interval(list(both.values()))
            settled = ends is not None and not ends[0] <= 0 <= ends[1]
            mean = sum(both.values()) / len(both)
            gaps.append(Gap(arm, baseline, metric, both, mean, ends, settled))
    return Aligned(how, baseline, places, levels, gaps)


def common_loss(runs: Sequence[Arm]) -> float:
    """The lowest dev loss that every run reached: the best of the one that came least far.

    Error E954: one of them never was as high, so that it has no checkpoint there.
    """
    reached = max(min(point.dev for point in run.points) for run in runs)
    for run in runs:
        if max(point.dev for point in run.points) < reached:
            raise _apart(run, f"a dev loss of {reached:.4f}", "measure earlier checkpoints of it")
    return reached


def common_step(runs: Sequence[Arm]) -> int:
    """The last step that every run was measured at. Error E954: there is none."""
    shared = set.intersection(*({point.step for point in run.points} for run in runs))
    if not shared:
        raise _apart(runs[0], "a step that others have", "keep checkpoints after the same steps")
    return max(shared)


def at_loss(run: Arm, dev: float) -> dict[str, float]:
    """The run's values where its dev loss last came down to `dev`, linear between checkpoints.

    Only metrics that both of the two checkpoints have. Error E954: it never came down to it.
    """
    points = sorted(run.points, key=lambda point: point.step)
    for before, after in reversed(list(pairwise(points))):
        if after.dev == dev:
            return dict(after.values)
        if before.dev >= dev >= after.dev:
            wide = before.dev - after.dev
            share = (before.dev - dev) / wide
            return {
                name: (1 - share) * before.values[name] + share * value
                for name, value in after.values.items()
                if name in before.values
            }
    exact = [point for point in points if point.dev == dev]
    if exact:
        return dict(exact[-1].values)
    raise _apart(run, f"a dev loss of {dev:.4f}", "train it longer, or measure earlier checkpoints")


def at_step(run: Arm, step: int) -> dict[str, float]:
    """The run's values after `step`. Error E954: it was not measured there."""
    for point in run.points:
        if point.step == step:
            return dict(point.values)
    raise _apart(run, f"step {step}", "measure it there")


def bracketing(dev: Sequence[tuple[int, float]], loss: float) -> tuple[int, ...]:
    """The steps of the checkpoints that `at_loss` would take: one or two of (step, dev loss).

    So that only these need to be measured. Empty if the dev loss never came down to `loss`.
    """
    points = sorted(dev)
    for before, after in reversed(list(pairwise(points))):
        if after[1] == loss:
            return (after[0],)
        if before[1] >= loss >= after[1]:
            return (before[0], after[0])
    return tuple(step for step, value in points if value == loss)[-1:]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95% interval of the mean; None for fewer than two values."""
    return mean_interval(values) if len(values) > 1 else None


def _apart(run: Arm, where: str, fix: str) -> SutureError:
    return SutureError(
        "E954",
        f"the run '{run.name}' with seed {run.seed} has nothing measured at {where}",
        fix=fix,
    )
