"""What a sweep will touch, need and take, from headers and rows alone; torch is not imported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data import read_jsonl
from suture.methods.common import row_kind, scoped_names
from suture.runs.binding import wanted
from suture.runs.pipeline import open_sources
from suture.runs.plan import (
    FIXED_SECONDS,
    deriving_memory,
    deriving_seconds,
    extras_of,
    flops,
    items_of,
    measuring_seconds,
    plan,
    shortages,
)
from suture.runs.sweep.recipe import SweepRecipe

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource

_AGAIN = 0.5  # of a first derivation: what is not found in the cache (sweep.md: 0.08 to 0.44)
_PAGES = 4 * 2**20  # measurements with replies, a page


@dataclass(frozen=True)
class SweepPlan:
    """The costs of a sweep. Bytes and seconds.

    `settings`: what each is called. `selection`, `report`: rows of the suites that settings are
    chosen by, and of those that are reported. `parts`: seconds of deriving all settings, of
    measuring all on the selection split, and of measuring on the report split the models as they
    are and, at most, every setting. `patches`, `cache`: their bytes on the disk, at most.
    """

    recipe: str
    settings: list[str]
    models: dict[str, dict[str, Any]]
    tensors: int
    touched: int
    selection: dict[str, int]
    report: dict[str, int]
    peak_memory: int
    memory_there: int | None
    patches: int
    cache: int
    disk: int
    disk_free: int
    parts: dict[str, float]
    seconds: float
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def plan_sweep(sweep: SweepRecipe, folder: str | Path = ".") -> SweepPlan:
    """The plan of running `sweep` in `folder`. Raises what `suture.runs.plan` raises."""
    first = plan(sweep.settings[0].recipe, folder)
    chosen = plan(sweep.selection, folder)
    base = open_sources(sweep.report)[sweep.report.before]
    recipe = sweep.report
    rows = {n: read_jsonl(s.file, row_kind(n), limit=s.limit) for n, s in recipe.data.items()}
    speed = flops()
    most_touched, deriving = 0, 0.0
    methods: set[str] = set()
    memory = [first.peak_memory, chosen.peak_memory]
    patches, largest, cached = 0, 0, 0
    for setting in sweep.settings:
        method: Any = setting.recipe.method_config()
        touched = scoped_names(
            base,
            getattr(method, "scope", "model"),
            matrices=not getattr(method, "streamed", True),
            parts=getattr(method, "edits_parts", False),
        )
        most_touched = max(most_touched, len(touched))
        read = {name: own for name, own in rows.items() if name in wanted(method)}
        once = deriving_seconds(base, read, speed)
        deriving += once * (_AGAIN if setting.method in methods else 1)
        methods.add(setting.method)
        one = sum(base.tensors[name].nbytes * 9 // 8 for name in touched)
        patches, largest = patches + one, max(largest, one)
        cached = max(cached, _cache_bytes(method, base, touched))
        memory.append(deriving_memory(method, base, rows))
    sides = 1 if recipe.reference is None else 2
    seconds = {}
    for where, found in (("selection", sweep.selection), ("report", sweep.report)):
        items = {label: items_of(found, label) for label in found.suites}
        seconds[where] = measuring_seconds(base, items, speed, extras_of(found, items, base))
    count = len(sweep.settings)
    most = count if sweep.reports_front else 1
    parts = {
        "deriving": deriving,
        "selection": (sides + count) * seconds["selection"],
        "report": (sides + most) * seconds["report"],
    }
    disk = patches + largest + cached + (count + 1) * _PAGES
    warnings = [line for line in first.warnings if "disk" not in line]
    warnings += shortages(0, None, disk, first.disk_free)
    return SweepPlan(
        recipe=recipe.name,
        settings=[f"{s.method}: {s.label}" if s.label != s.method else s.label
                  for s in sweep.settings],
        models=first.models,
        tensors=first.tensors,
        touched=most_touched,
        selection=chosen.suites,
        report=first.suites,
        peak_memory=max(memory),
        memory_there=first.memory_there,
        patches=patches,
        cache=cached,
        disk=disk,
        disk_free=first.disk_free,
        parts={name: round(value, 1) for name, value in parts.items()},
        seconds=round(FIXED_SECONDS + sum(parts.values()), 1),
        warnings=warnings,
    )  # fmt: skip


def _cache_bytes(method: Any, base: TensorSource, touched: list[str]) -> int:
    """Importance in float32 of every matrix in scope, and with frozen inputs the second moments
    of what enters them, in float64."""
    from suture.checkpoint import roles

    numel = sum(base.tensors[name].numel for name in touched)
    total = 4 * numel * int(getattr(method, "importance_maps", 0))
    if getattr(method, "needs_importance", False):
        total += 4 * numel
    if getattr(method, "inputs", "exact") == "frozen" and method.solver != "none":
        role = roles(touched)
        inputs = [name for name in touched if role[name].matrix not in ("k", "v", "up")]
        sides = 2 if method.solver == "balanced" else 1
        total += sum(8 * sides * base.tensors[name].shape[-1] ** 2 for name in inputs)
    return total
