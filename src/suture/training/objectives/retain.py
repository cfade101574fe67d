"""Retain terms: what unlearning adds so that the rest of the model stays (TOFU, arXiv 2401.06121).

    L = γ · L_forget(D_f) + λ · L_retain(D_r)

    RT   L_retain = mean −log p_θ(y_i | y_<i)     on the answers of retain rows
    KL   L_retain = mean KL(p_ref ‖ p_θ)          forward, over the whole vocabulary, there

p_ref is the model before training. Every micro-batch meets as many retain rows as it has forget
rows, drawn uniformly (TOFU's convention). Only answer tokens count in both terms; OpenUnlearning's
KL counts prompts and padding too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from pydantic import Field

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.lazy import torch
from suture.rng import generator
from suture.training.batches import Batch, collate
from suture.training.logits import answer_count
from suture.training.loop import Objective, next_token_loss
from suture.training.objectives.common import (
    Frozen,
    Material,
    answer_logits,
    divergence,
)


class RetainRows:
    """Retain rows drawn by (seed, number of the micro-batch) alone.

    Error E931: no row has room for its answer.
    """

    def __init__(self, material: Material) -> None:
        from suture.training.recipe import encode_rows

        lm = material.lm
        self.seed, self.number = material.train.seed, 0
        self.examples = encode_rows(
            lm.tokenizer, lm.template, material.retain, max_length=material.max_length
        )
        if not self.examples:
            raise SutureError(
                "E931",
                f"none of {len(material.retain)} retain rows has room for an answer",
                why=f"every prompt alone takes {material.max_length} tokens or more",
                fix="give shorter retain rows, or raise max_length",
            )

    def begin(self, number: int) -> None:
        """The next draw is that of micro-batch `number`, from 0."""
        self.number = number

    def draw(self, rows: int, device: torch.device) -> Batch:
        """So many rows, uniformly and with replacement."""
        rng = generator(self.seed, f"retain {self.number}")
        self.number += 1
        chosen = rng.integers(len(self.examples), size=rows)
        return collate([self.examples[int(i)] for i in chosen]).to(device)


class RetainTerm:
    """L_retain of as many rows as a micro-batch has to forget, in nats per answer token.

    KL holds the model before training (`frozen`, made here unless it is given): a second copy in
    memory, or under an adapter the model without it. Error E931 as in `RetainRows`.
    """

    def __init__(
        self, kind: Literal["RT", "KL"], material: Material, *, frozen: Frozen | None = None
    ) -> None:
        self.rows = RetainRows(material)
        self.begin = self.rows.begin
        self.frozen = None
        if kind == "KL":
            self.frozen = frozen or Frozen(material.model)

    def __call__(self, model: Any, rows: int) -> torch.Tensor:
        batch = self.rows.draw(rows, next(model.parameters()).device)
        if self.frozen is None:
            return next_token_loss(model, batch)
        with self.frozen.now() as before:
            kept = answer_logits(before, batch).log_softmax(-1)
        now = answer_logits(model, batch).log_softmax(-1)
        return divergence(kept, now)


class RetainOptions(FrozenConfig):
    """The keys of every objective that may have a retain term."""

    retain: Literal["none", "RT", "KL"] = Field(
        "none", description="term on the retain rows: none, RT (their answers) or KL (to before)"
    )
    retain_weight: float = Field(1.0, ge=0, description="λ: weight of the retain term")

    @property
    def needs_retain(self) -> bool:
        return self.retain != "none" and self.retain_weight > 0

    def term(self, material: Material, *, frozen: Frozen | None = None) -> RetainTerm | None:
        """The retain term, if there is one."""
        if self.retain == "none" or not self.needs_retain:
            return None
        return RetainTerm(self.retain, material, frozen=frozen)


class Term(Protocol):
    """What is added to the loss of a micro-batch of `rows` rows to forget."""

    def begin(self, number: int) -> None:
        """The next call is micro-batch `number`, from 0."""
        ...

    def __call__(self, model: Any, rows: int) -> torch.Tensor: ...


class Unlearning:
    """γ · forget + λ · retain, as the loop takes it.

    `forget`: the loss of a batch, a mean over what `weight` counts (default: answer tokens).
    """

    def __init__(
        self,
        forget: Objective,
        term: Term | None,
        *,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        weight: Callable[[Batch], float] | None = None,
    ) -> None:
        self.forget, self.term = forget, term
        self.forget_weight, self.retain_weight = forget_weight, retain_weight
        self.weight = weight or answer_count

    def begin(self, number: int) -> None:
        """Told to the retain term, which draws by it."""
        if self.term is not None:
            self.term.begin(number)

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        loss = self.forget_weight * self.forget(model, batch)
        if self.term is not None:
            loss = loss + self.retain_weight * self.term(model, len(batch.ids))
        return loss
