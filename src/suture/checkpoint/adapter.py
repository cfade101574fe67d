"""`AdapterCheckpoint`: a PEFT LoRA folder over its base, merged tensor by tensor while reading.

W' = W + s·B·A in float32, rounded once to W's dtype, with s = lora_alpha / r (or / √r with
rank-stabilised scaling): what PEFT's `merge_and_unload` computes in float32, without loading the
model or importing PEFT. Rows are merged in blocks whose size depends on the matrix alone, so that
neither tiles nor memory change a bit. Everything an adapter can do beyond that is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.checkpoint import dtypes, folder
from suture.checkpoint.chunks import rechunk
from suture.checkpoint.hashes import Content
from suture.checkpoint.jsonfile import read_json
from suture.checkpoint.reader import needs_base
from suture.checkpoint.rounding import Rounding
from suture.checkpoint.source import (
    TILE,
    TensorInfo,
    TensorSource,
    iter_tiles,
    lookup,
    source_fingerprint,
    stored,
)
from suture.checkpoint.tiles import ShardFile, scan
from suture.errors import SutureError
from suture.lazy import torch
from suture.progress import track

# Settings that do not change what is merged. Any other key must be empty or false.
_HARMLESS = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern "
    "layers_to_transform loftq_config lora_alpha lora_dropout lora_ga_config megatron_core "
    "peft_type peft_version qalora_group_size r rank_pattern revision runtime_config "
    "target_modules task_type use_rslora".split()
)
# Initialisations that leave the base's weights alone; PiSSA, OLoRA, CorDA and LoftQ change them.
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")
_PREFIX = "base_model.model."
_BLOCK = 1 << 18  # entries merged at a time
_PART = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<ab>[AB])(?:\.default)?\.weight|lora_embedding_(?P<emb>[AB])"
    r"(?:\.default)?)"
)
_REGEX_MARKS = re.compile(r"[\\*+?\[\](){}|]")


@dataclass(frozen=True)
class _Pair:
    """The two factors of one merged matrix. `transposed`: the base stores (in, out)."""

    a: TensorInfo
    b: TensorInfo
    scale: float
    transposed: bool

    @property
    def parts(self) -> dict[str, TensorInfo]:
        """Both factors by name."""
        return {"a": self.a, "b": self.b}


class AdapterCheckpoint:
    """A base model with a PEFT LoRA adapter merged into it while it is read.

    Behaves like a `Checkpoint` of the merged model: `path` and `config` are the base's, `tensors`
    has the base's names, dtypes and shapes. `trained_on`: the model its config names, a folder or a
    Hub name. `measured`: note how much rounding loses. Errors: E106 a pickled adapter, E120 a
    feature that is not plain LoRA, E121 an adapter that does not fit this base.
    """

    def __init__(self, base: TensorSource, path: Path | str, *, measured: bool = False) -> None:
        self.base, self.adapter_path = base, Path(path)
        self.path, self.config = base.path, base.config
        self.tensors: Mapping[str, TensorInfo] = base.tensors
        self.ties: Mapping[str, str] = getattr(base, "ties", {})
        self.stored_aliases: Mapping[str, TensorInfo] = getattr(base, "stored_aliases", {})
        settings = _open_settings(self.adapter_path)
        named = settings.get("base_model_name_or_path")
        self.trained_on = named if isinstance(named, str) and named else None
        self._file = ShardFile(
            folder.inside(self.adapter_path, folder.ADAPTER_WEIGHTS), folder.ADAPTER_WEIGHTS
        )
        self._pairs = _match(self._file.tensors, settings, base, str(self.adapter_path))
        self._known: dict[str, Content] = {}
        self._measured = measured
        self.rounding: dict[str, Rounding] = {}  # of merged tensors that were read, if measured

    @property
    def merged(self) -> tuple[str, ...]:
        """Names of the tensors the adapter changes."""
        return tuple(self._pairs)

    def describe(self, name: str) -> dict[str, Any]:
        """What is added to a merged tensor: rank, scale, bytes of the factors, and their hashes."""
        pair = self._pairs[name]
        size = sum(info.nbytes for info in pair.parts.values())
        hashes = {part: self._file.content(info).hash for part, info in pair.parts.items()}
        return {"rank": pair.a.shape[0], "scale": pair.scale, "bytes": size, **hashes}

    def read(self, name: str) -> torch.Tensor:
        """The merged tensor in the base's dtype; E117 if it holds NaN or Inf."""
        pair = self._pairs.get(lookup(self, name).name)
        if pair is None:
            return self.base.read(name)
        info = self.tensors[name]
        return dtypes.from_bytes(bytearray().join(self._rows(name, pair)), info.dtype, info.shape)

    def read_bytes(self, name: str) -> bytes:
        """The merged tensor's raw bytes."""
        if name not in self._pairs:
            return self.base.read_bytes(name)
        return b"".join(self._rows(name, self._pairs[name]))

    def tiles(self, name: str, size: int = TILE) -> Iterator[memoryview]:
        """The raw bytes in tiles of `size`."""
        if name not in self._pairs:
            yield from iter_tiles(self.base, name, size)
            return
        yield from rechunk(self._rows(name, self._pairs[name]), size)

    def _rows(self, name: str, pair: _Pair) -> Iterator[bytes]:
        """The merged matrix block by block, as raw bytes; the rounding is known at the end."""
        info, rounding = self.tensors[name], Rounding()
        left, right = self._factor(pair.b), self._factor(pair.a)
        if pair.transposed:
            left, right = right.T, left.T
        columns = info.shape[1]
        step = max(1, _BLOCK // max(1, columns))
        raw = iter_tiles(self.base, name, max(1, step * columns * dtypes.word(info.dtype)))
        for index, tile in enumerate(raw):
            weight = dtypes.from_bytes(bytearray(tile), info.dtype, (-1, columns))
            delta = (left[index * step : (index + 1) * step] @ right) * pair.scale
            wide = weight.double() if info.dtype == "F64" else weight.float()
            merged = (wide + delta).to(weight.dtype)
            if not bool(torch.isfinite(merged.to(wide.dtype)).all()):
                raise SutureError(
                    "E117", f"NaN or infinite values in '{name}'", where=str(self.adapter_path)
                )
            if self._measured:
                rounding.add(weight, delta, merged)
            yield dtypes.to_bytes(merged)
        self.rounding[name] = rounding

    def plain_shard(self, name: str) -> ShardFile | None:
        """The base's shard when the adapter changes nothing in it."""
        if any(self.tensors[changed].file == name for changed in self._pairs):
            return None
        plain = getattr(self.base, "plain_shard", None)
        return plain(name) if plain is not None else None

    def stored(self, name: str) -> tuple[ShardFile, TensorInfo] | None:
        """Where the base stores a tensor that the adapter leaves alone."""
        return None if name in self._pairs else stored(self.base, name)

    def tensor_hash(self, name: str) -> str:
        """BLAKE3 of the merged bytes."""
        if name not in self._pairs:
            return self.base.tensor_hash(name)
        if name not in self._known:
            self._known[name] = scan(lookup(self, name).dtype, self.tiles(name))
        return self._known[name].hash

    def fingerprint(self) -> str:
        """The merged model's fingerprint: the same as that of the merged checkpoint on disk."""
        self.check_finite()
        return source_fingerprint(self)

    def check_finite(self) -> None:
        """SutureError E117 when the base or a merged tensor holds NaN or Inf."""
        check = getattr(self.base, "check_finite", None)
        if check is not None:
            check()
        for name in track(self._pairs, "merging adapter"):
            self.tensor_hash(name)

    def _factor(self, info: TensorInfo) -> torch.Tensor:
        raw = bytearray(info.nbytes)
        self._file.read_into(memoryview(raw), info.start)
        return dtypes.from_bytes(raw, info.dtype, info.shape).float()


def _open_settings(path: Path) -> dict[str, Any]:
    """adapter_config.json, vetted: E120 names the first thing that is not plain LoRA."""
    folder.require_folder(path)
    folder.refuse_foreign(path)
    where = path / folder.ADAPTER_CONFIG
    if not where.is_file():
        raise SutureError(
            "E102",
            f"no {folder.ADAPTER_CONFIG}",
            where=str(path),
            why="without it neither rank nor scale of an adapter is known",
            fix="give the folder that PEFT's save_pretrained wrote",
        )
    settings = read_json(folder.inside(path, folder.ADAPTER_CONFIG))
    if not (path / folder.ADAPTER_WEIGHTS).is_file():
        raise SutureError(
            "E107",
            f"no {folder.ADAPTER_WEIGHTS}",
            where=str(path),
            why="the factors of the adapter are missing",
            fix="copy it from where the adapter was trained (safetensors, not a pickle)",
        )

    def unsupported(feature: str) -> SutureError:
        return SutureError(
            "E120",
            f"adapter uses {feature}",
            where=str(where),
            why="merging it as plain LoRA would give another model than the one trained",
            fix="merge it with PEFT (merge_and_unload, save_pretrained) and give the merged folder",
        )

    if settings.get("peft_type") != "LORA":
        raise unsupported(f"peft_type {settings.get('peft_type')!r}")
    if settings.get("bias", "none") != "none":
        raise unsupported(f"bias={settings['bias']!r}")
    if settings.get("init_lora_weights", True) not in _PLAIN_INIT:
        raise unsupported(f"init_lora_weights={settings['init_lora_weights']!r}")
    for key, value in settings.items():
        if key not in _HARMLESS and value not in (None, False, "none", [], {}):
            raise unsupported(f"{key}={str(value)[:60]}")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = settings.get(key) or {}
        if not isinstance(pattern, dict):
            raise unsupported(f"a {key} that is not a map")
        for name, value in pattern.items():
            if _REGEX_MARKS.search(name) or not _positive(value):
                raise unsupported(f"{key} {name[:60]!r}: {value!r}")
    if type(settings.get("r")) is not int or not _positive(settings.get("lora_alpha", 8)):
        raise unsupported(f"r={settings.get('r')!r}, lora_alpha={settings.get('lora_alpha')!r}")
    return settings


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _match(
    parts: Mapping[str, TensorInfo], settings: dict[str, Any], base: TensorSource, where: str
) -> dict[str, _Pair]:
    """Pair A with B and find the base tensor each pair changes, in checkpoint order; E121."""

    def misfit(what: str) -> SutureError:
        return SutureError(
            "E121",
            f"the adapter does not fit the base: {what}",
            where=where,
            why="it was trained on another model",
            fix="give the model it was trained on (base_model_name_or_path in its config)",
        )

    factors: dict[str, dict[str, TensorInfo]] = {}
    for name, info in parts.items():
        found = _PART.fullmatch(name.removeprefix(_PREFIX))
        if found is None:
            raise SutureError(
                "E120",
                f"adapter holds '{name}', which is no LoRA factor",
                where=where,
                fix="merge it with PEFT and give the merged folder",
            )
        factors.setdefault(found["module"], {})[found["ab"] or found["emb"]] = info
    pairs: dict[str, _Pair] = {}
    for module, both in factors.items():
        if set(both) != {"A", "B"}:
            raise misfit(f"'{module}' has only lora_{'/'.join(both)}")
        target = base.tensors.get(f"{module}.weight")
        if target is None:
            raise misfit(f"no tensor '{module}.weight'")
        if target.dtype not in dtypes.FLOATS:
            raise misfit(f"'{target.name}' holds {target.dtype}, not plain floats")
        a, b = both["A"], both["B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise misfit(f"'{module}': factors {list(b.shape)} x {list(a.shape)}")
        rank = _pattern(settings.get("rank_pattern"), module, settings["r"])
        if a.shape[0] != rank:
            raise misfit(f"'{module}' has rank {a.shape[0]}, its config says {rank}")
        alpha = _pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", 8))
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        shape = (b.shape[0], a.shape[1])
        turned = "lora_embedding" in a.name or bool(settings.get("fan_in_fan_out"))
        fits = [
            flip for flip in (turned, not turned) if target.shape == shape[:: -1 if flip else 1]
        ]
        if not fits:
            raise misfit(f"'{target.name}' is {list(target.shape)}, the adapter's {list(shape)}")
        pairs[target.name] = _Pair(a, b, scale, fits[0])
    if not pairs:
        raise misfit("it holds no factors")
    return {name: pairs[name] for name in base.tensors if name in pairs}


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that is the module's name or its dotted suffix ('^' anchors)."""
    for key, value in (patterns or {}).items():
        plain = key.removeprefix("^").removesuffix("$")
        if module == plain or (not key.startswith("^") and module.endswith(f".{plain}")):
            return value
    return default


def open_adapter(path: Path | str, base: TensorSource | None) -> AdapterCheckpoint:
    """The merged model; SutureError E119 without a base."""
    if base is None:
        raise needs_base(Path(path))
    return AdapterCheckpoint(base, path)
