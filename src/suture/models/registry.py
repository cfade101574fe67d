"""Our model types in transformers' own tables, so that its Auto classes know them."""

from __future__ import annotations

from typing import Any

from suture.lazy import np, torch, transformers
from suture.models.architecture import Architecture, Kind
from suture.models.configuration import SutureDecoderConfig, SutureEncoderConfig
from suture.models.decoder import SutureDecoder
from suture.models.encoder import SutureEncoder


def register() -> None:
    """`AutoConfig`, `AutoModelForCausalLM` and `AutoModelForMaskedLM` take our model types, from
    then on and without remote code. Calling it again changes nothing."""
    for config, model, auto in (
        (SutureDecoderConfig, SutureDecoder, transformers.AutoModelForCausalLM),
        (SutureEncoderConfig, SutureEncoder, transformers.AutoModelForMaskedLM),
    ):
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        auto.register(config, model, exist_ok=True)


def build(
    kind: Kind, arch: Architecture, *, seed: int = 0, **others: Any
) -> SutureDecoder | SutureEncoder:
    """A new model with the weights of `seed` (`initialise`); `others`: token ids and the like."""
    register()
    if kind == "decoder":
        model: Any = SutureDecoder(SutureDecoderConfig.of(arch, **others))  # type: ignore[arg-type]
    else:
        model = SutureEncoder(SutureEncoderConfig.of(arch, **others))  # type: ignore[arg-type]
    initialise(model, seed)
    return model  # type: ignore[no-any-return]


def initialise(model: transformers.PreTrainedModel, seed: int) -> None:
    """Draw all weights anew: normal of `initializer_range`, biases zero, norms one.

    Each tensor depends on the seed, its own name and its shape alone, so that two architectures of
    one seed begin with the same embedding and the same attention.
    """
    from suture.rng import generator

    std = model.config.initializer_range
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bias" in name:
                weight.zero_()
            elif "norm" in name:
                weight.fill_(1.0)
            else:
                drawn = generator(seed, name).standard_normal(tuple(weight.shape), dtype=np.float32)
                weight.copy_(torch.from_numpy(drawn) * std)
