"""From a finished sweep to the exact recipe of one setting."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.checkpoint.jsonfile import write_json
from suture.errors import SutureError
from suture.runs.folder import RunFolder
from suture.runs.recipe import MethodSpec, Recipe
from suture.runs.sweep.facts import Facts, SettingFacts
from suture.runs.sweep.outcome import (
    FILE,
    against_picked,
    asked_for,
    chosen,
    read_facts,
)
from suture.runs.sweep.page import write_page


def pick(
    folder: str | Path,
    out: str | Path,
    *,
    where: str | None = None,
    best: str | None = None,
    setting: str | None = None,
) -> dict[str, Any]:
    """Choose a setting, write its recipe to `out`, and mark it in the sweep's page.

    `where`, `best`: as in the recipe, whose own hold for what is not given. `setting`: its number
    or key instead. The choice sees the selection split alone. Returns the setting's facts, with
    `recipe` and `by`. Raises SutureError E737 to E740, E742 (the file exists).
    """
    folder, out = Path(folder), Path(out)
    facts = read_facts(folder)
    if setting is not None:
        row, by = _named(facts, setting), f"--setting {setting}"
    else:
        where = facts["where"] if where is None else where
        best = facts["best"] if best is None else best
        row, by = chosen(facts, where, best), asked_for(where, best)
    if out.exists():
        raise SutureError(
            "E742", "the file exists", where=str(out), fix="choose another name with -o"
        )
    text = recipe_text(folder, facts, row, by, out)
    with RunFolder.open(folder).lock(wait=True):
        facts["picked"], facts["why"] = row["key"], by
        facts["limits"] = where if setting is None else None
        against_picked(folder, facts)
        write_json(folder / FILE, facts)
        write_page(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8") as file:
        file.write(text)
    return {**row, "axes": facts["axes"], "by": by, "recipe": str(out)}


def recipe_text(folder: Path, facts: Facts, row: SettingFacts, by: str, out: Path) -> str:
    """The recipe as YAML: what the sweep ran for this setting, and nothing else. Its header says
    where it comes from."""
    import yaml

    recipe = setting_recipe(folder, row)
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    values["method"] = {"name": row["method"], **row["knobs"]}
    run = folder / "settings" / row["key"]
    assert row["selection"] is not None  # whoever was chosen was measured
    scores = row["selection"]["scores"]
    told = ", ".join(f"{metric} {scores[metric]:.3f}" for metric in facts["axes"])
    quoted = shlex.quote(str(out))
    head = [
        f"{facts['title']}: setting {row['number']} of a sweep ({row['label']}).",
        "",
        f"  suture run {quoted} -o {shlex.quote(str(run))}     (goes on with what the sweep did)",
        f"  suture run {quoted} -o FOLDER     (from the beginning)",
        "",
        f"Chosen by: {by}",
        f"On the rows it was chosen by: {told}.",
        "The suites below are on other rows.",
    ]
    lines = [f"# {' '.join(line.splitlines())}".rstrip() for line in head]
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return "\n".join(lines) + "\n\n" + body


def setting_recipe(folder: Path, row: Mapping[str, Any]) -> Recipe:
    """The ordinary run of a setting, as the sweep's folder has it."""
    from suture.checkpoint.jsonfile import read_json

    values = dict(read_json(folder / "recipe.json")["recipe"])
    values.pop("sweep", None)
    spec = MethodSpec(name=row["method"], **row["knobs"])
    recipe = Recipe.load(values, where=folder / "recipe.json")
    return recipe.model_copy(update={"method": spec})


def _named(facts: Facts, setting: str) -> SettingFacts:
    for row in facts["settings"]:
        if setting in (str(row["number"]), row["key"]):
            if row["selection"] is None:
                raise SutureError(
                    "E740", f"setting {setting} could not be derived", where=row["failed"]
                )
            return row
    raise SutureError(
        "E740",
        f"there is no setting '{setting}'",
        fix=f"give a number from 1 to {len(facts['settings'])}",
    )
