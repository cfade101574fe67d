"""Matrix products by the faster of two libraries.

On a CPU torch multiplies float32 matrices with MKL, which on AMD processors leaves half of the
arithmetic units idle; oneDNN, which torch ships too, uses them (measured: twice as fast for forward
and both gradients). Its product is reached through an operator that torch's own compiler uses. It
is taken for plain float32 matrices on a CPU, and everything else goes the usual way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from suture.lazy import torch

Product = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
_PIECE = 1 << 18  # numbers: 1 MiB of float32


def product_for(x: torch.Tensor, weight: torch.Tensor) -> Product:
    """The function (x, w) → x wᵀ, n x i and o x i to n x o, for matrices like these: any strides,
    outside autograd, none of them empty."""
    return _by_onednn if has_onednn(x, weight) else _by_torch


def _by_onednn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return made


def _by_torch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.T


def has_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN's product takes these."""
    return (
        x.device.type == "cpu" == weight.device.type
        and x.dtype == torch.float32 == weight.dtype
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(torch.nn.Linear):
    """torch's own layer, its tensors and numbers to rounding, with the faster product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """... x i → ... x o."""
        if not (input.numel() and has_onednn(input, self.weight)):
            return super().forward(input)
        flat = input.reshape(-1, input.shape[-1])
        y: torch.Tensor = _Product.apply(flat, self.weight)  # type: ignore[no-untyped-call]
        y = y.view(*input.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class _Product(torch.autograd.Function):
    """x wᵀ and its two gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> Any:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,), (x, weight) = grads, ctx.saved_tensors
        dx = _by_onednn(g, weight.T) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dx, None
        # gᵀ x, o x i: oneDNN is faster with the smaller side first
        few = g.shape[1] <= x.shape[1]
        return dx, _by_onednn(g.T, x.T) if few else _by_onednn(x.T, g.T).T


def gradient_into(out: torch.Tensor, g: torch.Tensor, x: torch.Tensor, product: Product) -> None:
    """gᵀ x, n x o and n x i to o x i, into `out`: in pieces that stay in the cache instead of fresh
    memory each."""
    g, x = g.T, x.T
    pieces = -(-out.numel() // _PIECE)
    if pieces == 1:
        out.copy_(product(g, x))
        return
    rows = -(-len(out) // pieces)
    for start in range(0, len(out), rows):
        out[start : start + rows] = product(g[start : start + rows], x)
