"""Where a training's batches come from: rows in memory here, blocks of packed text in `packed`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from suture.training.batches import Example, Step, steps_from
from suture.training.schedule import resolved

if TYPE_CHECKING:
    from suture.training.loop import TrainConfig


class Supply(Protocol):
    """Batches whose order is a pure function of the seed and the number of the step."""

    def __len__(self) -> int: ...

    @property
    def identity(self) -> str:
        """What decides the batches besides the settings: part of a state's identity."""
        ...

    def resolved(self, config: TrainConfig) -> TrainConfig:
        """`config` with `steps` and `warmup` as numbers of optimiser steps."""
        ...

    def steps(self, config: TrainConfig, first: int) -> Iterator[Step]:
        """Endless steps, beginning at step `first` (0-based)."""
        ...


class Rows:
    """Tokenised examples. They enter a state's identity by themselves (see `run_identity`)."""

    identity = ""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def resolved(self, config: TrainConfig) -> TrainConfig:
        return resolved(config, [len(example.ids) for example in self.examples])

    def steps(self, config: TrainConfig, first: int) -> Iterator[Step]:
        return steps_from(
            self.examples, batch_tokens=config.batch_tokens, batch_rows=config.batch_rows,
            accumulate=config.accumulate, seed=config.seed, first_step=first,
        )  # fmt: skip
