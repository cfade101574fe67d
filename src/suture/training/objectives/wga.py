"""WGA: ascent weighted by how likely a token still is (Wang et al., arXiv 2502.19301).

    L = −γ · mean_i p_i^β · CE_i + λ · L_retain(D_r),    p_i = p_θ(y_i | x, y_<i),  CE_i = −log p_i

The weight p^β carries no gradient. A token that has become unlikely is left alone by itself, so
there is no cap. OpenUnlearning's runs add RT with weight 1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from suture.lazy import torch
from suture.training.objectives.ascents import WeightedAscent


class WGA(WeightedAscent):
    """Make the answers less likely, most where they are likely."""

    name: Literal["wga"] = "wga"
    beta: float = Field(
        1.0, ge=0, description="β: power of a token's probability; 0 = plain ascent"
    )

    def of(self, nll: torch.Tensor) -> torch.Tensor:
        """The loss, γ apart, of tokens with −log p `nll`."""
        weight = (-nll.detach()).exp() ** self.beta
        return -(weight * nll).mean()
