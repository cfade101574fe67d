"""Next-token cross-entropy: ordinary fine-tuning; on harmful rows, SafePatching's descent."""

from __future__ import annotations

from typing import Literal

from suture.config import FrozenConfig
from suture.training.loop import Objective, next_token_loss
from suture.training.objectives.common import Material


class NextToken(FrozenConfig):
    """Mean −log p over the tokens that count."""

    name: Literal["next-token"] = "next-token"

    @property
    def needs_retain(self) -> bool:
        return False

    def build(self, material: Material) -> Objective:
        """The loss of a batch."""
        return next_token_loss
