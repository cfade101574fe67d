"""CE-U: towards one's own distribution without the true token (arXiv 2503.01224).

    L = mean_i CE(q_i, softmax(l_θ,i)) + λ · L_retain(D_r),    q_i = softmax(l_θ,i with l[y_i] = −∞)

q carries no gradient: the true token's probability is pushed down, what the others have among
themselves stays. The first answer token is left out (a footnote of the paper's training settings,
as OpenUnlearning reads it); the paper has no retain term.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from suture.lazy import torch
from suture.training.batches import Batch
from suture.training.logits import answer_count, answer_tokens
from suture.training.loop import Objective
from suture.training.objectives.common import Material, answer_logits
from suture.training.objectives.retain import RetainOptions, Unlearning


class CEU(RetainOptions):
    """Take the true token's probability and give it to the others in proportion."""

    name: Literal["ce-u"] = "ce-u"
    skip: int = Field(1, ge=0, description="answer tokens at the beginning that do not count")

    def build(self, material: Material) -> Objective:
        """The loss of a batch; one in which nothing counts is a token of loss 0."""

        def loss(model: Any, batch: Batch) -> torch.Tensor:
            counted = self.counted(batch)
            return self.of(answer_logits(model, counted), answer_tokens(counted))

        return Unlearning(
            loss,
            self.term(material),
            retain_weight=self.retain_weight,
            weight=lambda batch: max(1.0, answer_count(self.counted(batch))),
        )

    def counted(self, batch: Batch) -> Batch:
        """The batch without the labels of each row's first `skip` answer tokens."""
        labelled = batch.labels != -100
        first = labelled & (labelled.cumsum(1) <= self.skip)
        return Batch(batch.ids, batch.attend, batch.labels.masked_fill(first, -100))

    def of(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of positions with logits (tokens, V) and true tokens (tokens,)."""
        if len(labels) == 0:
            return logits.sum()
        without = logits.detach().scatter(1, labels.unsqueeze(1), float("-inf"))
        return torch.nn.functional.cross_entropy(logits, without.softmax(-1))
