"""What a model says at some positions, with gradients: the head works on these alone.

On short answers that saves most of the head's work. The model is called as a whole, so what a
family does to its logits afterwards (scales, soft caps) is done in training as it is in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from suture.lazy import torch
from suture.training.batches import Batch


def logits_at(
    model: Any, batch: Batch, chosen: torch.Tensor, *, exact: bool = False
) -> torch.Tensor:
    """Logits after every position that `chosen` (rows, width) holds: (positions, V), float32.

    `exact`: the head is computed in float32 whatever the rest runs in. Losses that compare the
    logits of two models would multiply the rounding of bfloat16 (0.125 at a logit of 16).
    """
    with _head_on(model, chosen, exact):
        output = model(input_ids=batch.ids, attention_mask=batch.attend, use_cache=False)
    logits: torch.Tensor = output.logits[0].float()
    return logits


def answer_positions(batch: Batch) -> torch.Tensor:
    """The positions after which a labelled token comes: (rows, width) bool."""
    chosen = torch.zeros_like(batch.labels, dtype=torch.bool)
    chosen[:, :-1] = batch.labels[:, 1:] != -100
    return chosen


def answer_tokens(batch: Batch) -> torch.Tensor:
    """The labelled tokens in the order of `answer_positions`: (tokens,) int64."""
    targets = batch.labels[:, 1:]
    return targets[targets != -100]


def answer_count(batch: Batch) -> float:
    """Labelled tokens: the weight of a micro-batch whose loss is a mean over them."""
    return float(len(answer_tokens(batch)))


@contextmanager
def _head_on(model: Any, chosen: torch.Tensor, exact: bool) -> Iterator[None]:
    """While this lasts the head is given the chosen positions only, as one row."""
    precise = torch.autocast(chosen.device.type, enabled=False)
    entered = False

    def choose(_: object, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal entered
        hidden = inputs[0][chosen].unsqueeze(0)
        if exact:
            precise.__enter__()  # type: ignore[no-untyped-call]
            entered = True
            hidden = hidden.float()
        return (hidden, *inputs[1:])

    def leave(*_: object) -> None:
        nonlocal entered
        if entered:
            entered = False
            precise.__exit__(None, None, None)

    head = model.get_output_embeddings()
    handles = [head.register_forward_pre_hook(choose), head.register_forward_hook(leave)]
    try:
        yield
    finally:
        leave()
        for handle in handles:
            handle.remove()
