"""`suture lab build|path|gates|ship`: the miniature world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.terminal import emit, emit_json, table

if TYPE_CHECKING:
    from suture.lab.gates import GateOutcome
    from suture.lab.memory import MemoryRecipe

Recipe = Annotated[Path | None, typer.Option(help="another recipe than recipes/lab.yaml")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


def build(
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of the family")],
    data: Annotated[Path, typer.Option(help="folder of the public data sets")],
    recipe: Recipe = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the family")] = 0,
    json: Json = False,
) -> None:
    """Train one family from public data and hold it against its gates; resumable."""
    from suture.lab.family import build as build_family
    from suture.lab.family import read_recipe
    from suture.lab.gates import check
    from suture.lab.memory import build_memory, check_memory
    from suture.recipes import recipe_path

    loaded, memory = read_recipe(recipe or recipe_path("lab")), _memory_recipe()
    family = build_family(loaded, data, output, seed=seed)
    build_memory(memory, data, family)
    _finish(check(family, loaded.gates), check_memory(family, memory.gates), json=json)


def path(
    name: Annotated[str, typer.Argument(help="a member, or rows: safety, calibration")],
    json: Json = False,
) -> None:
    """Print the folder of a shipped member (a patched one is written to the cache first), or the
    file of the shipped rows."""
    from suture.lab import shipped

    found = str(shipped.rows(name) if name in shipped.ROWS else shipped.path(name))
    if json:
        emit_json({"name": name, "path": found})
    else:
        emit(found)


def gates(
    folder: Annotated[Path, typer.Argument(help="folder that `lab build` made")],
    recipe: Recipe = None,
    json: Json = False,
) -> None:
    """Measure a family again and hold it against the gates of its recipe."""
    from suture.lab.family import open_family, read_recipe
    from suture.lab.gates import check
    from suture.lab.memory import check_memory
    from suture.recipes import recipe_path

    family = open_family(folder)
    found = [check(family, read_recipe(recipe or recipe_path("lab")).gates)]
    if (folder / "memory.json").exists():
        found.append(check_memory(family, _memory_recipe().gates))
    _finish(*found, json=json)


def ship(
    folder: Annotated[Path, typer.Argument(help="folder that `lab build` made")],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write")],
    recipe: Recipe = None,
    json: Json = False,
) -> None:
    """Pack a family that passed its gates: aligned as a checkpoint, the rest as patches on it."""
    from suture.lab.family import open_family, read_recipe
    from suture.lab.ship import ship as pack
    from suture.recipes import recipe_path

    about = pack(open_family(folder), read_recipe(recipe or recipe_path("lab")), output)
    if json:
        emit_json(about)
    else:
        emit(f"wrote {output}: {len(about['fingerprints'])} members, {about['bytes']:,} bytes")


def _memory_recipe() -> MemoryRecipe:
    from suture.lab.memory import read_memory_recipe
    from suture.recipes import recipe_path

    return read_memory_recipe(recipe_path("lab-memory"))


def _finish(first: GateOutcome, *others: GateOutcome, json: bool) -> None:
    """Print the outcomes: of the family, and of what its remembering members know."""
    outcomes = [first, *others]
    passed = all(outcome.passed for outcome in outcomes)
    if json:
        memory = {"memory": others[0].as_dict()} if others else {}
        emit_json({**first.as_dict(), **memory, "passed": passed})
    else:
        rows = [row.as_row() for outcome in outcomes for row in outcome.rows]
        emit(table(rows, ("gate", "bound", "found", "")))
    if not passed:
        raise typer.Exit(3)


COMMANDS: dict[str, Callable[..., Any]] = {
    "lab build": build,
    "lab path": path,
    "lab gates": gates,
    "lab ship": ship,
}
