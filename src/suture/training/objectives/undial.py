"""UNDIAL: distil from the model before, its logit of every true token lowered (Dong et al.,
arXiv 2402.10052).

    L = mean_i CE(softmax(l_ref,i − β · onehot(y_i)), softmax(l_θ,i)) + λ · L_retain(D_r)

Answer tokens only. OpenUnlearning averages over all positions, prompts and padding included, and
uses the label −100 as an index, so β is subtracted from item V − 100 there. β 10; the authors train
with a learning rate of 1e-4.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from suture.lazy import torch
from suture.training.batches import Batch
from suture.training.logits import answer_tokens
from suture.training.loop import Objective
from suture.training.objectives.common import Frozen, Material, answer_logits
from suture.training.objectives.retain import RetainOptions, Unlearning


class UNDIAL(RetainOptions):
    """Learn what the model before would say if it did not know the token."""

    name: Literal["undial"] = "undial"
    beta: float = Field(10.0, gt=0, description="β: how far the true token's logit is lowered")

    def build(self, material: Material) -> Objective:
        """The loss of a batch; without an adapter it holds a second copy of the model."""
        frozen = Frozen(material.model)

        def loss(model: Any, batch: Batch) -> torch.Tensor:
            with frozen.now() as before:
                reference = answer_logits(before, batch)
            return self.of(answer_logits(model, batch), reference, answer_tokens(batch))

        return Unlearning(
            loss, self.term(material, frozen=frozen), retain_weight=self.retain_weight
        )

    def of(
        self, logits: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The loss of student and reference logits, (tokens, V) each, and true tokens (tokens,)."""
        at = labels.unsqueeze(1)
        lowered = reference.scatter(1, at, reference.gather(1, at) - self.beta)
        return torch.nn.functional.cross_entropy(logits, lowered.softmax(-1))
