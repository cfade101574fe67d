"""IDK: learn to refuse the questions (TOFU, Maini et al., arXiv 2401.06121).

    L = CE(D_idk) + λ · L_retain(D_r)

D_idk: the questions of the rows to forget, each with a refusal. The answers to forget are not
looked at, so this hides knowledge rather than removing it: their likelihood hardly falls.
"""

from __future__ import annotations

from typing import Any, Literal

from suture.lazy import torch
from suture.training.batches import Batch, collate
from suture.training.logits import answer_count
from suture.training.loop import Objective, next_token_loss
from suture.training.objectives.common import Material, row_ids
from suture.training.objectives.refusals import RefusalOptions
from suture.training.objectives.retain import Unlearning


class IDK(RefusalOptions):
    """Make a refusal the likely answer to each prompt."""

    name: Literal["idk"] = "idk"

    def build(self, material: Material) -> Objective:
        """The loss of a batch, whose rows must be among the material's examples. Error E930."""
        refused = self.refused(material)

        def instead(batch: Batch) -> Batch:
            return collate([refused[ids] for ids in row_ids(batch)]).to(batch.ids.device)

        def loss(model: Any, batch: Batch) -> torch.Tensor:
            return next_token_loss(model, instead(batch))

        return Unlearning(
            loss,
            self.term(material),
            retain_weight=self.retain_weight,
            weight=lambda batch: answer_count(instead(batch)),
        )
