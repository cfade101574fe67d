"""SimNPO: NPO by the likelihood per token, without a reference (Fan et al., arXiv 2410.07163).

    L = −γ (2/β) E log σ(−(β/|y|) s − β δ) + λ · L_retain(D_r),    s = Σ_i log p_θ(y_i | x, y_<i)

|y| counts the answer's tokens, the closing one included. β 4.5, δ 0 and γ 0.125 are those of the
authors' TOFU runs (OPTML-Group/Unlearn-Simple), which add RT with weight 1.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from suture.lazy import torch
from suture.training.batches import Batch
from suture.training.logits import answer_positions
from suture.training.loop import Objective
from suture.training.objectives.common import Material, per_row, sequence_nll
from suture.training.objectives.retain import RetainOptions, Unlearning


class SimNPO(RetainOptions):
    """Make the answers' tokens unlikely on average, less and less hard."""

    name: Literal["simnpo"] = "simnpo"
    beta: float = Field(4.5, gt=0, description="β: how soon a row that is unlikely counts less")
    delta: float = Field(0.0, description="δ: margin in nats per token that a row must be beyond")
    gamma: float = Field(0.125, gt=0, description="γ: weight of the loss on the rows to forget")

    def build(self, material: Material) -> Objective:
        """The loss of a batch."""

        def loss(model: Any, batch: Batch) -> torch.Tensor:
            tokens = answer_positions(batch).sum(1)
            return self.of(sequence_nll(model, batch) / tokens)

        return Unlearning(
            loss,
            self.term(material),
            forget_weight=self.gamma,
            retain_weight=self.retain_weight,
            weight=per_row,
        )

    def of(self, nll: torch.Tensor) -> torch.Tensor:
        """The loss, γ apart, of rows with mean −log p `nll` per token."""
        log_sigmoid = torch.nn.functional.logsigmoid(self.beta * (nll - self.delta))
        return -(2.0 / self.beta) * log_sigmoid.mean()
