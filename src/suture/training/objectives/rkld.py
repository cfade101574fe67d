"""RKLD: unlearning by reverse-KL distillation (arXiv 2406.01983; as RKLU in NAACL 2025, paper 60).

    m_aug   the model trained further on the rows to forget                             (stage 1)
    l_t[v] = l_o[v] − α · max(0, l_aug[v] − l_o[v]),    π_t = softmax(l_t)              (stage 2)
    L = mean over answer positions of Σ_v π_θ[v] · (log π_θ[v] − log π_t[v])            (stage 3)
        + λ · L_retain(D_r)                                       λ = 0 in the paper's headline

What training on an answer makes likelier is what belongs to it; the teacher pushes exactly that
down, and the student (which starts as the original, m_o) takes the teacher's distribution into its
weights. The reverse divergence punishes student mass where the teacher has almost none; the forward
one (FKLD, the paper's ablation) chases whatever the subtraction left over.

Prefixes are fixed, so the teacher is worked out once and kept on disk (`suture.training.teacher`);
one model is in memory throughout. Inferred, since the paper is silent: mean over the tokens of the
step, the closing end token included, teacher in float32, temperature 1, and an augmented model
trained like the student (its scope or its adapter, its schedule).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from suture.inference.decoding.whos_harry_potter import unlearning_logits
from suture.lazy import torch
from suture.training.batches import Batch
from suture.training.logits import answer_count, answer_positions
from suture.training.loop import Objective
from suture.training.objectives.common import Material, answer_logits, per_row
from suture.training.objectives.retain import RetainOptions, Unlearning

_AT_ONCE = 256  # positions whose whole vocabulary is worked on together


class RKLD(RetainOptions):
    """Forget rows by becoming a teacher that never learnt them."""

    name: Literal["rkld"] = "rkld"
    alpha: float = Field(
        8.0, ge=0, description="α: how far a token whose logit rose is pushed down"
    )
    direction: Literal["reverse", "forward"] = Field(
        "reverse", description="KL(student ‖ teacher), or KL(teacher ‖ student): the ablation FKLD"
    )
    space: Literal["logit", "logprob"] = Field(
        "logit", description="what rises are taken in; logprob is blind to shifts of all logits"
    )
    dead_zone: float = Field(0.0, ge=0, description="τ: rises up to this count as none")
    reduction: Literal["token-mean", "sequence-mean"] = Field(
        "token-mean", description="over all tokens, or over each row's tokens and then over rows"
    )
    include_eos: bool = Field(True, description="the token that ends an answer counts")
    augmented: Path | None = Field(
        None, description="checkpoint or adapter trained on the rows; default: it is trained first"
    )
    augment_epochs: int = Field(10, ge=1, description="epochs of the augmented model")
    augment_rate: float | None = Field(
        None, gt=0, description="its peak learning rate; default: the student's"
    )
    teacher: Literal["cached", "live"] = Field(
        "cached", description="from disk, or worked out in every step by two more models in memory"
    )
    cache: Path | None = Field(
        None, description="folder that keeps the teacher for other runs; default: for this run only"
    )

    def build(self, material: Material) -> Objective:
        """The loss of a batch, whose rows must be among the material's examples.

        Trains the augmented model and writes the teacher to disk unless they are there: in
        `material.folder`, where a killed run goes on. Errors: E904 a teacher of other settings,
        E918 no room on the disk, E122 and E123 an augmented model of another kind or tokenizer.
        """
        from suture.training.teacher import make_teacher

        log_teacher = make_teacher(self, material)
        term = self.term(material)  # the model is the original again

        def forget(model: Any, batch: Batch) -> torch.Tensor:
            batch = self.counted(batch, material.lm.stops)
            logits = answer_logits(model, batch)
            if not len(logits):  # rows without an answer but for its end: nothing to learn
                return logits.sum()
            return divergence_overwriting(
                logits, log_teacher(batch), position_weights(batch, self.reduction), self.direction
            )

        def weight(batch: Batch) -> float:
            if self.reduction == "sequence-mean":
                return per_row(batch)
            return answer_count(self.counted(batch, material.lm.stops))

        return Unlearning(forget, term, retain_weight=self.retain_weight, weight=weight)

    def counted(self, batch: Batch, stops: frozenset[int]) -> Batch:
        """The batch with labels where the loss counts: without the end token if it is left out."""
        if self.include_eos:
            return batch
        labels = batch.labels.clone()
        last = batch.attend.sum(1) - 1
        rows = torch.arange(len(labels), device=labels.device)
        ends = torch.isin(
            batch.ids[rows, last],
            torch.tensor(sorted(stops), dtype=torch.int64, device=labels.device),
        )
        labels[rows[ends], last[ends]] = -100
        return Batch(batch.ids, batch.attend, labels)

    def teacher_logits(self, original: torch.Tensor, augmented: torch.Tensor) -> torch.Tensor:
        """l_t of logits (..., V) of m_o and m_aug, float32.

        The formula is not blind to a constant added to `augmented`, though its softmax is: `space:
        logprob` takes the rise of log-probabilities instead (inferred).
        """
        return unlearning_logits(
            original, augmented, self.alpha, space=self.space, dead_zone=self.dead_zone
        )


def position_weights(batch: Batch, reduction: str) -> torch.Tensor:
    """What every labelled position counts in the loss, in `answer_logits`' order; they sum to 1."""
    row = answer_positions(batch).nonzero()[:, 0]
    if reduction == "token-mean":
        return torch.full((len(row),), 1.0 / len(row), device=row.device)
    tokens = torch.bincount(row, minlength=len(batch.ids))
    return 1.0 / (tokens[row] * (tokens > 0).sum())


def divergence_overwriting(
    logits: torch.Tensor, log_teacher: torch.Tensor, weights: torch.Tensor, direction: str
) -> torch.Tensor:
    """Σ_i w_i · RKL_i (or FKL_i) of student `logits` (positions, V); a scalar.

    `log_teacher`: log π_t (positions, V) float32, whose memory the gradient takes: it is lost.
    `weights`: (positions,).
    """
    found: torch.Tensor = _divergence().apply(logits, log_teacher, weights, direction)
    return found


@functools.cache  # made at first use, so that torch is not imported before
def _divergence() -> Any:
    """The loss with its gradient in closed form:

        ∂RKL/∂z_k = π_θ[k] · (log π_θ[k] − log π_t[k] − RKL),    ∂FKL/∂z_k = π_θ[k] − π_t[k]

    The gradient takes the place of the teacher's numbers, so nothing the size of positions × V is
    held besides the logits; autograd would keep four such tables.
    """

    class Divergence(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            logits: torch.Tensor,
            log_teacher: torch.Tensor,
            weights: torch.Tensor,
            direction: str,
        ) -> torch.Tensor:
            loss = logits.new_zeros(())
            for start in range(0, len(logits), _AT_ONCE):
                at = slice(start, start + _AT_ONCE)
                log_p, log_t, w = logits[at].log_softmax(-1), log_teacher[at], weights[at, None]
                p = log_p.exp()
                if direction == "reverse":
                    ratio = log_p.sub_(log_t)
                    each = (p * ratio).sum(-1, keepdim=True)
                    log_t.copy_(ratio.sub_(each).mul_(p).mul_(w))
                else:
                    t = log_t.exp()
                    each = (t * (log_t - log_p)).sum(-1, keepdim=True)
                    log_t.copy_(p.sub_(t).mul_(w))
                loss += (each * w).sum()
            ctx.gradient = log_teacher
            return loss

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
            return ctx.gradient.mul_(grad), None, None, None

    return Divergence
