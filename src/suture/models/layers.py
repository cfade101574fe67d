"""The parts that transform each position alone: norms, the feed-forward network, rotary tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from suture.lazy import torch
from suture.models.architecture import Architecture
from suture.models.products import Linear

Rotary = tuple["torch.Tensor", "torch.Tensor"]


def norm(arch: Architecture) -> torch.nn.Module:
    """A LayerNorm or RMSNorm over d."""
    if arch.kind_of_norm == "layer":
        return torch.nn.LayerNorm(arch.hidden_size, eps=arch.norm_eps)
    return torch.nn.RMSNorm(arch.hidden_size, eps=arch.norm_eps)


def activation(arch: Architecture) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function between two matrices."""
    functional = torch.nn.functional
    known: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "gelu": functional.gelu,
        "gelu_tanh": partial(functional.gelu, approximate="tanh"),
        "relu": functional.relu,
        "silu": functional.silu,
    }
    return known[arch.activation]


class FeedForward(torch.nn.Module):
    """fc2(act(fc1(x))), d → `width` → d."""

    def __init__(self, arch: Architecture, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(arch.hidden_size, width, bias=arch.bias)
        self.fc2 = Linear(width, arch.hidden_size, bias=arch.bias)
        self.act = activation(arch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """batch x positions x d → the same."""
        return cast("torch.Tensor", self.fc2(self.act(self.fc1(x))))


def rotary_tables(positions: torch.Tensor, arch: Architecture, dtype: torch.dtype) -> Rotary:
    """cos and sin for `positions` (batch x n), each batch x 1 x n x head width."""
    size = arch.head_size
    exponent = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
    angles = positions[:, None, :, None].float() * arch.rope_theta**-exponent
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
    """RoPE on batch x heads x n x head width (halves form); as it is without tables."""
    if rotary is None:
        return x
    first, second = x.chunk(2, dim=-1)
    return x * rotary[0] + torch.cat((-second, first), dim=-1) * rotary[1]
