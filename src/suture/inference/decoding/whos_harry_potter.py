"""Who's Harry Potter (Eldan & Russinovich 2023, arXiv 2310.02238), for forgetting: two models.

An augmented model, the same one trained further on what is to be forgotten, shows which tokens that
knowledge raises; they are lowered by as much, and more:

    l_t = l_o − α · max(0, l_aug − l_o)

This is RKLD's teacher, here as a model at inference: it never leaves the weights, takes two
forward passes per token, and is weak on paraphrases. α 8 is RKLD's value on TOFU (4 on a book).
Unlike other decodings it is a distribution at every position, so likelihoods are measured through
it as well. `space` and `dead_zone` are ours (inferred): raw logits are not comparable between two
models, a constant added to all of l_aug would change l_t, and log-probabilities have none; in
bfloat16 a logit's rounding is multiplied by α, which a dead zone leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, PrivateAttr

from suture.config import FrozenConfig
from suture.inference.decoding import second_model
from suture.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from suture.inference.loading import LoadedModel


def unlearning_logits(
    original: torch.Tensor,
    augmented: torch.Tensor,
    alpha: float,
    *,
    space: Literal["logit", "logprob"] = "logit",
    dead_zone: float = 0.0,
) -> torch.Tensor:
    """l_t of logits (..., V) each, in float32: what rose by more than `dead_zone` falls by α times
    the rise, the rest stays. `space` logprob: log-softmax of both first."""
    original, augmented = original.float(), augmented.float()
    if space == "logprob":
        original, augmented = original.log_softmax(-1), augmented.log_softmax(-1)
    rise = (augmented - original).clamp(min=0)
    if dead_zone > 0:
        rise = torch.where(rise > dead_zone, rise, rise.new_zeros(()))
    return original - alpha * rise


class WhosHarryPotter(FrozenConfig):
    """Settings of the teacher; `use` sets an augmented model that is already loaded."""

    augmented: Path | None = Field(
        None, description="checkpoint or LoRA folder of the model trained further on what to forget"
    )
    alpha: float = Field(8.0, ge=0, description="α: how far a raised logit is lowered; 0 = nothing")
    space: Literal["logit", "logprob"] = Field("logit", description="what is compared")
    dead_zone: float = Field(0.0, ge=0, description="rises up to this do not count")
    _augmented: Any = PrivateAttr(None)

    def use(self, augmented: LoadedModel) -> WhosHarryPotter:
        """The same with this augmented model."""
        self._augmented = augmented
        return self

    @property
    def identity(self) -> dict[str, Any]:
        settings = self.model_dump(exclude={"augmented"})
        known = None if self._augmented is None else self._augmented.fingerprint
        return {"name": "whos-harry-potter", **settings, "augmented": known}

    def voices(
        self, lm: LoadedModel, system: str | None
    ) -> Sequence[tuple[LoadedModel, str | None]]:
        return [(lm, system), (self._second(lm), system)]

    def heard(self, step: int) -> int:
        return 2

    def combine(self, step: int, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        width = min(one.shape[-1] for one in logits)  # embeddings padded to other widths
        original, augmented = (one[..., :width] for one in logits)
        return unlearning_logits(
            original, augmented, self.alpha, space=self.space, dead_zone=self.dead_zone
        )

    def wrap(self, lm: LoadedModel) -> LoadedModel:
        """`lm` as a model whose logits are l_t, wherever they are asked for.

        Nothing is kept in an answer cache: its keys know one model's weights. Errors: E533 without
        an augmented model, or with one of another tokenizer.
        """
        pair = _Pair([lm.model, self._second(lm).model], lambda logits: self.combine(0, logits))
        whole = _Whole(self.identity)
        return replace(lm, model=cast("PreTrainedModel", pair), decoding=whole, cache=None)

    def _second(self, lm: LoadedModel) -> LoadedModel:
        self._augmented = second_model(
            lm,
            self.augmented,
            self._augmented,
            role="an augmented one",
            option="whos-harry-potter:augmented",
        )
        found: LoadedModel = self._augmented
        return found


class _Whole:
    """The decoding of a model that is already wrapped: its own logits, and what it is."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity

    def voices(
        self, lm: LoadedModel, system: str | None
    ) -> Sequence[tuple[LoadedModel, str | None]]:
        return [(lm, system)]

    def heard(self, step: int) -> int:
        return 1

    def combine(self, step: int, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        return logits[0]


class _Pair:
    """Two causal models that read the same ids, called as one.

    What scoring and generation ask of a model is here: a call that gives logits and a cache, the
    configuration and the embeddings. Beginnings are not shared (`can_share`), as caches of two
    models are no plain keys and values.
    """

    def __init__(
        self,
        models: Sequence[Any],
        combine: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    ) -> None:
        self.models, self.combine = models, combine
        self.config = models[0].config

    def __call__(
        self, input_ids: torch.Tensor, *, past_key_values: _Caches | None = None, **given: Any
    ) -> SimpleNamespace:
        read = [None] * len(self.models) if past_key_values is None else past_key_values.each
        outs = [
            model(input_ids=input_ids, past_key_values=cache, **given)
            for model, cache in zip(self.models, read, strict=True)
        ]
        logits = self.combine([out.logits for out in outs])
        return SimpleNamespace(
            logits=logits, past_key_values=_Caches([out.past_key_values for out in outs])
        )

    def get_input_embeddings(self) -> Any:
        return self.models[0].get_input_embeddings()

    def get_output_embeddings(self) -> _Heads:
        heads = [model.get_output_embeddings() for model in self.models]
        return _Heads(list(dict.fromkeys(heads)))  # one, where a model is paired with itself

    @staticmethod
    def _supports_default_dynamic_cache() -> bool:
        return False


class _Caches:
    """The caches of all models of a pair."""

    def __init__(self, each: list[Any]) -> None:
        self.each = each

    def batch_select_indices(self, rows: torch.Tensor) -> None:
        for cache in self.each:
            cache.batch_select_indices(rows)


class _Heads:
    """The output matrices of all models of a pair: a hook on one is a hook on all."""

    def __init__(self, each: Sequence[Any]) -> None:
        self.each = each

    def register_forward_pre_hook(self, hook: Any) -> _Handles:
        return _Handles([head.register_forward_pre_hook(hook) for head in self.each])


class _Handles:
    def __init__(self, each: Sequence[Any]) -> None:
        self.each = each

    def remove(self) -> None:
        for handle in self.each:
            handle.remove()


DECODING = WhosHarryPotter
