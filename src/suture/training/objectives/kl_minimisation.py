"""KL-min: ascent on what is to be forgotten, while the rest may not move.

    L = −γ · CE(D_f) + α · KL(p_ref ‖ p_θ)(D_r)

CE is the mean of −log p over answer tokens; the KL is forward, over the whole vocabulary, on the
answer tokens of retain rows, p_ref the model before training. Source: TOFU (Maini et al., arXiv
2401.06121, "KL minimization") and OpenUnlearning's GradDiff with `retain_loss_type=KL`, which
counts prompts and padding too. As published nothing bounds the ascent; `cap` does, as in
`gradient_ascent.py` (inferred).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.training.loop import Objective
from suture.training.objectives.common import Material
from suture.training.objectives.gradient_ascent import GradientAscent
from suture.training.objectives.retain import RetainTerm, Unlearning


class KLMinimisation(FrozenConfig):
    """Make the answers less likely, and hold the distributions on retain rows."""

    name: Literal["kl-min"] = "kl-min"
    gamma: float = Field(1.0, gt=0, description="γ: weight of the ascent on the rows to forget")
    alpha: float = Field(1.0, gt=0, description="α: weight of the divergence on retain rows")
    cap: float | None = Field(
        None,
        gt=0,
        description="nats per token above which a token is left alone; none as published",
    )

    @property
    def needs_retain(self) -> bool:
        return True

    def build(self, material: Material) -> Objective:
        """The loss of a batch, together with as many retain rows; see `RetainTerm` for memory."""
        ascent = GradientAscent(cap=self.cap)
        return Unlearning(
            ascent.loss,
            RetainTerm("KL", material),
            forget_weight=self.gamma,
            retain_weight=self.alpha,
        )
