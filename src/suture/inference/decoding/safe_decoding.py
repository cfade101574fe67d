"""SafeDecoding (Xu et al. 2024), for safety: an expert that refuses speaks along at the beginning.

For the first m tokens the next token is chosen among those that base model and expert both rank
high: the intersection of their top-k lists, k growing until it holds at least c tokens. There

    P = p_base + alpha (p_expert - p_base),   floored at 1e-8 and renormalised

and the most likely token is taken; then the base model goes on alone. alpha 3, m 2, c 5 are the
defaults of the official command line; IRR's port uses alpha 4. The expert is the same model trained
further on refusals, a checkpoint or a LoRA folder, with the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from suture.config import FrozenConfig
from suture.inference.decoding import second_model
from suture.lazy import torch

if TYPE_CHECKING:
    from suture.inference.loading import LoadedModel

_FLOOR = 1e-8


class SafeDecoding(FrozenConfig):
    """Settings of SafeDecoding; `use` sets an expert that is already loaded."""

    expert: Path | None = Field(None, description="checkpoint or LoRA folder that refuses well")
    alpha: float = Field(3.0, ge=0, description="how far to go from base to expert")
    first: int = Field(2, ge=1, description="m: tokens at the beginning the expert has a say in")
    common: int = Field(5, ge=1, description="c: tokens that both models must rank high")
    _expert: Any = PrivateAttr(None)

    def use(self, expert: LoadedModel) -> SafeDecoding:
        """The same with this expert."""
        self._expert = expert
        return self

    @property
    def identity(self) -> dict[str, Any]:
        settings = self.model_dump(exclude={"expert"})
        known = None if self._expert is None else self._expert.fingerprint
        return {"name": "safe-decoding", **settings, "expert": known}

    def voices(
        self, lm: LoadedModel, system: str | None
    ) -> Sequence[tuple[LoadedModel, str | None]]:
        self._expert = second_model(
            lm, self.expert, self._expert, role="an expert", option="safe-decoding:expert"
        )
        return [(lm, system), (self._expert, system)]

    def heard(self, step: int) -> int:
        return 2 if step < self.first else 1

    def combine(self, step: int, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Log-probabilities on the common tokens, minus infinity elsewhere."""
        if len(logits) == 1:
            return logits[0]
        width = min(one.shape[-1] for one in logits)  # embeddings padded to other widths
        base, expert = (one[:, :width].float().softmax(-1) for one in logits)
        worst = torch.maximum(_ranks(base), _ranks(expert))
        enough = worst.kthvalue(min(self.common, width), dim=-1, keepdim=True).values
        space = worst <= enough
        mixed = (base + self.alpha * (expert - base)).clamp(min=_FLOOR)
        mixed = torch.where(space, mixed, mixed.new_zeros(()))
        return (mixed / mixed.sum(-1, keepdim=True)).log()


def _ranks(p: torch.Tensor) -> torch.Tensor:
    """0 for the most likely token of a row; ties to the lower id."""
    order = p.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.empty_like(order)
    places = torch.arange(p.shape[-1], device=p.device).expand_as(order)
    return ranks.scatter_(-1, order, places)


DECODING = SafeDecoding
