"""A model that has learnt nothing: its configuration checked, its weights drawn.

Every matrix is drawn by its own name, so architectures that share a tensor (embeddings, attention)
begin with the same numbers under the same seed: what they differ in is what was changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from suture.errors import SutureError, nearest
from suture.lazy import torch, transformers
from suture.models import Architecture
from suture.rng import generator

OWN = ("suture-decoder", "suture-encoder")
_FOR = {"causal": "suture-decoder", "masked": "suture-encoder"}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")


def check_shape(shape: Mapping[str, Any], objective: str) -> None:
    """What can be said of a configuration without torch: for our own model types everything.

    Errors: E701, E702 and E970 to E973, as `suture.models.Architecture`; E946 no model type; E965
    one of ours that is not for the objective; E966 dropout.
    """
    kind = shape.get("model_type")
    if not isinstance(kind, str):
        raise _no_type(kind, OWN)
    if kind in OWN:
        _architecture(shape)
        if kind != _FOR[objective]:
            raise SutureError(
                "E965",
                f"a {kind} does not learn by the objective {objective}",
                where="model.model_type",
                fix=f"set model.model_type={_FOR[objective]}, or another pretrain.objective",
            )
    for key, value in shape.items():
        if "dropout" in key and value:
            raise SutureError(
                "E966",
                f"model.{key} is {value}, and nothing is dropped out in a training",
                where=f"model.{key}",
                why="a run that was killed could not go on in the same bytes",
                fix="leave it out",
            )


def model_config(
    shape: Mapping[str, Any], facts: Mapping[str, Any], *, block: int
) -> transformers.PreTrainedConfig:
    """The configuration of a new model: `shape` with what the packed text (`facts`) decides.

    Errors: those of `check_shape`; E946 no such model type, or a shape that cannot be; E947 a
    context shorter than a block; E949 a vocabulary smaller than the tokenizer's.
    """
    from suture.models import register

    register()
    shape = dict(shape)
    kind = shape.pop("model_type", None)
    known = transformers.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        raise _no_type(kind, list(known.keys()))
    vocabulary, end = int(facts["vocabulary"]), int(facts["end"])
    own: Any = known[kind]
    names = dict(own.attribute_map or {})  # GPT-2 calls max_position_embeddings n_positions
    shape = {names.get(key, key): value for key, value in shape.items()}
    plain = {} if kind in OWN else own().to_dict()
    context = names.get("max_position_embeddings", "max_position_embeddings")
    decided = {
        "vocab_size": vocabulary, context: block, "bos_token_id": None, "eos_token_id": end,
        "pad_token_id": int(facts.get("pad", end)),
    }  # fmt: skip
    if kind not in OWN and context not in plain:
        del decided[context]  # it reads as far as it likes
    shape = {**decided, **shape}
    for key, least, code, what in (
        ("vocab_size", vocabulary, "E949", "the tokenizer has"),
        (context, block, "E947", "a block has"),
    ):
        if key in shape and (not isinstance(shape[key], int) or shape[key] < least):
            raise SutureError(
                code,
                f"model.{key} is {shape[key]}, and {what} {least} tokens",
                where=f"model.{key}",
                fix=f"leave it out, or set model.{key}={least}",
            )
    if kind in OWN:
        ids = {name: shape[name] for name in _IDS if name in shape}
        config: transformers.PreTrainedConfig = own.of(_architecture(shape), **ids)
        return config
    for key in shape:
        if key not in plain:
            close = nearest(key, [*plain, *names])
            raise SutureError(
                "E946",
                f"a {kind} model has no '{key}'",
                where=f"model.{key}",
                fix=f"did you mean '{close}'?" if close else "take it out",
            )
    try:
        return known[kind](**shape)
    except Exception as error:  # transformers' configurations have many validators
        raise _impossible(error) from error


def _architecture(shape: Mapping[str, Any]) -> Architecture:
    apart = ("model_type", *_IDS)
    try:
        return Architecture.load({k: v for k, v in shape.items() if k not in apart}, where="model")
    except SutureError as error:
        if error.where == "model":
            raise
        raise SutureError(
            error.code, error.what, where=f"model.{error.where}", why=error.why, fix=error.fix
        ) from None


def _no_type(kind: object, known: Iterable[str]) -> SutureError:
    close = nearest(str(kind), known)
    return SutureError(
        "E946",
        f"there is no model_type {kind!r}",
        where="model.model_type",
        fix=f"did you mean '{close}'?" if close else f"set model.model_type={OWN[0]}",
    )


def new_model(
    shape: Mapping[str, Any],
    objective: str,
    facts: Mapping[str, Any],
    *,
    block: int,
    seed: int,
    device: str = "auto",
) -> Any:
    """A float32 model on its device, in evaluation mode, with weights drawn from `seed`.

    `objective`: `causal` or `masked`. Matrices are normal with the configuration's
    `initializer_range`; what is no matrix starts as its class starts it. Errors: as `model_config`;
    E507 a device that is not there; E964 a model that sees the tokens that it is to predict.
    """
    from suture.inference.loading import check_device
    from suture.models import initialise

    check_device(device)
    config = model_config(shape, facts, block=block)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(config, objective)
    if config.model_type in OWN:
        initialise(model, seed)
    else:
        _redraw(model, float(getattr(config, "initializer_range", 0.02)), seed)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    if objective == "causal":
        _check_causal(model)
    return model


def _check_causal(model: Any) -> None:
    """Error E964: another last token changes what is predicted before it (BERT with a causal head,
    unless it is told to be a decoder)."""
    ids = torch.arange(8, device=next(model.parameters()).device)[None] + 2
    other = ids.clone()
    other[0, -1] += 1
    with torch.no_grad():
        one, two = (model(input_ids=read).logits[0, :-1].float() for read in (ids, other))
    if (one - two).abs().max() > 1e-3 * one.abs().max():
        kind = model.config.model_type
        raise SutureError(
            "E964",
            f"this {kind} model sees the tokens that it is to predict",
            where="pretrain.objective=causal",
            why="its loss would be that of copying, and no measure of the model",
            fix="set model.is_decoder=true"
            if hasattr(model.config, "is_decoder")
            else "use objective masked, or another model_type",
        )


def size_of(config: transformers.PreTrainedConfig, objective: str) -> int:
    """The parameters that a model of this configuration has; none is made."""
    with torch.device("meta"):
        return parameters(_made(config, objective))


def parameters(model: Any) -> int:
    """All of a model's parameters, shared ones once."""
    return sum(weight.numel() for weight in model.parameters())


def _made(config: transformers.PreTrainedConfig, objective: str) -> Any:
    """A float32 model with the head that the objective needs. Error E946: there can be none."""
    maker: Any = {
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
    }[objective]
    try:
        return maker.from_config(config, dtype=torch.float32)
    except SutureError:
        raise
    except Exception as error:  # heads that do not divide, and the like
        raise _impossible(error) from error


def _redraw(model: Any, spread: float, seed: int) -> None:
    """Every matrix normal, by its own name; what is no matrix stays as its class has it."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                drawn = generator(seed, name).standard_normal(tuple(weight.shape), dtype="float32")
                weight.copy_(torch.from_numpy(drawn * spread))


def _impossible(error: Exception) -> SutureError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # a validator names itself on the first line, and what it objects to on the next
    line = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or type(error).__name__
    return SutureError(
        "E946",
        f"there can be no such model: {line}",
        where="model",
        fix="correct model in the recipe",
    )
