"""RESTA (Bhardwaj et al., ACL 2024): put the safety vector back on top of the tuned model.

    θ = θ_F + γ v,    v = θ_A − θ_U

With `drop` it is RESTA_d: DARE (drop entries at random, rescale the rest) on δ = θ_F − θ_A first.
Accounts differ on rate and target of DARE (0.3 on δ, or 0.9 on v), so both are switches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.lazy import torch
from suture.methods.common import Scope, check_family, dare, dropped, edits, scoped_names

if TYPE_CHECKING:
    from suture.checkpoint import TensorEdit, TensorSource


class RESTA(FrozenConfig):
    """Add the safety vector aligned − unaligned to the tuned model."""

    gamma: float = Field(0.5, description="γ: factor on the safety vector")
    drop: float = Field(
        0.0, ge=0, lt=1, description="DARE rate p; 0 = plain RESTA, paper's RESTA_d 0.3"
    )
    drop_on: Literal["delta", "safety_vector"] = Field(
        "delta", description="what DARE thins out: the fine-tuning delta or the safety vector"
    )
    scope: Scope = Field("model", description="model: every tensor; all: block matrices; qv")
    seed: int = Field(0, ge=0, description="of the dropped entries")

    def derive(
        self, *, aligned: TensorSource, tuned: TensorSource, unaligned: TensorSource
    ) -> Iterator[TensorEdit]:
        """Edits of `tuned`, in checkpoint order."""
        check_family(tuned, aligned, unaligned)
        names = scoped_names(tuned, self.scope)
        return edits(tuned, names, [aligned, tuned, unaligned], self._formula)

    def _formula(self, key: str, start: int, tiles: list[torch.Tensor]) -> torch.Tensor:
        aligned, tuned, unaligned = tiles
        v = aligned - unaligned
        if not self.drop:
            return tuned + self.gamma * v
        drop = dropped(self.seed, key, start, len(v), self.drop)
        if self.drop_on == "safety_vector":
            return tuned + self.gamma * dare(v, drop, self.drop)
        return aligned + dare(tuned - aligned, drop, self.drop) + self.gamma * v
