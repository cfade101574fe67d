"""The loss of a pre-training step, its parts told apart: language modelling, routers, a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from suture.errors import SutureError
from suture.lazy import torch
from suture.training.newborn import OWN
from suture.training.objectives.masked import Causal, Masked
from suture.training.objectives.tcd import TCD

if TYPE_CHECKING:
    from suture.models.outputs import Routing
    from suture.training.batches import Batch


class Distillation(TCD):
    """A teacher that every step is compared with (TCD-style, see `objectives.tcd`)."""

    teacher: Path = Field(description="checkpoint of one of our models, with the same tokenizer")

    def open_teacher(self, student: Any, tokenizer: Path) -> Any:
        """The teacher, frozen, on the student's device.

        Errors: E962 it reads other tokens; those of `teacher_config` and of `load_reader`.
        """
        from suture.inference.reading import load_reader
        from suture.patch import open_model

        self.teacher_config(student.config, tokenizer)
        device = next(student.parameters()).device
        return load_reader(open_model(self.teacher), device=str(device)).model

    def teacher_config(self, student: Any, tokenizer: Path | None) -> Any:
        """The teacher's configuration, once it is known to fit a student of this one.

        `tokenizer`: folder of the student's, None where it is not trained yet. Errors: E963 teacher
        or student is none of our models, E962 it reads other tokens; E977 to E979 as `TCD.check`.
        """
        from suture.inference.loading import model_config
        from suture.patch import open_model

        teacher: Any = model_config(open_model(self.teacher))
        for config, where in ((student, "model"), (teacher, str(self.teacher))):
            if config.model_type not in OWN:
                raise SutureError(
                    "E963",
                    f"a {config.model_type} model has no states that could be matched",
                    where=where,
                    fix=f"use model_type {' or '.join(OWN)}",
                )
        self.check(student, teacher, str(self.teacher))
        if tokenizer is not None:
            check_tokenizer(self.teacher, tokenizer, "the teacher")
        return teacher


def check_tokenizer(folder: Path, tokenizer: Path, what: str) -> None:
    """Error E962: the model of `folder` reads other tokens than those of the packed text."""
    from suture.inference.loading import load_tokenizer

    if load_tokenizer(folder).get_vocab() != load_tokenizer(tokenizer).get_vocab():
        raise SutureError(
            "E962",
            f"{what} has another tokenizer than the text is packed with",
            where=str(folder),
            why="the two would read other words under the same numbers",
            fix=f"give another one, or train with pretrain.tokenizer={folder}",
        )


class Loss:
    """The model's own language-modelling loss, what its routers add, and what a teacher asks for.

    The supply's labels decide what is predicted; a causal model shifts them itself. An objective of
    `suture.training.loop.train`.
    """

    def __init__(
        self,
        objective: Causal | Masked,
        distil: Distillation | None = None,
        teacher: Any = None,
    ) -> None:
        self.shifted = isinstance(objective, Causal)
        self.distil, self.teacher = distil, teacher
        self._sums: dict[str, float] = {}
        self._weight = 0.0

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        """The sum of all parts by their weights, the parts noted for `take`."""
        from suture.models import penalty

        own = model.config.model_type in OWN
        output = self.output(model, batch, capture=self.distil.capture if self.distil else None)
        weight = self.weight(batch)
        self._weight += weight
        self._add("lm", output.loss, weight)
        loss: torch.Tensor = output.loss
        if own:
            for name, value in (output.auxiliary or {}).items():
                self._add(name, value, weight)
            loss = loss + penalty(output, model.config)
            for name, value in routed(output.routing or ()).items():
                self._add(name, value, weight)
        if self.distil is not None:
            with torch.no_grad():
                wanted = self._taught(batch)
            # a causal model predicts everywhere, an encoder where something is masked
            labels = None if self.shifted else batch.labels
            terms = self.distil.losses(output, wanted, labels=labels)
            for name, value in terms.items():
                self._add(name, value, weight)
            loss = loss + self.distil.total(terms)
        return loss

    def output(self, model: Any, batch: Batch, *, capture: frozenset[str] | None = None) -> Any:
        """A forward pass with its loss of language modelling."""
        given: dict[str, Any] = {"input_ids": batch.ids, "labels": batch.labels}
        if model.config.model_type in OWN:
            given["capture"] = capture
            if not self.shifted:
                # an encoder's head is most of its work, and only what is masked is predicted
                given["loss_only"] = self.distil is None or self.distil.match != "logits"
        return model(**given)

    def _taught(self, batch: Batch) -> Any:
        """What the teacher says: predictions, or states, for which its head is not needed."""
        assert self.distil is not None
        trunk = self.teacher if self.distil.match == "logits" else self.teacher.model
        return trunk(input_ids=batch.ids, capture=self.distil.capture)

    def weight(self, batch: Batch) -> float:
        """Predicted tokens."""
        labels = batch.labels[:, 1:] if self.shifted else batch.labels
        return float((labels != -100).sum())

    def take(self) -> dict[str, float]:
        """Means since the last call, by name; `lm` alone is what other models are compared in."""
        every = max(self._weight, 1.0)  # in a step of few tokens it may be that none is masked
        found = {name: value / every for name, value in self._sums.items()}
        self._sums, self._weight = {}, 0.0
        # a model without routers and teacher has one loss, and it is told already
        return found if len(found) > 1 else {}

    def _add(self, name: str, value: torch.Tensor, weight: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(value.detach()) * weight


def routed(routing: Sequence[Routing]) -> dict[str, torch.Tensor]:
    """How even mixtures are, means over layers; nothing without experts.

    `load_entropy`: of the shares of tokens that the experts got; `router_entropy`: of the router's
    distribution for a token; both in nats.
    `dropped`: assignments that no expert took, in a layer and a micro-batch.
    """
    from suture.models.outputs import load_entropy

    if not routing:
        return {}
    return {
        "load_entropy": torch.stack([load_entropy(one.load) for one in routing]).mean(),
        "router_entropy": torch.stack([one.entropy for one in routing]).mean(),
        "dropped": torch.tensor([float(one.dropped) for one in routing]).mean(),
    }
