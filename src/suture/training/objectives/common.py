"""What objectives share: the loss of every token, the model before training, rows for build."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.lazy import torch
from suture.rng import generator
from suture.training.batches import Batch, collate, epoch_plan
from suture.training.logits import answer_positions, answer_tokens, logits_at
from suture.training.loop import TrainConfig
from suture.training.short_rows import quick_attention

if TYPE_CHECKING:
    from pathlib import Path

    from suture.data import Pair
    from suture.inference import LoadedModel
    from suture.training.batches import Example


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

    A token is predicted from the position before it.
    """
    positions = answer_positions(batch)
    logits = logits_at(model, batch, positions)
    nll = torch.nn.functional.cross_entropy(logits, answer_tokens(batch), reduction="none")
    return nll, positions.nonzero()[:, 0]


def answer_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits over the vocabulary where a labelled token is predicted: (tokens, V), float32, the
    head too (see `logits_at`)."""
    return logits_at(model, batch, answer_positions(batch), exact=True)


def sequence_nll(model: Any, batch: Batch) -> torch.Tensor:
    """−log p(response | prompt) of every row, summed over its labelled tokens: (rows,)."""
    nll, row = token_nll(model, batch)
    return nll.new_zeros(len(batch.ids)).index_add(0, row, nll)


def divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """KL(before ‖ after) of log-probabilities (tokens, vocabulary), mean over tokens, in nats."""
    return (before.exp() * (before - after)).sum(-1).mean()


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


def per_row(batch: Batch) -> float:
    """The weight of a micro-batch whose loss is a mean over its rows."""
    return float(len(batch.ids))


def reference_nll(
    model: Any, examples: Sequence[Example], config: TrainConfig
) -> dict[tuple[int, ...], float]:
    """−log p(response | prompt) of every example under `model` as it is now, by the row's ids."""
    plan = epoch_plan(
        [len(e.ids) for e in examples], batch_tokens=config.batch_tokens, seed=0, epoch=0
    )
    found: dict[tuple[int, ...], float] = {}
    with torch.no_grad(), computing(model, config) as device:
        for rows in plan:
            batch = collate([examples[row] for row in rows]).to(device)
            found.update(zip(row_ids(batch), sequence_nll(model, batch).tolist(), strict=True))
    return found


def answered_with(
    material: Material, answers: Sequence[str], count: int, stream: str
) -> dict[tuple[int, ...], list[Example]]:
    """Ids of every training example → its prompt with `count` of the `answers`.

    They are drawn once, uniformly, by the training's seed and the name `stream`, so a row meets
    the same answers in every epoch. Error E930: a row without a prompt.
    """
    from suture.data import Pair
    from suture.training.recipe import encode_rows

    lm, rng = material.lm, generator(material.train.seed, stream)
    found: dict[tuple[int, ...], list[Example]] = {}
    pairs_of = zip(material.rows, material.examples, strict=True)
    for number, (row, example) in enumerate(pairs_of, start=1):
        if example.ids in found:
            continue
        if not row.prompt:
            raise SutureError(
                "E930",
                "plain text has no question that could be answered otherwise",
                where=f"row {number} of those trained on",
                fix="give questions and answers, or an objective without other answers (rkld, npo)",
            )
        texts = [answers[int(i)] for i in rng.integers(len(answers), size=count)]
        pairs = [Pair(id=row.id, prompt=row.prompt, response=text) for text in texts]
        found[example.ids] = encode_rows(
            lm.tokenizer, lm.template, pairs, max_length=material.max_length
        )
    return found


@contextmanager
def computing(model: Any, config: TrainConfig) -> Iterator[torch.device]:
    """The precision in which the loop runs an objective; gives the model's device."""
    device = next(model.parameters()).device
    mixed = torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.compute == "bfloat16")
    with quick_attention(), mixed:
        yield device
