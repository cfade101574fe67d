"""How long a training goes on, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from suture.training.batches import epoch_steps

if TYPE_CHECKING:
    from suture.training.loop import TrainConfig


def resolved(config: TrainConfig, lengths: Sequence[int]) -> TrainConfig:
    """`config` with `steps` and `warmup` as numbers of optimiser steps.

    `lengths`: tokens of every row. Where steps are cut by tokens, epochs differ a little in length,
    so all of them are counted.
    """
    changes: dict[str, int] = {}
    if config.warmup == "epoch":
        changes["warmup"] = steps_of(config, lengths, 1)
    if config.epochs is not None:
        changes["steps"] = steps_of(config, lengths, config.epochs)
    return config.model_copy(update=changes)


def steps_of(config: TrainConfig, lengths: Sequence[int], epochs: int) -> int:
    """Optimiser steps of the first `epochs` passes over rows of these lengths."""
    if config.batch_rows is not None:
        return epochs * math.ceil(len(lengths) / config.batch_rows)
    found = (
        epoch_steps(
            lengths, batch_tokens=config.batch_tokens, batch_rows=None,
            accumulate=config.accumulate, seed=config.seed, epoch=epoch,
        )
        for epoch in range(epochs)
    )  # fmt: skip
    return sum(len(steps) for steps in found)


def planned(config: TrainConfig, lengths: Sequence[int]) -> tuple[int, int]:
    """Optimiser steps on rows of these lengths, and the tokens they take at most, about."""
    steps = resolved(config, lengths).steps
    assert steps is not None
    if config.batch_rows is None:
        return steps, steps * config.accumulate * config.batch_tokens
    rows = min(config.batch_rows, len(lengths))
    return steps, round(steps * rows * sum(lengths) / len(lengths))


def rate(config: TrainConfig, step: int) -> float:
    """Share of the peak learning rate at `step`: warm-up, then the schedule; `config` resolved."""
    steps, warmup = config.steps, config.warmup
    assert steps is not None, "not resolved"
    assert warmup != "epoch", "not resolved"
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    fall = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0 - done
    return config.final_share + (1 - config.final_share) * fall
