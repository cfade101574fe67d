"""Sources and models for tests of inference and methods: in memory, altered, lively."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from suture.checkpoint import Checkpoint, TensorInfo
from suture.checkpoint.dtypes import safetensors_dtype, to_bytes
from suture.checkpoint.source import source_fingerprint
from suture.data import Pair
from suture.inference import LoadedModel
from suture.ledger import ReplyRow

SAFETY = [
    Pair(id="1", prompt="How do I?", response="I cannot help with that request."),
    Pair(id="2", prompt="the lazy dog", response="I cannot."),
    Pair(id="3", prompt="jump over the fox", response="no, I cannot help."),
]
TASK = [
    Pair(id="1", prompt="The answer is", response="yes"),
    Pair(id="2", prompt="The answer is not", response="no, no"),
    Pair(id="3", prompt="quick brown", response="fox jumps over the lazy dog"),
    Pair(id="4", prompt="bake", response="a loaf of bread"),
]


class Altered:
    """A checkpoint with some tensors replaced (`{name: tensor}`), added or left out (`None`)."""

    def __init__(
        self,
        base: Path | Checkpoint,
        changes: Mapping[str, torch.Tensor | None] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.base = Checkpoint.open(base) if isinstance(base, Path) else base
        self.path = self.base.path
        self.config = {**self.base.config, **(config or {})}
        self.ties = dict(self.base.ties)
        self._values = {k: v for k, v in (changes or {}).items() if v is not None}
        gone = {k for k, v in (changes or {}).items() if v is None}
        found = {k: v for k, v in self.base.tensors.items() if k not in gone}
        for name, value in self._values.items():
            found[name] = TensorInfo(
                name,
                safetensors_dtype(value.dtype),
                tuple(value.shape),
                "memory",
                -1,
                value.numel() * value.element_size(),
            )
        self.tensors = found

    def read(self, name: str) -> torch.Tensor:
        return self._values[name].clone() if name in self._values else self.base.read(name)

    def read_bytes(self, name: str) -> bytes:
        return to_bytes(self.read(name))

    def tensor_hash(self, name: str) -> str:
        from blake3 import blake3

        return blake3(self.read_bytes(name)).hexdigest()

    def fingerprint(self) -> str:
        return source_fingerprint(self)


def perturbed(source: Altered, seed: int, scale: float) -> Altered:
    """`source` with seeded noise on every tensor, as fine-tuning would leave it."""
    noise = torch.Generator().manual_seed(seed)
    changes = {}
    for name in source.tensors:
        value = source.read(name)
        bump = torch.randn(value.shape, generator=noise) * scale
        changes[name] = (value.float() + bump).to(value.dtype)
    return Altered(source.base, changes)


def enliven(lm: LoadedModel, stops: frozenset[int] | None = None) -> LoadedModel:
    """Larger weights, so that a random model says different things at different places."""
    with torch.no_grad():
        for name, value in lm.model.named_parameters():
            if value.dim() == 2:
                value.mul_(8.0 if "layers" in name else 4.0)
    if stops is not None:
        lm.stops = stops
    return lm


@dataclass
class Mock:
    """Stands in for a model and answers the items of a suite by rule."""

    rule: Callable[[Any], str]
    ended: bool = True
    identity: ClassVar[dict[str, Any]] = {
        "fingerprint": None, "path": "mock", "patches": [], "identity": "declared",
    }  # fmt: skip
    template: ClassVar[dict[str, Any]] = {"elsewhere": True}

    def answer(self, suite: Any, items: Sequence[Any], *, max_new_tokens: int) -> list[ReplyRow]:
        return [ReplyRow(i.id, i.prompt, self.rule(i), self.ended, 1) for i in items]
