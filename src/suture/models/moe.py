"""A mixture of experts where a feed-forward network could stand: router, experts, weighted sum."""

from __future__ import annotations

from suture.lazy import torch
from suture.models.architecture import Architecture
from suture.models.experts import Experts
from suture.models.outputs import Notes
from suture.models.router import Router


class MoE(torch.nn.Module):
    """Every token to its k best experts; none is dropped."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.router = Router(arch)
        self.experts = Experts(arch)

    def forward(self, x: torch.Tensor, notes: Notes) -> torch.Tensor:
        """... x d → the same."""
        tokens = x.reshape(-1, x.shape[-1])
        chosen = self.router(tokens, notes)
        made: torch.Tensor = self.experts(tokens, chosen.experts, chosen.weights)
        return made.view_as(x)
