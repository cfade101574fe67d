"""What a continual run will do, need and take, from headers and rows alone.

Steps and trainings are counted exactly; training may end sooner, where its objective says so.
Memory and disk are upper estimates, time a rough one for this machine's CPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data import AnsweredPair, read_jsonl
from suture.runs.continual_recipe import Approach, ContinualRecipe, by_category
from suture.runs.extras import extra_of
from suture.runs.plan import (
    BASE_MEMORY,
    FIXED_SECONDS,
    about,
    batch_memory,
    deriving_memory,
    existing,
    flops,
    measuring_seconds,
    memory_there,
    numel,
    shortages,
    tokens_of,
)
from suture.runs.training_plan import STATE, STEP_OVERHEAD, TRAIN_SHARE, activations
from suture.training.loop import TrainConfig
from suture.training.objectives import NextToken, ObjectiveConfig
from suture.training.schedule import planned

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource

_OTHERS = {"npo": 1.0, "gradient-ascent-kl": 5.0}  # forward passes beside the trained one
_LOADING = 3.0  # seconds to open, load and hash a model for a training or a suite


@dataclass(frozen=True)
class ApproachPlan:
    """One approach in one step: optimiser steps and tokens of all its trainings, seconds."""

    trainings: int
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class ContinualPlan:
    """The costs of a continual run. `categories`: rows of each, in order; `suites`: items."""

    recipe: str
    model: dict[str, Any]
    touched: int
    touched_parameters: int
    categories: dict[str, int]
    approaches: dict[str, ApproachPlan]
    measurements: int
    suites: dict[str, int]
    measuring_seconds: float
    peak_memory: int
    memory_there: int | None
    disk: int
    disk_free: int
    seconds: float
    warnings: list[str]
    extras: dict[str, str] = field(default_factory=dict)
    cache: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def plan_continual(recipe: ContinualRecipe, folder: str | Path = ".") -> ContinualPlan:
    """The plan of running `recipe` in `folder`: opens headers, reads rows, writes nothing."""
    from suture.methods.common import scoped_names
    from suture.patch import open_model
    from suture.suites import load_suite

    source = open_model(recipe.model.path, patches=recipe.model.patches)
    rows = read_jsonl(recipe.rows.file, AnsweredPair, limit=recipe.rows.limit)
    categories = by_category(rows, recipe.order, recipe.rows.file)
    touched = scoped_names(source, recipe.scope)
    trained = numel(source, touched)
    items, extras = {}, {}
    for label, spec in recipe.suites.items():
        suite = load_suite(spec.suite or label, spec.options)
        new = spec.max_new_tokens or suite.max_new_tokens
        items[label] = ([item.prompt for item in spec.items(label)], new)
        extras[label] = extra_of(label, spec, len(items[label][0]), new, source)
    speed = flops()
    lengths = [[tokens_of(r.prompt + r.response) for r in c] for c in categories.values()]
    longest = max(lengths, key=sum)
    approaches = {
        name: _approach(approach, recipe, source, longest, speed)
        for name, approach in recipe.approaches.items()
    }
    steps = len(categories)
    measurements = 1 + steps * len(approaches)
    once = measuring_seconds(source, items, speed, extras) + _LOADING
    seconds = FIXED_SECONDS + measurements * once
    seconds += steps * sum(one.seconds for one in approaches.values())
    memory = max(
        _training_memory(recipe, source, trained),
        BASE_MEMORY + 4 * numel(source, source.tensors) + batch_memory(source)
        + max(one.memory for one in extras.values()),
        *(
            deriving_memory(one.safe_patching, source, {"harmful": list(rows)})
            for one in recipe.approaches.values()
            if one.safe_patching is not None
        ),
    )  # fmt: skip
    patch = sum(source.tensors[name].nbytes * 9 // 8 for name in touched)
    patches = sum(3 if one.safe_patching else 1 for one in recipe.approaches.values())
    disk = steps * patches * patch + 2 * STATE * trained + 32 * 2**20
    free, there = shutil.disk_usage(existing(Path(folder))).free, memory_there()
    warnings = shortages(memory, there, disk, free)
    return ContinualPlan(
        recipe=recipe.name,
        model=about(source),
        touched=len(touched),
        touched_parameters=trained,
        categories={name: len(found) for name, found in categories.items()},
        approaches=approaches,
        measurements=measurements,
        suites={label: len(prompts) for label, (prompts, _) in items.items()},
        measuring_seconds=round(once, 1),
        peak_memory=memory,
        memory_there=there,
        disk=disk,
        disk_free=free,
        seconds=round(seconds, 1),
        warnings=warnings,
        extras={label: one.told for label, one in extras.items() if one.told},
        cache=None if recipe.cache is None else str(recipe.cache),
    )


def _approach(
    approach: Approach,
    recipe: ContinualRecipe,
    source: TensorSource,
    rows: Sequence[int],
    speed: float,
) -> ApproachPlan:
    """One step of it; `rows`: tokens of every row of the largest category."""
    settings = approach.train or recipe.train
    trainings: list[tuple[ObjectiveConfig, TrainConfig]]
    if approach.objective is not None:
        trainings = [(approach.objective, settings)]
    else:
        descent = approach.descent or settings
        trainings = [(approach.ascent, settings), (NextToken(), descent)]
    parameters = numel(source, source.tensors)
    seconds = 0.0
    costs = [planned(config, rows) for _, config in trainings]
    for (objective, _), (steps, tokens) in zip(trainings, costs, strict=True):
        passes = 3.0 + _OTHERS.get(objective.name, 0.0)  # forward, and backward at twice its cost
        seconds += 2.0 * parameters * passes * tokens / (speed * TRAIN_SHARE)
        seconds += steps * STEP_OVERHEAD + _LOADING
    if approach.safe_patching is not None:  # importance at both ends, row by row
        seconds += 2 * 6.0 * parameters * sum(rows) / (speed * TRAIN_SHARE) + _LOADING
    return ApproachPlan(
        trainings=len(trainings),
        steps=sum(steps for steps, _ in costs),
        tokens=sum(tokens for _, tokens in costs),
        seconds=round(seconds, 1),
    )


def _training_memory(recipe: ContinualRecipe, source: TensorSource, trained: int) -> int:
    """Weights in float32, gradients and two moments of what is trained, a batch's activations."""
    configs = [recipe.train]
    for one in recipe.approaches.values():
        configs += [config for config in (one.train, one.descent) if config is not None]
    tokens = max(config.batch_tokens for config in configs)
    held = 4 * numel(source, source.tensors) + STATE * trained
    return BASE_MEMORY + held + activations(source, tokens)
