"""DPO with refusals preferred (Rafailov et al., arXiv 2305.18290; for unlearning: NPO's paper).

    L = −(2/β) E log σ(β [(s_w − s_w,ref) − (s_l − s_l,ref)]),    s = Σ_i log p(y_i | x, y_<i)

w is a refusal, l the answer to forget, ref the model before training. The factor 2/β is that of
OpenUnlearning and of the NPO repository; with it β → 0 gives the difference of both gradients.
Reference values are one number per row, computed once, so that no second model stays in memory.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from suture.lazy import torch
from suture.training.batches import Batch, collate
from suture.training.loop import Objective
from suture.training.objectives.common import (
    Material,
    per_row,
    reference_nll,
    row_ids,
    sequence_nll,
)
from suture.training.objectives.refusals import RefusalOptions
from suture.training.objectives.retain import Unlearning


class DPO(RefusalOptions):
    """Make a refusal likelier than the answer, as seen from the model before."""

    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, description="β: how soon a row that is won counts less")

    def build(self, material: Material) -> Objective:
        """The loss of a batch, whose rows must be among the material's examples. Error E930."""
        refused = self.refused(material)
        others = list(refused.values())
        reference = reference_nll(material.model, [*material.examples, *others], material.train)

        def gain(model: Any, batch: Batch) -> torch.Tensor:
            """s − s_ref of every row."""
            now = sequence_nll(model, batch)
            return now.new_tensor([reference[ids] for ids in row_ids(batch)]) - now

        def loss(model: Any, batch: Batch) -> torch.Tensor:
            wanted = collate([refused[ids] for ids in row_ids(batch)]).to(batch.ids.device)
            return self.of(gain(model, wanted), gain(model, batch))

        return Unlearning(
            loss, self.term(material), retain_weight=self.retain_weight, weight=per_row
        )

    def of(self, wanted: torch.Tensor, unwanted: torch.Tensor) -> torch.Tensor:
        """The loss of rows whose refusals gained `wanted` nats and whose answers `unwanted`."""
        log_sigmoid = torch.nn.functional.logsigmoid(self.beta * (wanted - unwanted))
        return -(2.0 / self.beta) * log_sigmoid.mean()
