"""What objectives share that climb the loss of the rows to forget; formulas are in their files."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.lazy import torch
from suture.training.batches import Batch
from suture.training.loop import Objective
from suture.training.objectives.common import Material, token_nll
from suture.training.objectives.gradient_ascent import GradientAscent
from suture.training.objectives.retain import RetainOptions, RetainTerm, Unlearning


class HeldAscent(FrozenConfig):
    """−γ · CE(D_f) + α · a retain term that is always there (GradDiff: RT, KL-min: KL)."""

    kind: ClassVar[Literal["RT", "KL"]]

    gamma: float = Field(1.0, gt=0, description="γ: weight of the ascent on the rows to forget")
    alpha: float = Field(1.0, gt=0, description="α: weight of the term on retain rows")
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
        return Unlearning(
            GradientAscent(cap=self.cap).loss,
            RetainTerm(self.kind, material),
            forget_weight=self.gamma,
            retain_weight=self.alpha,
        )


class WeightedAscent(RetainOptions):
    """−γ · mean_i w(p_i) · CE_i, and a retain term if one is asked for (WGA, SatImp)."""

    gamma: float = Field(1.0, gt=0, description="γ: weight of the loss on the rows to forget")

    def build(self, material: Material) -> Objective:
        """The loss of a batch."""

        def loss(model: Any, batch: Batch) -> torch.Tensor:
            return self.of(token_nll(model, batch)[0])

        return Unlearning(
            loss,
            self.term(material),
            forget_weight=self.gamma,
            retain_weight=self.retain_weight,
        )

    def of(self, nll: torch.Tensor) -> torch.Tensor:
        """The loss, γ apart, of tokens with −log p `nll`."""
        raise NotImplementedError
