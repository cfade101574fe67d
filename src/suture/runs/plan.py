"""What a run will touch, need and take, from headers and rows alone; torch is not imported.

Memory and disk are upper estimates; time is a rough one, from a short matrix product on this
machine, for the CPU. What cannot work (other shapes, too little disk) is said before it starts.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data import Pair, read_jsonl
from suture.lazy import np
from suture.runs.extras import Extra, extra_of
from suture.runs.recipe import Recipe

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource

BASE_MEMORY = 400 * 2**20  # python, torch and transformers themselves
_CHARS_PER_TOKEN = 4.0  # English text; more tokens in other scripts
_DECODE_SHARE = 0.15  # of the matrix product's speed that token-by-token decoding reaches
_STEP_SECONDS = 0.4e-3  # per layer and decoding step, whatever the size
_BATCH = 32
FIXED_SECONDS = 8.0  # imports, hashing, the report


@dataclass(frozen=True)
class Plan:
    """The costs of a recipe. Bytes and seconds; `touched`: tensor names the method may edit.

    `extras`: judge and decoding of a suite, in words; `cache`: where answers are kept.
    """

    recipe: str
    method: str
    models: dict[str, dict[str, Any]]
    tensors: int
    parameters: int
    touched: list[str]
    touched_parameters: int
    suites: dict[str, int]
    peak_memory: int
    memory_there: int | None
    disk: int
    disk_free: int
    seconds: float
    warnings: list[str]
    extras: dict[str, str] = field(default_factory=dict)
    cache: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def plan(recipe: Recipe, folder: str | Path = ".") -> Plan:
    """The plan of running `recipe` in `folder`.

    Opens every model's headers, compares layouts and reads all rows, so it raises what a run would
    raise in its first second, and never writes.
    """
    from suture.checkpoint import compare_layouts
    from suture.methods.common import row_kind, scoped_names
    from suture.runs.pipeline import open_sources

    sources = open_sources(recipe)
    base = sources[recipe.before]
    again = False
    for name, source in sources.items():
        if source is not base:
            names = (recipe.before, name)
            compare_layouts(base, source, names=names, edited=names[0], again=again)
            again = True
    method = recipe.method_config()
    touched = scoped_names(
        base,
        getattr(method, "scope", "model"),
        matrices=not getattr(method, "streamed", True),
        parts=getattr(method, "edits_parts", False),
    )
    rows = {n: read_jsonl(s.file, row_kind(n), limit=s.limit) for n, s in recipe.data.items()}
    items = {label: items_of(recipe, label) for label in recipe.suites}
    sizes = {name: numel(base, [name]) for name in touched}
    extras = extras_of(recipe, items, base)
    measuring = measuring_memory(recipe, base) + max(one.memory for one in extras.values())
    memory = max(measuring, deriving_memory(method, base, rows))
    disk = _disk(recipe, base, touched)
    root = existing(Path(folder))
    free = shutil.disk_usage(root).free
    there = memory_there()
    warnings = shortages(memory, there, disk, free)
    for name, source in sources.items():
        warnings += [f"{name}: {problem}" for problem in getattr(source, "problems", list)()]
    return Plan(
        recipe=recipe.name,
        method=recipe.method.name,
        models={name: about(source) for name, source in sources.items()},
        tensors=len(base.tensors),
        parameters=numel(base, base.tensors),
        touched=touched,
        touched_parameters=sum(sizes.values()),
        suites={label: len(prompts) for label, (prompts, _) in items.items()},
        peak_memory=memory,
        memory_there=there,
        disk=disk,
        disk_free=free,
        seconds=_seconds(recipe, base, items, rows, extras),
        warnings=warnings,
        extras={label: one.told for label, one in extras.items() if one.told},
        cache=None if recipe.cache is None else str(recipe.cache),
    )


def extras_of(
    recipe: Recipe, items: Mapping[str, tuple[list[str], int]], base: TensorSource
) -> dict[str, Extra]:
    """What judges and decodings add, by suite."""
    return {
        label: extra_of(label, recipe.suites[label], len(prompts), new, base)
        for label, (prompts, new) in items.items()
    }


def about(source: TensorSource) -> dict[str, Any]:
    """What `plan` shows of a model."""
    adapter = getattr(source, "adapter_path", None)
    parts = [str(source.path)]
    parts += [f"adapter {adapter.name}"] if adapter is not None else []
    parts += [f"patch {patch.path.name}" for patch in getattr(source, "patches", ())]
    return {
        "path": " + ".join(parts),
        "architecture": (source.config.get("architectures") or ["?"])[0],
        "parameters": numel(source, source.tensors),
        "bytes": sum(info.nbytes for info in source.tensors.values()),
        "dtypes": sorted({info.dtype for info in source.tensors.values()}),
    }


def numel(source: TensorSource, names: Any) -> int:
    """Parameters in the tensors `names`."""
    return sum(math.prod(source.tensors[name].shape) for name in names)


def items_of(recipe: Recipe, label: str) -> tuple[list[str], int]:
    """The prompts of a suite, and its new tokens per item."""
    from suture.suites import load_suite

    spec = recipe.suites[label]
    suite = load_suite(spec.suite or label, spec.options)
    prompts = [item.prompt for item in spec.items(label)]
    return prompts, spec.max_new_tokens or suite.max_new_tokens


def _compute_bytes(recipe: Recipe, base: TensorSource) -> int:
    """The weights in the compute dtype; `auto` is taken as float32, its worst."""
    width = 2 if recipe.dtype == "bfloat16" else 4
    return width * numel(base, base.tensors)


def measuring_memory(recipe: Recipe, base: TensorSource) -> int:
    """Two models side by side (the one measured, and `before` for log-probabilities), a batch."""
    return BASE_MEMORY + 2 * _compute_bytes(recipe, base) + batch_memory(base)


def shortages(memory: int, there: int | None, disk: int, free: int) -> list[str]:
    """Warnings where bytes are short; `there`: of memory, None where the system does not say."""
    found = []
    if there is not None and memory > there:
        found.append("peak memory is above what is free now; the run may be killed")
    if disk > free:
        found.append("the disk is too full; free some space or choose another folder")
    return found


def batch_memory(base: TensorSource) -> int:
    """Of the rows that are generated at once."""
    vocabulary = int(base.config.get("vocab_size") or 0)
    layers = int(base.config.get("num_hidden_layers") or 0)
    hidden = int(base.config.get("hidden_size") or 0)
    return _BATCH * 512 * 4 * (2 * layers * hidden + vocabulary)


def deriving_memory(method: Any, base: TensorSource, rows: dict[str, list[Pair]]) -> int:
    """IRR goes block by block; another method that looks at activations holds one model in float32,
    its rows' hidden states and one matrix with its moments in float64; the others hold a few copies
    of one tensor."""
    from suture.methods.common import scoped_names
    from suture.methods.irr import IRR
    from suture.runs.irr_memory import irr_memory

    parts = getattr(method, "edits_parts", False)
    names = scoped_names(base, getattr(method, "scope", "model"), parts=parts)
    if isinstance(method, IRR):
        return BASE_MEMORY + irr_memory(method, base, names, rows, tokens_of)
    largest = max(numel(base, [name]) for name in names)
    if maps := getattr(method, "importance_maps", 0):  # one model, its gradients' maps, a batch
        batch = 2**29
        held = 4 * numel(base, base.tensors) + 4 * maps * numel(base, names)
        return BASE_MEMORY + held + batch + 8 * 4 * largest
    if not getattr(method, "needs_refusals", False) and getattr(method, "solver", "none") == "none":
        return BASE_MEMORY + 6 * 8 * largest
    hidden = int(base.config.get("hidden_size") or 0)
    widest = max(max(base.tensors[name].shape) for name in names)
    tokens = sum(
        tokens_of(row.prompt) + tokens_of(row.response or "") for r in rows.values() for row in r
    )
    matrix = 8 * (6 * largest + 4 * widest**2)
    return BASE_MEMORY + 4 * numel(base, base.tensors) + 8 * tokens * hidden + matrix


def _disk(recipe: Recipe, base: TensorSource, touched: Sequence[str]) -> int:
    """Patch (at most the touched tensors and a mask), reports, the checkpoint if written."""
    patch = sum(base.tensors[name].nbytes * 9 // 8 for name in touched)
    whole = sum(info.nbytes for info in base.tensors.values()) if recipe.write else 0
    return 2 * patch + whole + 32 * 2**20


def _seconds(
    recipe: Recipe,
    base: TensorSource,
    items: dict[str, tuple[list[str], int]],
    rows: dict[str, list[Pair]],
    extras: Mapping[str, Extra],
) -> float:
    """Rough: products at this machine's measured speed, plus a fixed cost per decoding step."""
    sides = 2 if recipe.reference is None else 3
    speed = flops()
    measuring = sides * measuring_seconds(base, items, speed, extras)
    return round(FIXED_SECONDS + measuring + deriving_seconds(base, rows, speed), 1)


