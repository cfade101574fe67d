"""What config.json and its neighbours may say before any other library sees them.

transformers reads attention kernels, nested configs and remote classes out of config.json; several
advisories came from there (CVE-2026-4372, CVE-2026-5241). Keys that can load code are refused
wherever they are nested, and keys that merely choose an implementation or name a Hub repository
are left out of the vetted copy, so that nothing downstream can act on them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from suture.checkpoint.jsonfile import read_json
from suture.errors import SutureError

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
_VETTED_NEIGHBOURS = ("tokenizer_config.json", "generation_config.json", "processor_config.json")


def vet_config(config: dict[str, Any], *, where: str) -> dict[str, Any]:
    """The config without keys that choose code; SutureError E104 or E105 where it would load some.

    E104: a key that can load code, at any depth. E105: the weights are quantised.
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
        kept[key] = _vet(item, path, where)
    return kept


def _check_implementation(path: str, item: Any, where: str) -> None:
    """`attn_implementation` and its kin: None, a built-in name, or a map of parts to those."""
    for choice in item.values() if isinstance(item, dict) else [item]:
        if choice is not None and choice not in _BUILT_IN:
            raise _refuse(path, f"names the implementation {str(choice)[:80]!r}", where)


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
