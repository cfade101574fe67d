"""Where the shipped recipes are: beside this file in an installed package, else in the checkout."""

from __future__ import annotations

from pathlib import Path

from suture.errors import SutureError, nearest


def recipes_folder() -> Path:
    """The folder with the shipped `*.yaml`."""
    here = Path(__file__).resolve().parent
    return here if any(here.glob("*.yaml")) else here.parents[2] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name to file of every shipped recipe, by name."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """A shipped recipe by name. Raises SutureError E723 that names the nearest."""
    known = shipped_recipes()
    if name in known:
        return known[name]
    close = nearest(name, known)
    raise SutureError(
        "E723",
        f"there is no recipe '{name}'",
        fix=f"did you mean '{close}'?" if close else f"one of: {', '.join(known)}",
    )


def headline(path: Path) -> str:
    """The recipe's first comment line: what it is for."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ")
    return ""
