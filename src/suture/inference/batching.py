"""Token sequences to padded batches: of nearly equal length, left-padded, bounded by a budget.

Left padding puts the last token of every row into the last column, so one slice serves prompts
that are continued, options that are compared and replies that are scored. Rows of one length need
no padding and then no mask, which is the fast path of attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from suture.lazy import torch

MAX_ROWS = 128
MAX_TOKENS = 8192  # rows x width of one forward pass


@dataclass(frozen=True)
class Batch:
    """`rows`: indices into the sequences; `ids`: rows x width; `mask`: 1 for a token, 0 for
    padding, None when nothing is padded; `positions`: of the tokens in their own sequence.
    """

    rows: list[int]
    ids: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor

    @property
    def kept(self) -> torch.Tensor:
        """Boolean rows x width: the tokens that are not padding."""
        return torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask > 0


def plan_rows(
    lengths: Sequence[int],
    *,
    extra: int = 0,
    max_rows: int = MAX_ROWS,
    max_tokens: int = MAX_TOKENS,
) -> list[list[int]]:
    """Row indices per batch, longest first, so that what does not fit in memory fails at once.

    `extra`: tokens that each row will still grow by. A row longer than the budget goes alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    plan: list[list[int]] = []
    at = 0
    while at < len(order):
        size = max(1, min(max_rows, max_tokens // max(1, lengths[order[at]] + extra)))
        plan.append(order[at : at + size])
        at += size
    return plan


def pad_left(
    sequences: Sequence[Sequence[int]],
    rows: list[int],
    *,
    pad: int,
    device: torch.device,
    width: int | None = None,
) -> Batch:
    """The chosen rows as one batch; `width` pads further than the longest of them."""
    lengths = [len(sequences[i]) for i in rows]
    width = max(lengths) if width is None else max(width, *lengths)
    ids = torch.tensor(
        [[pad] * (width - n) + list(sequences[i]) for i, n in zip(rows, lengths, strict=True)],
        dtype=torch.long,
    )
    starts = torch.tensor([width - n for n in lengths]).unsqueeze(1)
    columns = torch.arange(width).unsqueeze(0)
    mask = (columns >= starts).long().to(device) if min(lengths) < width else None
    positions = (columns - starts).clamp_(min=0)
    return Batch(rows, ids.to(device), mask, positions.to(device))


def batches(
    sequences: Sequence[Sequence[int]],
    *,
    pad: int,
    device: torch.device,
    extra: int = 0,
    max_rows: int = MAX_ROWS,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[Batch]:
    """Every sequence once, in the order of `plan_rows`; callers put results back by `rows`."""
    lengths = [len(s) for s in sequences]
    for rows in plan_rows(lengths, extra=extra, max_rows=max_rows, max_tokens=max_tokens):
        yield pad_left(sequences, rows, pad=pad, device=device)
