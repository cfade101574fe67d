"""GradDiff: ascent on what is to be forgotten, descent on what is to be kept.

    L = −γ · CE(D_f) + α · CE(D_r)

CE is the mean of −log p over answer tokens. Source: TOFU (Maini et al., arXiv 2401.06121, "gradient
difference") and OpenUnlearning's GradDiff with an NLL retain loss. As published nothing bounds the
ascent; `cap` does, as in `gradient_ascent.py` (inferred).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.training.loop import Objective
from suture.training.objectives.common import Material
from suture.training.objectives.gradient_ascent import GradientAscent
from suture.training.objectives.retain import RetainTerm, Unlearning


class GradientDifference(FrozenConfig):
    """Make the answers less likely, and the answers of the retain rows likely."""

    name: Literal["grad-diff"] = "grad-diff"
    gamma: float = Field(1.0, gt=0, description="γ: weight of the ascent on the rows to forget")
    alpha: float = Field(1.0, gt=0, description="α: weight of the descent on retain rows")
    cap: float | None = Field(
        None,
        gt=0,
        description="nats per token above which a token is left alone; none as published",
    )

    @property
    def needs_retain(self) -> bool:
        return True

    def build(self, material: Material) -> Objective:
        """The loss of a batch, together with as many retain rows."""
        ascent = GradientAscent(cap=self.cap)
        return Unlearning(
            ascent.loss,
            RetainTerm("RT", material),
            forget_weight=self.gamma,
            retain_weight=self.alpha,
        )
