"""Negative preference optimisation (Zhang et al., COLM 2024, arXiv 2404.05868).

    L = −(2/β) E log σ(−β log(p_θ(y|x) / p_ref(y|x))),    log p summed over the response tokens

p_ref is the model before training. Its log-probabilities of the training rows are one number per
row, computed once before the first step, so that no second model stays in memory. As β → 0 the
gradient becomes that of ascent (`gradient-ascent` with `reduction: sum`); a row that has become
unlikely weighs less and less, which is why NPO needs no cap.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.lazy import torch
from suture.training.batches import Batch, collate, epoch_plan
from suture.training.loop import Objective
from suture.training.objectives.common import Material, computing, row_ids, sequence_nll
from suture.training.objectives.mismatch_ascent import on


class NPO(FrozenConfig):
    """Make the responses less likely than they were, less and less hard."""

    name: Literal["npo"] = "npo"
    beta: float = Field(0.1, gt=0, description="β: how soon a row that is unlikely counts less")

    @property
    def needs_retain(self) -> bool:
        return False

    def build(self, material: Material) -> Objective:
        """The loss of a batch, whose rows must be among the material's examples."""
        reference = reference_nll(material)

        def loss(model: Any, batch: Batch) -> torch.Tensor:
            now = sequence_nll(model, batch)
            before = now.new_tensor([reference[ids] for ids in row_ids(batch)])
            return self.of(now, before)

        return loss

    def of(self, now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The loss of rows with −log p `now` that was `before`: log(p_θ / p_ref) = before − now."""
        log_sigmoid = torch.nn.functional.logsigmoid(self.beta * (now - before))
        return -(2.0 / self.beta) * log_sigmoid.mean()


def reference_nll(material: Material) -> dict[tuple[int, ...], float]:
    """−log p(response | prompt) of every training example under the model as it is now."""
    examples, config = material.examples, material.train
    plan = epoch_plan(
        [len(e.ids) for e in examples], batch_tokens=config.batch_tokens, seed=0, epoch=0
    )
    found: dict[tuple[int, ...], float] = {}
    with torch.no_grad(), computing(material.model, config) as device:
        for rows in plan:
            batch = on(collate([examples[row] for row in rows]), device)
            values = sequence_nll(material.model, batch).tolist()
            found.update(zip(row_ids(batch), values, strict=True))
    return found
