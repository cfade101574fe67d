"""Training models of transformers on short rows on a CPU: attention written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from suture.lazy import torch

Attention = Callable[..., tuple["torch.Tensor", None]]
_KNOWN = {"scaling", "is_causal", "dropout", "sliding_window", "position_ids", "use_cache"}


@contextmanager
def quick_attention() -> Iterator[None]:
    """While it lasts, what transformers calls `sdpa` is `suture.models.fused` on short rows, and
    itself everywhere else."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    fused = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = partial(_attention, fused)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = fused


def _attention(
    fused: Attention,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' interface; the rows come back as batch x positions x heads x width."""
    from suture.models.fused import attention, is_short

    unusual = any(value is not None for name, value in others.items() if name not in _KNOWN)
    added = attention_mask is not None and attention_mask.dtype != torch.bool
    if unusual or added or others.get("dropout") or not is_short(key):
        return fused(module, query, key, value, attention_mask, **others)
    causal = others.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    groups = query.shape[1] // key.shape[1]  # of queries, to one head of keys
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    made = attention(
        query, key, value, attention_mask,
        causal=bool(causal) and attention_mask is None and query.shape[2] > 1,
        scale=others.get("scaling"),
    )  # fmt: skip
    return made.transpose(1, 2).contiguous(), None
