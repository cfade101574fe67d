"""Architectures at equal pre-training: at equal dev loss, and at equal steps.

CEA (arXiv 2403.02436, section 9) compares models whose language-modelling loss on held-out text is
the same, since a model that has learnt more is better at everything. Between two checkpoints values
are interpolated in the dev loss (inferred: the paper takes checkpoints of similar performance and
states no tolerance). Strictly aligned comparisons are at equal steps.

A run is one architecture under one seed. Runs of a seed saw the same blocks in the same order, so
differences are taken by seed; their interval is Student's over seeds, which is wide for three. One
seed has no interval, and nothing can be concluded from it about architectures.

    arms = read_arms(sorted(Path("runs/base").glob("*.steps")), sorted(Path("out").glob("*.json")))
    print("\\n".join(table(compare(arms, how="loss", baseline="wide"))))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar, get_args

from suture.checkpoint import read_json
from suture.errors import SutureError
from suture.ledger import Measurement
from suture.ledger.student import mean_interval
from suture.patch import open_model
from suture.progress import track
from suture.training.pretrain import TRAINED_ON
from suture.training.record import Record

How = Literal["loss", "steps"]
K = TypeVar("K")


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


def read_arms(runs: Sequence[Path], files: Sequence[Path]) -> list[Arm]:
    """The runs in the folders OUT.steps, with what measurement files say of their checkpoints.

    A file belongs to the checkpoints whose weights it names. An arm is called as its output, less
    the seed: the run `cea-0` with seed 0 is `cea`. Metrics: as `combined`, each kind the data's
    name. Error E938: a folder is no run's, a file is of none of these checkpoints, or runs were
    trained on other texts.
    """
    dev: dict[Path, dict[int, float]] = {}
    by_weights: dict[str, list[tuple[Path, int]]] = {}
    texts: dict[str, Path] = {}
    for run in track(runs, "checkpoints"):
        if not (run / "run.json").is_file():
            raise _no_runs("this is no folder of a run", "give OUT.steps, which training made", run)
        dev[run] = dict(Record(run / "record.jsonl").curve("dev"))
        for step in dev[run]:
            if (folder := run / f"step-{step:06d}").is_dir():
                if (folder / TRAINED_ON).is_file():
                    texts.setdefault(read_json(folder / TRAINED_ON)["text"], run)
                by_weights.setdefault(open_model(folder).fingerprint(), []).append((run, step))
    if len(texts) > 1:
        names = " and ".join(run.name for run in texts.values())
        raise _no_runs("the runs were trained on other texts", "compare runs of one text", names)
    found: dict[tuple[Path, int], list[tuple[str, Mapping[str, float]]]] = {}
    for file in dict.fromkeys(files):
        one = Measurement.load(file)
        places = by_weights.get(str(one.model.get("fingerprint")))
        if places is None:
            raise _no_runs(
                "what was measured is no checkpoint of these runs", "give its run, or leave it out",
                file,
            )  # fmt: skip
        for place in places:
            found.setdefault(place, []).append((str(one.data.get("name")), one.metrics))
    values = combined(found)
    arms = []
    for run, losses in dev.items():
        seed = int(read_json(run / "run.json")["seed"])
        points = tuple(
            Point(step, loss, values[run, step])
            for step, loss in losses.items()
            if (run, step) in values
        )
        arms.append(Arm(run.name.removesuffix(".steps").removesuffix(f"-{seed}"), seed, points))
    return arms


def combined(
    found: Mapping[K, Sequence[tuple[str, Mapping[str, float]]]],
) -> dict[K, dict[str, float]]:
    """By checkpoint, the metrics of all its measurements (kind, metrics).

    A metric of several kinds (tasks) or of one measured several times (seeds of a fine-tuning) is
    the mean over these, and `METRIC.KIND` each kind's own mean. A checkpoint that lacks one that
    another has does not have the metric: means over other tasks do not compare.
    """
    kinds: dict[str, Counter[str]] = {}
    for measured in found.values():
        for metric in {name for _, metrics in measured for name in metrics}:
            here = Counter(kind for kind, metrics in measured if metric in metrics)
            kinds[metric] = kinds.get(metric, Counter()) | here
    values: dict[K, dict[str, float]] = {}
    for place, measured in found.items():
        values[place] = {}
        for metric, asked in kinds.items():
            by_kind: dict[str, list[float]] = {}
            for kind, metrics in measured:
                if metric in metrics:
                    by_kind.setdefault(kind, []).append(metrics[metric])
            means = {
                kind: sum(some) / len(some)
                for kind, some in by_kind.items()
                if len(some) == asked[kind]
            }
            if len(means) == len(asked):
                values[place][metric] = sum(means.values()) / len(means)
            if len(asked) > 1:
                values[place] |= {f"{metric}.{kind}": value for kind, value in means.items()}
    return values


def compare(runs: Sequence[Arm], *, how: How, baseline: str) -> Aligned:
    """Every architecture against `baseline`, seed by seed.

    `loss`: at the lowest dev loss that all runs of the seed reached. `steps`: after the last step
    that all runs of the seed were measured at. Metrics that a run lacks are left out for its seed.
    Errors: E938 no runs, two of one name and seed, one without a measured checkpoint, or another
    `how`; E953 no baseline, or a seed without it; E954 runs that share no loss, or no step.
    """
    _check(runs, how)
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


def table(found: Aligned, shown: Mapping[str, str] | None = None) -> list[str]:
    """Markdown: levels per architecture, each with its difference to the baseline.

    `shown`: metrics and their headings; default all. A value over fewer seeds than the rest says
    so.
    """
    shown = shown or {one.metric: one.metric for one in found.levels}
    places = ", ".join(
        f"{value:.3f}" if found.how == "loss" else f"{value:.0f}" for value in found.places.values()
    )
    seeds = len(found.places)
    head = "equal dev loss" if found.how == "loss" else "equal steps"
    metrics = [name for name in shown if any(one.metric == name for one in found.levels)]
    lines = [
        f"At {head} ({places} by seed, {seeds} seeds); in brackets the difference to "
        f"{found.baseline} with its 95% interval over seeds, bold where it leaves out 0:"
        if seeds > 1
        else f"At {head} ({places}, one seed); in brackets the difference to {found.baseline}, "
        "which has no interval: other seeds may turn it round.",
        "",
        "| architecture | " + " | ".join(shown[name] for name in metrics) + " |",
        "|---|" + "---|" * len(metrics),
    ]
    for arm in dict.fromkeys(one.arm for one in found.levels):
        cells = []
        for name in metrics:
            here = [one for one in found.levels if (one.arm, one.metric) == (arm, name)]
            gap = [one for one in found.gaps if (one.arm, one.metric) == (arm, name)]
            cell = f"{here[0].mean:.3f}" if here else "–"
            if gap and gap[0].ends is not None:
                low, high = gap[0].ends
                told = f"{gap[0].mean:+.3f}, {low:+.3f} to {high:+.3f}"
                cell += f" (**{told}**)" if gap[0].settled else f" ({told})"
            elif gap:
                cell += f" ({gap[0].mean:+.3f})"
            if here and len(here[0].by_seed) < seeds:
                cell += f", {len(here[0].by_seed)} of {seeds} seeds"
            cells.append(cell.replace("-", "−"))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return [*lines, ""]


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


def _check(runs: Sequence[Arm], how: str) -> None:
    """Error E938: what cannot be compared at all."""
    if how not in get_args(How):
        raise _no_runs(f"nothing is compared at equal '{how}'", 'use how="loss" or how="steps"')
    if not runs:
        raise _no_runs("there are no runs to compare", "give at least those of the baseline")
    (run, count), *_ = Counter((run.name, run.seed) for run in runs).most_common(1)
    if count > 1:
        raise _no_runs(
            f"{count} runs are called '{run[0]}' and have seed {run[1]}", "leave all but one out"
        )
    for one in runs:
        if not one.points:
            raise _no_runs(
                f"nothing was measured on the run '{one.name}' with seed {one.seed}",
                "measure its checkpoints, or leave it out",
            )


def _no_runs(what: str, fix: str, where: Path | str | None = None) -> SutureError:
    return SutureError("E938", what, where=None if where is None else str(where), fix=fix)


def _apart(run: Arm, where: str, fix: str) -> SutureError:
    return SutureError(
        "E954",
        f"the run '{run.name}' with seed {run.seed} has nothing measured at {where}",
        fix=fix,
    )
