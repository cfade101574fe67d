"""Where the shipped recipes are: beside this file in an installed package, else in the checkout."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.config import read_yaml
from suture.errors import SutureError, nearest, spelt

# what does a recipe of each kind, and what such a recipe is called
_KINDS = {
    "lab build": "a recipe of the lab",
    "run": "the recipe of a whole run",
    "sweep": "the recipe of a sweep",
    "train": "a training recipe",
}
# verb: the kinds it takes; `run` refuses a sweep by itself, with other advice
_TAKES = {
    "run": ("run", "sweep"),
    "plan": ("run", "sweep"),
    "sweep": ("run", "sweep"),
    "train": ("train",),
}


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
    name = spelt(name, known)
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


def verb_of(values: Mapping[str, Any]) -> str | None:
    """What does a recipe, by its keys: run, sweep, train or lab build; None where nothing fits."""
    for verb, marks in (
        ("lab build", {"gates"}),
        ("sweep", {"sweep"}),
        ("run", {"approaches"}),
        ("run", {"models", "method"}),
        ("train", {"objective", "train"}),
        ("run", {"suites", "roles"}),
    ):
        if marks & values.keys():
            return verb
    return None


def check_there(file: Path) -> None:
    """E703 for a shipped recipe's name where a file is wanted; what else is absent shows later."""
    if not file.exists() and file.stem in shipped_recipes() and file.suffix in ("", ".yaml"):
        raise SutureError(
            "E703",
            "there is no such file",
            where=str(file),
            why="shipped recipes go by name in `suture init` only, which writes a copy to edit",
            fix=f"did you mean `suture init {file.stem} -o {file.stem}.yaml`?",
        )


def check_kind(file: Path, verb: str) -> None:
    """E573 for a recipe that another verb than `verb` takes."""
    check_there(file)
    found = verb_of(read_yaml(file))
    if found is not None and found not in _TAKES[verb]:
        command = "suture lab build" if found == "lab build" else f"suture {found} {file}"
        raise SutureError(
            "E573", f"this is {_KINDS[found]}", where=str(file), fix=f"use it with: {command}"
        )


def placed(text: str, source: Path, out: Path) -> str:
    """A shipped recipe's text as it stands in `out`: commands name that file, and what is shipped
    beside it (rows, other recipes) goes by its full path."""

    def beside(found: re.Match[str]) -> str:
        file = source.parent / found.group().removeprefix("recipes/")
        return str(file) if file.is_file() else found.group()

    text = re.sub(
        rf"(?<![\w/.-])(?:recipes/)?{re.escape(source.name)}", shlex.quote(str(out)), text
    )
    return re.sub(
        r"\bdata/[\w./-]+\.(?:jsonl|yaml)\b|(?<![\w/.-])recipes/[\w-]+\.yaml\b", beside, text
    )
