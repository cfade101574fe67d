"""Negative preference optimisation (Zhang et al., COLM 2024, arXiv 2404.05868).

    L = −(2/β) E log σ(−β log(p_θ(y|x) / p_ref(y|x))) + λ · L_retain(D_r)

log p is summed over the response tokens; p_ref is the model before training. Its log-probabilities
of the training rows are one number per row, computed once before the first step, so that no second
model stays in memory. As β → 0 the gradient becomes that of ascent (`gradient-ascent` with
`reduction: sum`); a row that has become unlikely weighs less and less, which is why NPO needs no
cap. NPO+RT and NPO+KL of the paper's TOFU runs add a retain term with weight 1.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from suture.lazy import torch
from suture.training.batches import Batch
from suture.training.loop import Objective
from suture.training.objectives.common import (
    Material,
    per_row,
    reference_nll,
    row_ids,
    sequence_nll,
)
from suture.training.objectives.retain import RetainOptions, Unlearning


class NPO(RetainOptions):
    """Make the responses less likely than they were, less and less hard."""

    name: Literal["npo"] = "npo"
    beta: float = Field(0.1, gt=0, description="β: how soon a row that is unlikely counts less")

    def build(self, material: Material) -> Objective:
        """The loss of a batch, whose rows must be among the material's examples."""
        reference = reference_nll(material.model, material.examples, material.train)

        def loss(model: Any, batch: Batch) -> torch.Tensor:
            now = sequence_nll(model, batch)
            before = now.new_tensor([reference[ids] for ids in row_ids(batch)])
            return self.of(now, before)

        return Unlearning(
            loss, self.term(material), retain_weight=self.retain_weight, weight=per_row
        )

    def of(self, now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The loss of rows with −log p `now` that was `before`: log(p_θ / p_ref) = before − now."""
        log_sigmoid = torch.nn.functional.logsigmoid(self.beta * (now - before))
        return -(2.0 / self.beta) * log_sigmoid.mean()
