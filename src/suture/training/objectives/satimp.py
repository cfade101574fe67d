"""SatImp: ascent weighted by saturation and importance (Yang et al., arXiv 2505.11953).

    L = −γ · mean_i p_i^β1 (1 − p_i)^β2 · CE_i + λ · L_retain(D_r)

p_i = p_θ(y_i | x, y_<i) and CE_i = −log p_i; the weights carry no gradient. p^β1 spares what is
forgotten already (saturation), (1 − p)^β2 what is certain, such as the rest of a word (importance).
β1 5, β2 1; OpenUnlearning's runs add RT with weight 0.1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from suture.lazy import torch
from suture.training.objectives.ascents import WeightedAscent


class SatImp(WeightedAscent):
    """Make the answers less likely, most where they are neither certain nor gone."""

    name: Literal["satimp"] = "satimp"
    beta1: float = Field(5.0, ge=0, description="β1: power of a token's probability")
    beta2: float = Field(1.0, ge=0, description="β2: power of what is left to certainty")

    def of(self, nll: torch.Tensor) -> torch.Tensor:
        """The loss, γ apart, of tokens with −log p `nll`."""
        p = (-nll.detach()).exp().clamp(max=1)  # rounding may put it just above
        return -(p**self.beta1 * (1 - p) ** self.beta2 * nll).mean()
