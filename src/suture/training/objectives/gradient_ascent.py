"""Gradient ascent on harmful rows: SafePatching's safety patch (Zhao et al., arXiv 2405.13820).

    L_GA = −NLL,    NLL = −(1/N) Σ_i log p(y_i | x, y_<i; θ),    response tokens only

Ascent has no bottom: left alone it ends in a model that writes noise. So a token counts no more
once its −log p is above `cap`, and training ends before the first step whose batch has a mean
above `stop` (both inferred; the paper's own bound is not published in the sources we hold).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.lazy import torch
from suture.training.batches import Batch
from suture.training.loop import EnoughTraining, Objective
from suture.training.objectives.common import Material, per_row, token_nll
from suture.training.objectives.retain import Unlearning


class GradientAscent(FrozenConfig):
    """Make the responses less likely."""

    name: Literal["gradient-ascent"] = "gradient-ascent"
    cap: float | None = Field(
        10.0, gt=0, description="nats per token above which a token is left alone; null: no cap"
    )
    stop: float | None = Field(None, gt=0, description="mean nats per token that end the training")
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="over all tokens of a batch, or summed per row and averaged over rows"
    )

    @property
    def needs_retain(self) -> bool:
        return False

    def build(self, material: Material) -> Objective:
        """The loss of a batch. It raises `EnoughTraining` where `stop` is passed."""
        return Unlearning(self.loss, None, weight=per_row if self.reduction == "sum" else None)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """−NLL, capped token by token."""
        nll, _ = token_nll(model, batch)
        check_stop(self.stop, nll)
        return -reduced(
            nll if self.cap is None else nll.clamp(max=self.cap), self.reduction, len(batch.ids)
        )


def check_stop(stop: float | None, nll: torch.Tensor) -> None:
    """End the training where the mean of the tokens' `nll` is above `stop`.

    The published script compares the negative loss with its bound, which never fires; here the NLL
    itself is compared.
    """
    if stop is not None and float(nll.detach().mean()) > stop:
        raise EnoughTraining


def reduced(nll: torch.Tensor, reduction: str, rows: int) -> torch.Tensor:
    """Mean over tokens, or the sum over tokens averaged over `rows`."""
    return nll.mean() if reduction == "mean" else nll.sum() / rows
