"""Our architectures as transformers sees them: one configuration class per head.

The fields are those of `Architecture`, and a configuration is valid when that is; what else is here
transformers asks for.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, ClassVar

from suture.lazy import transformers
from suture.models.architecture import Architecture, Kind

_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id")
_SPELT = {"top_k": "num_experts_per_tok"}  # `top_k` of a config is about sampling


def _fields(namespace: dict[str, Any]) -> None:
    """The body of `_Fields`: a dataclass field for each field of `Architecture`."""
    namespace["__module__"] = __name__
    notes = namespace["__annotations__"] = {}
    for name, field in Architecture.model_fields.items():
        spelt = _SPELT.get(name, name)
        notes[spelt], namespace[spelt] = field.annotation, field.default
    for name in _IDS:
        notes[name], namespace[name] = int | list[int] | None, None
    notes["use_cache"], namespace["use_cache"] = bool, True


if TYPE_CHECKING:
    _Fields = transformers.PreTrainedConfig
else:
    _Fields = types.new_class("_Fields", (transformers.PreTrainedConfig,), exec_body=_fields)


class SutureConfig(_Fields):
    """What both heads share. Raises SutureError E701, E702 and E970 to E973 like `Architecture`."""

    kind: ClassVar[Kind]

    def __post_init__(self, **others: Any) -> None:
        super().__post_init__(**others)  # type: ignore[no-untyped-call]
        self.architecture  # noqa: B018  (refuses what no model can be)

    @property
    def architecture(self) -> Architecture:
        """The same facts, typed."""
        names = Architecture.model_fields
        values = {name: getattr(self, _SPELT.get(name, name)) for name in names}
        return Architecture.load(values, where="config")

    @classmethod
    def of(cls, arch: Architecture, **others: Any) -> SutureConfig:
        """A configuration of this architecture; `others`: token ids and the like."""
        values = {_SPELT.get(name, name): value for name, value in arch.model_dump().items()}
        return cls(**values, **others)


class SutureDecoderConfig(SutureConfig):  # type: ignore[no-untyped-call]
    """Of `SutureDecoder`."""

    model_type = "suture-decoder"
    kind = "decoder"


class SutureEncoderConfig(SutureConfig):  # type: ignore[no-untyped-call]
    """Of `SutureEncoder`."""

    model_type = "suture-encoder"
    kind = "encoder"
