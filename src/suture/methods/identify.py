"""Identify: which entries of a delta fight safety, and which of them matter most (IRR §3).

Both questions are asked within one matrix and one block of input columns, all rows pooled; a global
threshold would be another method.
"""

from __future__ import annotations

from typing import Literal

from suture.lazy import torch

ZeroPolicy = Literal["code", "paper", "skip"]


def interfering(delta: torch.Tensor, v: torch.Tensor, policy: ZeroPolicy) -> torch.Tensor:
    """Boolean: where the delta fights the safety vector `v`.

    "code": sign(δ) ≠ sign(v), so both zero is no conflict. "paper": δ v ≤ 0, so it is. "skip": only
    opposite signs; removing a zero changes nothing and would use up quota.
    """
    signs, wanted = torch.sign(delta), torch.sign(v)
    if policy == "code":
        return signs != wanted
    return signs * wanted <= 0 if policy == "paper" else signs * wanted < 0


def most_important(
    unsafe: torch.Tensor, importance: torch.Tensor | None, removed: float
) -> torch.Tensor:
    """The top share `removed` of the entries in `unsafe` by importance, as a mask.

    int((1 − removed) · count) entries are kept, those of lowest importance; equal ones in row-major
    order. `importance` may be None when all or none are removed.
    """
    count = int(unsafe.sum())
    kept = int(round(1.0 - removed, 12) * count)
    if kept == 0:
        return unsafe.clone()
    if kept == count or importance is None:
        return torch.zeros_like(unsafe)
    order = torch.sort(importance[unsafe], stable=True).indices
    chosen = torch.ones(count, dtype=torch.bool, device=unsafe.device)
    chosen[order[:kept]] = False
    mask = torch.zeros_like(unsafe)
    mask[unsafe] = chosen
    return mask
