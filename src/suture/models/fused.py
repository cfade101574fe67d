"""Torch's fused attention, written out where its bfloat16 kernel is slow: short rows on a CPU.

The kernel cuts a row to blocks, and its way back is slow where rows hardly fill one: slower than
all of attention as three operations, whose n x m scores are small there (measured by
`benchmarks/short_rows.py`; that the blocks are the cause is inferred).
"""

from __future__ import annotations

from suture.lazy import torch

SHORT = 128  # positions


def is_short(k: torch.Tensor) -> bool:
    """Whether these keys, batch x heads x positions x width, are of short rows on a CPU, in what
    autocast computes in bfloat16."""
    return (
        k.device.type == "cpu"
        and k.shape[2] <= SHORT
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None, *,
    causal: bool, scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """softmax(QKᵀ scale) V, scale 1/√dh unless told; `visible` is True where a query may look.

    As with `scaled_dot_product_attention`, `causal` counts from the first key, and a query that
    sees nothing gets zero.
    """
    if not is_short(k):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=causal, scale=scale
        )
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    sees = visible
    if causal:
        sees = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if sees is not None:  # adding costs nothing on the way back, filling does
        hidden = torch.zeros_like(sees, dtype=scores.dtype)
        scores = scores + hidden.masked_fill_(~sees, torch.finfo(scores.dtype).min)
    made = torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype) @ v
    return made if visible is None else made * visible.any(-1, keepdim=True)
