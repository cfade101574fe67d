"""Tokenised examples to padded batches, in an order that depends on the seed alone.

Rows of one batch have nearly equal length, so almost nothing is padding and attention never
crosses from one example into the next. Which rows form step `n` is a pure function of
(seed, lengths, n): a killed run resumes in the middle of an epoch with the same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from suture.lazy import np, torch
from suture.rng import generator


@dataclass(frozen=True)
class Example:
    """`ids`: token ids; `loss_from`: first position whose token enters the loss (0 = all)."""

    ids: tuple[int, ...]
    loss_from: int = 0


@dataclass(frozen=True)
class Batch:
    """`ids`, `attend`: (rows, width) int64; `labels`: ids where the loss counts, else -100."""

    ids: torch.Tensor
    attend: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        return Batch(self.ids.to(device), self.attend.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Step:
    """What one optimiser step sees: its micro-batches, and how many of them came before it.

    `epoch`: which pass over the rows it belongs to, from 0; `last`: it ends that pass.
    """

    batches: list[Batch]
    before: int
    epoch: int
    last: bool


def epoch_plan(
    lengths: Sequence[int], *, batch_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """Row numbers of every batch of one epoch; rows × longest row ≤ `batch_tokens`.

    Rows are shuffled, cut into pools of about 50 batches, sorted by length inside a pool, and
    the batches are shuffled again: close to random order, close to no padding.
    """
    rng = generator(seed, f"epoch {epoch}")
    order = rng.permutation(len(lengths))
    mean = max(1.0, float(np.mean(np.asarray(lengths))))
    pool = max(1, int(50 * batch_tokens / mean))
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        batches += _cut([int(i) for i in order[start : start + pool]], lengths, batch_tokens)
    return [batches[int(i)] for i in rng.permutation(len(batches))]


def _cut(rows: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """`rows` by length, cut where rows × longest row would pass `batch_tokens`."""
    batches: list[list[int]] = []
    batch: list[int] = []
    for row in sorted(rows, key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * max(lengths[row], 1) > batch_tokens:
            batches.append(batch)
            batch = []
        batch.append(row)
    if batch:
        batches.append(batch)
    return batches


def epoch_steps(
    lengths: Sequence[int],
    *,
    batch_tokens: int,
    batch_rows: int | None,
    accumulate: int,
    seed: int,
    epoch: int,
) -> list[list[list[int]]]:
    """Row numbers of every micro-batch of every step of one epoch.

    With `batch_rows` a step is so many rows in random order, the epoch's last one fewer, and its
    micro-batches hold rows of like length; else it is `accumulate` batches of `epoch_plan`.
    """
    if batch_rows is None:
        plan = epoch_plan(lengths, batch_tokens=batch_tokens, seed=seed, epoch=epoch)
        return [plan[i : i + accumulate] for i in range(0, len(plan), accumulate)]
    order = [int(i) for i in generator(seed, f"epoch {epoch}").permutation(len(lengths))]
    return [
        _cut(order[i : i + batch_rows], lengths, batch_tokens)
        for i in range(0, len(order), batch_rows)
    ]


def steps_from(
    examples: Sequence[Example],
    *,
    batch_tokens: int,
    batch_rows: int | None,
    accumulate: int,
    seed: int,
    first_step: int,
) -> Iterator[Step]:
    """Endless steps, beginning at `first_step` (0-based) of the seeded order."""
    lengths = [len(example.ids) for example in examples]
    number = before = 0
    for epoch in itertools.count():
        steps = epoch_steps(
            lengths, batch_tokens=batch_tokens, batch_rows=batch_rows, accumulate=accumulate,
            seed=seed, epoch=epoch,
        )  # fmt: skip
        for place, rows in enumerate(steps):
            if number >= first_step:
                batches = [collate([examples[row] for row in part]) for part in rows]
                yield Step(batches, before, epoch, place + 1 == len(steps))
            number += 1
            before += len(rows)


def batches_from(
    examples: Sequence[Example], *, batch_tokens: int, seed: int, first_step: int
) -> Iterator[Batch]:
    """Endless batches, beginning at step `first_step` (0-based) of the seeded order."""
    lengths = [len(example.ids) for example in examples]
    step = epoch = 0
    while True:
        plan = epoch_plan(lengths, batch_tokens=batch_tokens, seed=seed, epoch=epoch)
        if step + len(plan) <= first_step:
            step += len(plan)
            epoch += 1
            continue
        for rows in plan:
            if step >= first_step:
                yield collate([examples[row] for row in rows])
            step += 1
        epoch += 1


def collate(examples: Sequence[Example]) -> Batch:
    """Right-pad to the longest row."""
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    attend = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        length = len(example.ids)
        tokens = torch.tensor(example.ids, dtype=torch.int64)
        ids[row, :length] = tokens
        attend[row, :length] = 1
        labels[row, example.loss_from : length] = tokens[example.loss_from :]
    return Batch(ids, attend, labels)
