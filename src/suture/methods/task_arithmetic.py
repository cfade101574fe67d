"""Task arithmetic (Ilharco et al., ICLR 2023): add scaled differences to the aligned model.

    θ = θ_A + λ (θ_F − θ_A) + μ (θ_U − θ_A)

λ between 0 and 1 shrinks the fine-tuning; μ < 0 unlearns what made the unaligned model unsafe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.lazy import torch
from suture.methods.common import Scope, check_family, edits, scoped_names

if TYPE_CHECKING:
    from suture.checkpoint import TensorEdit, TensorSource


class TaskArithmetic(FrozenConfig):
    """Scale the fine-tuning delta, and optionally subtract the way to the unaligned model."""

    scale: float = Field(0.5, description="λ: factor on tuned − aligned (default inferred)")
    unaligned_scale: float = Field(
        0.0, description="μ: factor on unaligned − aligned; negative unlearns, 0 leaves it out"
    )
    scope: Scope = Field("model", description="model: every tensor; all: block matrices; qv")

    def derive(
        self, *, aligned: TensorSource, tuned: TensorSource, unaligned: TensorSource | None = None
    ) -> Iterator[TensorEdit]:
        """Edits of `tuned`, in checkpoint order. Raises SutureError E402 if μ lacks its model."""
        if self.unaligned_scale and unaligned is None:
            raise SutureError(
                "E402", "unaligned_scale needs the unaligned model", fix="give --unaligned DIR"
            )
        check_family(tuned, aligned, unaligned)
        sources = [aligned, tuned]
        if self.unaligned_scale and unaligned is not None:
            sources.append(unaligned)
        return edits(tuned, scoped_names(tuned, self.scope), sources, self._formula)

    def _formula(self, _key: str, _start: int, tiles: list[torch.Tensor]) -> torch.Tensor:
        base, tuned, *unaligned = tiles
        result = base + self.scale * (tuned - base)
        for other in unaligned:
            result = result + self.unaligned_scale * (other - base)
        return result
