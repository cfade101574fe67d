"""Our own architectures: vanilla, FFN-Wider, CEA and mixtures of experts; decoder and encoder.

`Architecture` and `parameters` need no torch. The first use of any other name registers the model
types with transformers; `register()` does so by itself, for `AutoModelForCausalLM.from_pretrained`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from suture.models.architecture import Architecture, Kind
from suture.models.counts import Parameters, parameters

if TYPE_CHECKING:
    from suture.models.backbone import SutureModel, penalty
    from suture.models.configuration import (
        SutureConfig,
        SutureDecoderConfig,
        SutureEncoderConfig,
    )
    from suture.models.decoder import SutureDecoder
    from suture.models.encoder import SutureEncoder
    from suture.models.outputs import SITES, SutureOutput
    from suture.models.registry import build, initialise, register
    from suture.models.upcycle import upcycle

_WHERE = {
    "SutureModel": "backbone",
    "penalty": "backbone",
    "SutureConfig": "configuration",
    "SutureDecoderConfig": "configuration",
    "SutureEncoderConfig": "configuration",
    "SutureDecoder": "decoder",
    "SutureEncoder": "encoder",
    "SITES": "outputs",
    "SutureOutput": "outputs",
    "build": "registry",
    "initialise": "registry",
    "register": "registry",
    "upcycle": "upcycle",
}

__all__ = [
    "SITES",
    "Architecture",
    "Kind",
    "Parameters",
    "SutureConfig",
    "SutureDecoder",
    "SutureDecoderConfig",
    "SutureEncoder",
    "SutureEncoderConfig",
    "SutureModel",
    "SutureOutput",
    "build",
    "initialise",
    "parameters",
    "penalty",
    "register",
    "upcycle",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'suture.models' has no attribute {name!r}")
    from suture.models.registry import register

    register()
    value = getattr(importlib.import_module(f"suture.models.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
