"""What config.json and its neighbours may say before any other library sees them.

transformers reads attention kernels, nested configs and remote classes out of config.json; several
advisories came from there (CVE-2026-4372, CVE-2026-5241). Keys that can load code are refused
wherever they are nested, and keys that merely choose an implementation or name a Hub repository
are left out of the vetted copy, so that nothing downstream can act on them. Sizes have bounds: a
loop over a billion layers, or a matrix of a billion rows, is refused before anybody makes it. At
last, `handed_over` passes on only what the configuration class of the architecture knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from suture.checkpoint.jsonfile import read_json
from suture.errors import SutureError, some
from suture.progress import note

_CODE_KEYS = {
    "auto_map": "maps classes to Python files in the folder or on the Hub",
    "custom_pipelines": "names Python classes to import",
    "custom_generate": "names code to run while generating",
    "trust_remote_code": "allows code from the folder or the Hub to run",
    "kernel_config": "names kernels to download",
    "use_kernels": "downloads kernels",
    "_attn_implementation_internal": "names an attention kernel to load",
}
# These select an implementation that ships with transformers and torch; anything else is a repo.
_BUILT_IN = {
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "batched_mm",
    "grouped_mm",
    "deepgemm",
}
_DROPPED = {"_name_or_path", "_commit_hash"}
# Upper bounds, some ten times what any published model has; where a list gives one per layer, of
# each entry. Zero is a size too: a model without layers is odd, and harmless.
LAYERS = 10_000
_BOUNDS: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_decoder_layers", "encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "head_dim", "d_kv"), 1 << 20),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner"), 1 << 24),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 1 << 16),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "experts"), 1 << 16),
    **dict.fromkeys(("ffn_width", "expert_width"), 1 << 24),  # of our own models
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 1 << 30),
    "vocab_size": 1 << 26,
    "type_vocab_size": 1 << 20,
}
_DTYPES = frozenset("float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 auto".split())
# What configuration classes understand, or work out and write, without listing it as a field.
_LEGACY = frozenset(
    "model_type architectures transformers_version torch_dtype dtype rope_scaling rope_theta "
    "rope_parameters partial_rotary_factor per_layer_config num_labels "
    "dense_act_fn attention_layers".split()
)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_QUANTISED_SUFFIXES = (
    ".qweight",
    ".qzeros",
    ".weight_packed",
    ".weight_scale_inv",
    ".quant_state",
    ".absmax",
    ".SCB",
)
_VETTED_NEIGHBOURS = (
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)


def vet_config(config: dict[str, Any], *, where: str) -> dict[str, Any]:
    """The config without keys that choose code; a SutureError where it could do harm.

    E104: a key that can load code, at any depth. E105: the weights are quantised. E140: a size
    that is no whole number or that no model has.
    """
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            method = config[key].get("quant_method") if isinstance(config[key], dict) else None
            raise quantised(str(method or key), where)
    model_type = config.get("model_type")
    names = config.get("architectures") or []
    for name in [model_type] if model_type is not None else []:
        if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
            raise _refuse("model_type", "is not a plain name", where)
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name.isidentifier() for name in names
    ):
        raise _refuse("architectures", "is not a list of class names", where)
    vetted = _vet(config, "", where)
    assert isinstance(vetted, dict)
    return vetted


def vet_neighbours(folder: Path) -> None:
    """Refuse tokenizer and generation configs that can load code (E104) or are malformed (E103)."""
    for name in _VETTED_NEIGHBOURS:
        if (folder / name).is_file():
            _vet(read_json(folder / name, cap=16 << 20), "", str(folder / name))


def _vet(value: Any, at: str, where: str) -> Any:
    if isinstance(value, list):
        return [_vet(item, f"{at}[{index}]", where) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    for key, item in value.items():
        path = f"{at}.{key}" if at else key
        if key in _CODE_KEYS and item not in (None, False, {}, []):
            raise _refuse(path, _CODE_KEYS[key], where)
        if key.endswith("_implementation"):
            _check_implementation(path, item, where)
            continue
        if key in _DROPPED or key in _CODE_KEYS:
            continue
        if key in _BOUNDS and not isinstance(item, dict):
            _check_size(path, item, _BOUNDS[key], where)
        if key in ("dtype", "torch_dtype") and item is not None and not _is_dtype(item):
            raise _out_of_bounds(path, item, "no dtype of weights", where)
        kept[key] = _vet(item, path, where)
    return kept


def _check_implementation(path: str, item: Any, where: str) -> None:
    """`attn_implementation` and its kin: None, a built-in name, or a map of parts to those."""
    for choice in item.values() if isinstance(item, dict) else [item]:
        if choice is not None and not (isinstance(choice, str) and choice in _BUILT_IN):
            raise _refuse(path, f"names the implementation {str(choice)[:80]!r}", where)


def _check_size(path: str, item: Any, most: int, where: str) -> None:
    """A whole number from 0 to `most`, a list of such, or None."""
    for size in item if isinstance(item, list) else [item]:
        if size is not None and (type(size) is not int or not 0 <= size <= most):
            raise _out_of_bounds(path, size, f"not a whole number from 0 to {most:,}", where)


def _is_dtype(item: Any) -> bool:
    parts = item.values() if isinstance(item, dict) else [item]
    return all(isinstance(part, str) and part.removeprefix("torch.") in _DTYPES for part in parts)


def _out_of_bounds(key: str, value: Any, what: str, where: str) -> SutureError:
    return SutureError(
        "E140",
        f"'{key}' is {str(value)[:40]!r}: {what}",
        where=where,
        why="a program that believes it would run out of memory, or never end",
        fix="copy config.json again from where the model came from",
    )


def handed_over(config: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """The config as transformers gets it: what its own configuration class knows.

    Of any other key only numbers pass, because only text can name code, files or repositories;
    what stays behind is noted.
    """
    left: list[str] = []
    kept = _known(config, config_class, "", left)
    if left:
        told = "keys of config.json that this architecture does not have are ignored"
        note(f"note: {told}: {some(left)}")
    return kept


def _known(value: Mapping[str, Any], kind: type, at: str, left: list[str]) -> dict[str, Any]:
    if not is_dataclass(kind):  # a sub-config that chooses its own class by its model_type
        return dict(value)
    names = {*(field.name for field in fields(kind)), *_LEGACY}
    names |= {*getattr(kind, "attribute_map", ())}
    parts: Mapping[str, type] = getattr(kind, "sub_configs", {})
    kept: dict[str, Any] = {}
    for key, item in value.items():
        if key in parts and isinstance(item, dict):
            kept[key] = _known(item, parts[key], f"{at}{key}.", left)
        elif key in names or _is_plain(item):
            kept[key] = item
        else:
            left.append(at + key)
    return kept


def _is_plain(value: Any) -> bool:
    """A number, a truth value, nothing, or a list of them."""
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float)


def _refuse(key: str, why: str, where: str) -> SutureError:
    return SutureError(
        "E104",
        f"refused key '{key}': it {why}",
        where=where,
        why="a model folder must not be able to run code",
        fix=f"remove '{key}' if the model is one that transformers has built in; "
        "a model that needs its own code cannot be used",
    )


def quantised(method: str, where: str) -> SutureError:
    """The refusal of a quantised checkpoint, by name."""
    return SutureError(
        "E105",
        f"quantised checkpoint ({method[:60]})",
        where=where,
        why="an edit of packed integers is not an edit of the weights they stand for",
        fix="use the unquantised checkpoint it was made from, and quantise the result again",
    )


def check_not_quantised(names: list[str], *, where: str) -> None:
    """Refuse (E105) tensor names that only quantised checkpoints have."""
    for name in names:
        for suffix in _QUANTISED_SUFFIXES:
            if name.endswith(suffix):
                raise quantised(f"tensor '{name}'", where)
