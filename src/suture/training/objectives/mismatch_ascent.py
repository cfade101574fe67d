"""Gradient ascent with random mismatch and KL (Yao et al., llm_unlearn, arXiv 2310.10683).

    L = w_f · (−NLL(D_h)) + w_m · NLL(D_mismatch) + w_k · KL(θ_0 ‖ θ) on harmless rows

D_mismatch: each harmful prompt with `mismatches` harmless answers, drawn once from the rows to keep
(the published script draws anew in every batch). The KL is over the whole vocabulary at every token
of the harmless rows; padding, which the script counts too, is left out. The stop compares the NLL
itself: the script's test on the negative loss never fires. Ascent is capped as in
`gradient_ascent.py`, which the script is not (inferred).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.lazy import torch
from suture.training.batches import Batch, Example, batches_from, collate
from suture.training.logits import logits_at
from suture.training.loop import Objective, next_token_loss
from suture.training.objectives.common import (
    Frozen,
    Material,
    answered_with,
    divergence,
    row_ids,
    token_nll,
)
from suture.training.objectives.gradient_ascent import check_stop


class MismatchAscent(FrozenConfig):
    """Make the responses less likely, other answers likely, and stay near the model elsewhere."""

    name: Literal["gradient-ascent-kl"] = "gradient-ascent-kl"
    forget: float = Field(0.5, ge=0, description="w_f: weight of the ascent")
    mismatch: float = Field(1.0, ge=0, description="w_m: weight of harmless answers")
    kl: float = Field(1.0, ge=0, description="w_k: weight of the divergence on harmless rows")
    mismatches: int = Field(5, ge=1, description="harmless answers per harmful prompt")
    cap: float = Field(10.0, gt=0, description="nats per token above which a token is left alone")
    stop: float | None = Field(
        None, gt=0, description="mean nats per token that end the training (100 in the script)"
    )

    @property
    def needs_retain(self) -> bool:
        return self.mismatch > 0 or self.kl > 0

    def build(self, material: Material) -> Objective:
        """The loss of a batch; without an adapter it holds a second copy of the model for the KL.

        Raises `EnoughTraining` where `stop` is passed.
        """
        return _Loss(self, material)


class _Loss:
    def __init__(self, config: MismatchAscent, material: Material) -> None:
        self.config = config
        self.others = mismatched(material, config.mismatches) if config.mismatch else {}
        self.frozen = Frozen(material.model) if config.kl else None
        self.material = material
        self.harmless: Iterator[Batch] | None = None

    def begin(self, step: int) -> None:
        """Harmless batches depend on the step alone, so a resumed run sees the same ones."""
        from suture.training.recipe import encode_rows

        lm, train = self.material.lm, self.material.train
        if self.frozen is not None:
            examples = encode_rows(
                lm.tokenizer,
                lm.template,
                self.material.retain,
                loss="all",
                max_length=self.material.max_length,
            )
            self.harmless = batches_from(
                examples, batch_tokens=train.batch_tokens, seed=train.seed, first_step=step
            )

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        config = self.config
        nll, _ = token_nll(model, batch)
        check_stop(config.stop, nll)
        loss = -config.forget * nll.clamp(max=config.cap).mean()
        if self.others:
            chosen = [example for ids in row_ids(batch) for example in self.others[ids]]
            loss = loss + config.mismatch * next_token_loss(
                model, collate(chosen).to(batch.ids.device)
            )
        if self.frozen is not None:
            assert self.harmless is not None, "begin was not called"
            other = next(self.harmless).to(batch.ids.device)
            with self.frozen.now() as before:
                kept = log_probabilities(before, other)
            loss = loss + config.kl * divergence(kept, log_probabilities(model, other))
        return loss


def mismatched(material: Material, count: int) -> dict[tuple[int, ...], list[Example]]:
    """Ids of every training example → its prompt with `count` harmless answers."""
    answers = [row.response for row in material.retain if row.response is not None]
    return answered_with(material, answers, count, "mismatch")


def log_probabilities(model: Any, batch: Batch) -> torch.Tensor:
    """log p of the whole vocabulary after every real token: (tokens, vocabulary), float32."""
    return logits_at(model, batch, batch.attend.bool()).log_softmax(-1)
