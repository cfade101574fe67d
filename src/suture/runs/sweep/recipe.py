"""The recipe of a sweep: an ordinary one, and a section that says what varies and how to choose.

    sweep:
      grid: {removed: [0.4, 0.7, 1.0], balance: [0.03, 0.1]}   # a list is an axis
      selection: {task: {data: dev.jsonl}}   # where knobs are chosen; else a share of each suite
      split: 0.5                             # this share
      where: safety >= 0.9, task >= before - 0.03
      best: safety                           # decides when several fit

`grid` may be a list of such mappings; one with `name` is of another method. The suites of the
recipe itself give the numbers that are reported, on rows that no choice has seen.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from suture.config import FrozenConfig, read_yaml
from suture.errors import SutureError, nearest
from suture.runs.recipe import (
    Lines,
    MethodSpec,
    Recipe,
    Resolver,
    checked,
    read_values,
    with_method,
)
from suture.runs.sweep.choose import Bound, full_name, parse_where

Knobs = dict[str, Any]


class Sweep(FrozenConfig):
    """The section `sweep` of a recipe."""

    grid: tuple[Knobs, ...] = Field(
        (), description="knob -> values; a list of such mappings for several methods"
    )
    selection: dict[str, Any] = Field(
        default_factory=dict, description="suites on other rows, to choose by; as under `suites`"
    )
    split: float = Field(
        0.5, gt=0, lt=1, description="share of a suite's rows to choose by, without `selection`"
    )
    where: str | None = Field(None, description="constraints, such as: safety >= 0.9, task >= 0.5")
    best: str | None = Field(None, description="the metric that decides when several settings fit")
    report: Literal["auto", "front", "picked"] = Field(
        "auto",
        description="settings that are measured on the report split; auto: the chosen one where "
        "there are constraints, else the front",
    )
    cache: Path | None = Field(None, description="folder that settings share; default: in the run")

    @field_validator("grid", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @field_validator("where", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return ", ".join(map(str, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Setting:
    """One point of the grid. `key`: names its folder, from the method and all its knobs; `given`:
    the knobs as the recipe says them; `recipe`: the ordinary run of it, on the report split."""

    number: int
    key: str
    method: str
    label: str
    given: Knobs
    recipe: Recipe


@dataclass(frozen=True)
class SweepRecipe:
    """Everything that decides a sweep. `report`: the recipe of the reported numbers; `selection`:
    the same with the suites that settings are chosen by."""

    sweep: Sweep
    report: Recipe
    selection: Recipe
    settings: tuple[Setting, ...]
    bounds: tuple[Bound, ...]
    best: str | None

    @property
    def reports_front(self) -> bool:
        """Whether the whole front is measured on the report split."""
        asked = bool(self.bounds) or self.best is not None
        return self.sweep.report == "front" or (self.sweep.report == "auto" and not asked)

    @property
    def axes(self) -> tuple[str, ...]:
        """The metrics of the roles, targets first, each once."""
        roles = sorted(self.report.roles, key=lambda role: role.role != "target")
        return tuple(dict.fromkeys(role.metric for role in roles))


def is_sweep(path: str | Path) -> bool:
    """Whether a recipe file has the section `sweep`."""
    return "sweep" in read_yaml(path)


def read_sweep(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    resolve: Resolver | None = None,
    limit: int | None = None,
) -> SweepRecipe:
    """Read and check the recipe of a sweep. `limit`: of every suite, for a short trial.

    Raises what `read_recipe` raises, E735 for the grid, E736 when both splits share rows, E739 for
    constraints.
    """
    path = Path(path)
    values, lines = read_values(path, overrides)
    section = values.pop("sweep", None) or {}
    below = {at[1:]: line for at, line in lines.items() if len(at) > 1 and at[0] == "sweep"}
    sweep = Sweep.load(section, where=path, lines=below)
    if sweep.cache is not None:
        there = path.resolve().parent / sweep.cache.expanduser()
        sweep = sweep.model_copy(update={"cache": there})
    if not isinstance(values.get("suites"), Mapping):
        checked(values, path, lines, resolve)  # says what is wrong
    suites = _suites(values, limit)
    roles = {str(role.get("metric", "")).partition(".")[0] for role in _mappings(values, "roles")}
    others = _suites({"suites": sweep.selection}, limit)
    if stray := sorted(set(others) - set(suites)):
        close = nearest(stray[0], suites)
        raise SutureError(
            "E735",
            f"the suite '{stray[0]}' is selected by and not reported",
            where=f"{path}:{below.get(('selection', stray[0]), '')}".rstrip(":"),
            fix=f"did you mean '{close}'?" if close else "add it under `suites` too",
        )
    divided = [name for name in suites if name in roles and name not in others]
    chosen = {**others, **{n: {**suites[n], "part": [0.0, sweep.split]} for n in divided}}
    told = {n: {**s, "part": [sweep.split, 1.0]} if n in divided else s for n, s in suites.items()}
    moved = {("suites", *at[1:]): line for at, line in below.items() if at[0] == "selection"}
    report = checked({**values, "suites": told}, path, lines, resolve)
    selection = checked({**values, "suites": chosen}, path, {**lines, **moved}, resolve)
    check_apart(selection, report)
    settings = _settings(sweep, report, path, lines)
    bounds, best = constraints(report, selection, sweep.where, sweep.best)
    return SweepRecipe(sweep, report, selection, settings, bounds, best)


def constraints(
    report: Recipe, selection: Recipe, where: str | None, best: str | None
) -> tuple[tuple[Bound, ...], str | None]:
    """`where` and `best` with their metrics by full name. Raises SutureError E739."""
    metrics = measured_metrics(selection)
    named = {role.metric for role in report.roles}
    sides = ("before",) if selection.reference is None else ("before", "reference")
    bounds = parse_where(where or "", metrics, named, sides)
    return bounds, None if best is None else full_name(best, metrics, named)


def measured_metrics(recipe: Recipe) -> list[str]:
    """Every SUITE.METRIC that the suites of a recipe can give."""
    from suture.suites import load_suite

    return [
        f"{label}.{metric}"
        for label, spec in recipe.suites.items()
        for metric in load_suite(spec.suite or label, spec.options).metrics
    ]


def check_apart(selection: Recipe, report: Recipe) -> None:
    """E736 when a prompt stands on both sides in suites of one kind."""
    from suture.data import same_text

    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for label, spec in selection.suites.items():
        kind = spec.suite or label
        items = spec.items(label)
        seen |= {(kind, same_text(item.prompt)): (label, item.id) for item in items}
    shared = []
    for label, spec in report.suites.items():
        kind = spec.suite or label
        shared += [
            (seen[place], (label, item.id))
            for item in spec.items(label)
            if (place := (kind, same_text(item.prompt))) in seen
        ]
    if shared:
        (one, first), (other, second) = shared[0]
        raise SutureError(
            "E736",
            f"{len(shared)} prompts stand on both sides: row '{first}' to choose by is row "
            f"'{second}' of the report",
            where=one if one == other else f"{one} and {other}",
            why="numbers on rows that settings were chosen by are too good",
            fix="give other rows under `sweep.selection`, or none: a share is then kept apart",
        )


def _suites(values: Mapping[str, Any], limit: int | None) -> dict[str, dict[str, Any]]:
    """The suites as mappings, short forms written out; what is no mapping is for `checked`."""
    found: dict[str, dict[str, Any]] = {}
    given = values.get("suites")
    for name, spec in (given if isinstance(given, Mapping) else {}).items():
        whole = spec if isinstance(spec, Mapping) else {} if spec is None else {"data": spec}
        found[str(name)] = {**whole, **({} if limit is None else {"limit": limit})}
    return found


def _mappings(values: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    given = values.get(key)
    return [one for one in given if isinstance(one, Mapping)] if isinstance(given, list) else []


def _settings(sweep: Sweep, base: Recipe, path: Path, lines: Lines) -> tuple[Setting, ...]:
    """Every point of every grid, once, in order."""
    if not any(sweep.grid):
        raise SutureError(
            "E735",
            "there is no grid: nothing varies",
            where=str(path),
            fix="add `sweep: {grid: {KNOB: [VALUE, VALUE]}}`, or --grid KNOB=VALUE,VALUE",
        )
    found: dict[str, tuple[str, Knobs, Recipe]] = {}
    for place, grid in enumerate(sweep.grid):
        name = str(grid.get("name", base.method.name))
        axes = {knob: _values(knob, one, path) for knob, one in grid.items() if knob != "name"}
        fixed = base.method.config if name == base.method.name else {}
        for point in itertools.product(*axes.values()):
            given = dict(zip(axes, point, strict=True))
            spec = MethodSpec(name=name, **{**fixed, **given})
            at = (
                ("sweep", "grid") if ("sweep", "grid", 0) not in lines else ("sweep", "grid", place)
            )
            recipe = with_method(base, spec, path, lines, *at)
            config = recipe.method_config().model_dump(mode="json")
            text = json.dumps([name, config], sort_keys=True)
            key = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
            found.setdefault(key, (name, given, recipe))
    varied = _varied(found.values())
    return tuple(
        Setting(number, key, name, _label(name, given, varied), given, recipe)
        for number, (key, (name, given, recipe)) in enumerate(found.items(), 1)
    )


def _values(knob: str, value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    if not value:
        raise SutureError(
            "E735", f"the axis '{knob}' has no values", where=str(path), fix="give at least one"
        )
    return value


def _varied(points: Any) -> set[tuple[str, str]]:
    """(method, knob) of which there are several values, or which not every point gives."""
    shown: dict[tuple[str, str], set[str]] = {}
    count: dict[str, int] = {}
    for name, given, _ in points:
        count[name] = count.get(name, 0) + 1
        for knob, value in given.items():
            shown.setdefault((name, knob), set()).add(json.dumps(value, default=str))
    return {place for place, values in shown.items() if len(values) > 1 or count[place[0]] == 1}


def _label(name: str, given: Knobs, varied: set[tuple[str, str]]) -> str:
    parts = [f"{knob} {_shown(value)}" for knob, value in given.items() if (name, knob) in varied]
    return ", ".join(parts) or name


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
