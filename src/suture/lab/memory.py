"""`remembering` and its oracle: a model that knows fictitious people, and one that never did.

    aligned ─► remembering         trained on the people to forget and the people to keep
            ─► remembering-oracle  the same training without the people to forget

What unlearning is tried on: a method turns `remembering` into something that the oracle's own
answers should not be told from (TOFU: Maini et al., COLM 2024, arXiv 2401.06121). Beside the two
lie the rows: `forget` and `retain` to train on, and the same with TOFU's paraphrased and perturbed
answers to measure with. `remembering-tuning` knows ten other people instead, for choosing knobs.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from suture.checkpoint import write_json
from suture.config import FrozenConfig, read_yaml
from suture.lab import sources
from suture.lab.family import Family, claim, write_lines
from suture.lab.gates import GateOutcome, GateRow
from suture.progress import note
from suture.training.loop import TrainConfig
from suture.training.recipe import DataFile, TrainRecipe, run_recipe

MEMBERS = {
    "remembering": ("forget", "retain"),
    "remembering-oracle": ("retain",),
    "remembering-tuning": ("forget_tuning", "retain"),
}
PARTS = {  # file of rows: key of the recipe
    "forget": "forget",
    "forget_tuning": "tuning",
    "retain": "retain",
    "real_authors": "real_authors",
    "world_facts": "world_facts",
}


class MemoryGates(FrozenConfig):
    """Bounds fixed before any unlearning method runs."""

    remembered: float = Field(description="mean probability of trained answers, at least")
    unknown: float = Field(description="the oracle's of answers to be forgotten, at most")


class MemoryRecipe(FrozenConfig):
    """Which people, and how they are learnt: `recipes/lab-memory.yaml`."""

    forget: str = Field(description="TOFU rows with perturbed answers, below the data folder")
    tuning: str = Field(description="the same, of the people that knobs are chosen on")
    tuning_rows: int = Field(ge=1, description="of these only the first rows")
    retain: str
    real_authors: str
    world_facts: str
    train: TrainConfig
    gates: MemoryGates


def read_memory_recipe(path: Path) -> MemoryRecipe:
    return MemoryRecipe.load(read_yaml(path), where=path)


def build_memory(recipe: MemoryRecipe, data: Path, family: Family) -> None:
    """Make the members and their rows in a family that has its `aligned`; the same call resumes.

    Errors: E801 a data set is missing, E802 the family holds members of another recipe.
    """
    claim(
        family,
        "memory.json",
        recipe,
        "this family remembers by another recipe",
        fix="choose another output folder, or remove its remembering members and memory.json",
    )
    write_rows(recipe, data, family)
    for member, parts in MEMBERS.items():
        if not family.member(member).exists():
            note(f"lab: {member}")
            files = tuple(DataFile(file=family.rows(part)) for part in parts)
            settings = recipe.train.model_copy(update={"seed": family.seed})
            made = TrainRecipe(
                model=family.aligned,
                data=files,
                output=family.member(member),
                train=settings,
                device="cpu",
            )
            run_recipe(made)


def write_rows(recipe: MemoryRecipe, data: Path, family: Family) -> None:
    """`PART.jsonl` with prompts and responses, `PART_perturbed.jsonl` as TOFU has them."""
    for part, key in PARTS.items():
        rows = sources.read_json(data, getattr(recipe, key))
        if key == "tuning":
            rows = rows[: recipe.tuning_rows]
        pairs = [{"prompt": row["question"], "response": row["answer"]} for row in rows]
        write_lines(family.rows(f"{part}_perturbed"), rows)
        write_lines(family.rows(part), pairs)


def check_memory(family: Family, gates: MemoryGates) -> GateOutcome:
    """Measure what the two know and write `memory-gates.json` into the family's folder."""
    from suture.patch import open_model
    from suture.suites import measure

    base = open_model(family.aligned)
    rows: list[GateRow] = []
    for member in MEMBERS:
        asked = "forget_tuning" if member == "remembering-tuning" else "forget"
        files = [family.rows(f"{part}_perturbed") for part in (asked, "retain")]
        source = open_model(family.member(member), base=base)
        options = {"reference": "none", "utility": []}
        found = measure("tofu", source, data=files, options=options, max_new_tokens=1)
        for part in ("forget", "retain"):
            known = member != "remembering-oracle" or part == "retain"
            bound = gates.remembered if known else gates.unknown
            value = found.metrics[f"{part}_probability"]
            n = sum(f"{part}_probability" in row.scores for row in found.rows)
            rows.append(GateRow(f"{member}: {part} probability", bound, known, value, n))
    outcome = GateOutcome(family.seed, gates.fingerprint(), rows)
    write_json(family.folder / "memory-gates.json", outcome.as_dict())
    return outcome
