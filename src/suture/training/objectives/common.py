"""What objectives share: the loss of every token, the model before training, rows for build."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suture.lazy import torch
from suture.training.loop import TrainConfig, hidden_states

if TYPE_CHECKING:
    from pathlib import Path

    from suture.data import Pair
    from suture.inference import LoadedModel
    from suture.training.batches import Batch, Example


@dataclass(frozen=True)
class Material:
    """What an objective may be built from, before the first step.

    `model`: what is trained, an adapter on top included. `rows` and `examples`: the training rows
    and what they became (rows that are too long left out of both). `retain`: rows whose behaviour
    is to be kept, for objectives that hold something fixed. `max_length`: tokens of an example at
    most. `folder`: where an objective may keep what it makes once, so that a killed run finds it
    again; None: nowhere.
    """

    lm: LoadedModel
    model: Any
    rows: Sequence[Pair]
    examples: Sequence[Example]
    retain: Sequence[Pair]
    train: TrainConfig
    max_length: int = 1024
    folder: Path | None = None


def token_nll(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """−log p of every labelled token, and the row each stands in: both (tokens,), float32, int64.

    A token is predicted from the position before it; logits are formed only where one counts.
    """
    targets = batch.labels[:, 1:]
    counts = targets != -100
    logits = model.get_output_embeddings()(hidden_states(model, batch)[:, :-1][counts])
    nll = torch.nn.functional.cross_entropy(logits.float(), targets[counts], reduction="none")
    return nll, counts.nonzero()[:, 0]


def sequence_nll(model: Any, batch: Batch) -> torch.Tensor:
    """−log p(response | prompt) of every row, summed over its labelled tokens: (rows,)."""
    nll, row = token_nll(model, batch)
    return nll.new_zeros(len(batch.ids)).index_add(0, row, nll)


def row_ids(batch: Batch) -> list[tuple[int, ...]]:
    """The ids of every row without its padding: what a row is known by."""
    lengths = batch.attend.sum(1).tolist()
    return [tuple(ids[:length]) for ids, length in zip(batch.ids.tolist(), lengths, strict=True)]


class Frozen:
    """The model as it is now, whatever training does to it later.

    Under an adapter that is the model with the adapter switched off; otherwise a copy, which takes
    the model's memory a second time.
    """

    def __init__(self, model: Any) -> None:
        self._adapted = model if hasattr(model, "disable_adapter") else None
        self._copy = None if self._adapted else copy.deepcopy(model).requires_grad_(False).eval()

    @contextmanager
    def now(self) -> Iterator[Any]:
        """The frozen model, without gradients."""
        with torch.no_grad():
            if self._adapted is None:
                yield self._copy
            else:
                with self._adapted.disable_adapter():
                    yield self._adapted


@contextmanager
def computing(model: Any, config: TrainConfig) -> Iterator[torch.device]:
    """The precision in which the loop runs an objective; gives the model's device."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.compute == "bfloat16"):
        yield device