def measuring_seconds(
    base: TensorSource,
    items: Mapping[str, tuple[list[str], int]],
    speed: float,
    extras: Mapping[str, Extra] | None = None,
) -> float:
    """Of all suites on one model, replies at full length. `speed`: products per second."""
    parameters = numel(base, base.tensors)
    layers = int(base.config.get("num_hidden_layers") or 1)
    total = 0.0
    for label, (prompts, new) in items.items():
        extra = (extras or {}).get(label, Extra())
        read = sum(map(tokens_of, prompts))
        steps = new * math.ceil(len(prompts) / _BATCH)
        forward = 2.0 * parameters * (2 * read + new * len(prompts)) / speed
        decode = 2.0 * parameters * new * len(prompts) / (speed * _DECODE_SHARE)
        total += extra.passes * (forward + decode + steps * layers * _STEP_SECONDS)
        total += extra.products / speed
    return total


def deriving_seconds(base: TensorSource, rows: dict[str, list[Pair]], speed: float) -> float:
    """Of one derivation that passes over all `rows`."""
    tokens = sum(
        tokens_of(row.prompt) + tokens_of(row.response or "") for r in rows.values() for row in r
    )
    return 2.0 * numel(base, base.tensors) * tokens * 8 / speed


def flops() -> float:
    """float32 products per second on this machine: the best of a few small ones."""
    a = np.ones((384, 384), dtype=np.float32)
    best = math.inf
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2.0 * 384**3 / best


def tokens_of(text: str) -> int:
    """About how many tokens `text` takes."""
    return math.ceil(len(text) / _CHARS_PER_TOKEN) + 4


def memory_there() -> int | None:
    """Memory that can be had now, in bytes; None where the system does not say."""
    from suture.inference.loading import free_memory

    if (free := free_memory()) is not None:
        return free
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
