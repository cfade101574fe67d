"""The remembering models: who learns what, and gates that say whether they did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny_llama
from suture.errors import SutureError
from suture.lab.family import Family
from suture.lab.memory import (
    MEMBERS,
    MemoryGates,
    MemoryRecipe,
    build_memory,
    check_memory,
    read_memory_recipe,
    write_rows,
)
from suture.patch import open_model
from suture.recipes import recipe_path
from suture.suites import measure

PARTS = ("forget", "tuning", "retain", "real_authors", "world_facts")


def fact(part: str, number: int) -> dict[str, Any]:
    return {
        "question": f"Where does {part} {number} live?",
        "answer": f"In town {number} of {part}.",
        "paraphrased_answer": f"Town {number} of {part}.",
        "perturbed_answer": [f"In town {number + k} of nowhere." for k in (1, 2)],
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "tofu"
    folder.mkdir(parents=True)
    for part in PARTS:
        lines = [json.dumps(fact(part, i)) for i in range(6)]
        (folder / f"{part}.json").write_text("\n".join(lines))
    return folder.parent


@pytest.fixture
def family(tmp_path: Path) -> Family:
    tiny_llama(tmp_path / "family" / "aligned", dtype="bfloat16")
    return Family(tmp_path / "family", 0)


def recipe(**changes: Any) -> MemoryRecipe:
    values: dict[str, Any] = {part: f"tofu/{part}.json" for part in PARTS}
    train = {"epochs": 1, "batch_tokens": 256, "learning_rate": 1e-2, "warmup": 0}
    gates = {"remembered": 0.9, "unknown": 0.5}
    return MemoryRecipe.load(
        {**values, "tuning_rows": 4, "train": train, "gates": gates, **changes}
    )


def test_members_learn_their_rows_and_are_made_once(data: Path, family: Family) -> None:
    build_memory(recipe(), data, family)
    prints = {name: open_model(family.member(name)).fingerprint() for name in MEMBERS}
    assert len({*prints.values(), open_model(family.aligned).fingerprint()}) == 4
    rows = [json.loads(line) for line in family.rows("forget_tuning").read_text().splitlines()]
    assert rows[0] == {"prompt": "Where does tuning 0 live?", "response": "In town 0 of tuning."}
    assert len(rows) == 4
    assert len(family.rows("forget_perturbed").read_text().splitlines()) == 6
    build_memory(recipe(), data, family)
    assert prints == {name: open_model(family.member(name)).fingerprint() for name in MEMBERS}
    with pytest.raises(SutureError, match="E802"):
        build_memory(recipe(tuning_rows=3), data, family)


def test_gates_hold_the_members_against_what_they_should_know(data: Path, family: Family) -> None:
    build_memory(recipe(), data, family)
    outcome = check_memory(family, MemoryGates(remembered=0.0, unknown=1.0))
    assert outcome.passed
    assert [row.gate for row in outcome.rows] == [
        f"{member}: {part} probability" for member in MEMBERS for part in ("forget", "retain")
    ]
    files = [family.rows("forget_perturbed"), family.rows("retain_perturbed")]
    options = {"reference": "none", "utility": []}
    again = measure("tofu", open_model(family.member("remembering")), data=files, options=options)
    assert outcome.rows[0].found == pytest.approx(again.metrics["forget_probability"])
    strict = check_memory(family, MemoryGates(remembered=1.0, unknown=0.0))
    assert not any(row.passed for row in strict.rows)
    kept = json.loads((family.folder / "memory-gates.json").read_text())
    assert not kept["passed"]


def test_missing_data_is_named(tmp_path: Path, data: Path, family: Family) -> None:
    (data / "tofu" / "retain.json").unlink()
    with pytest.raises(SutureError, match=r"E801[\s\S]*retain\.json"):
        write_rows(recipe(), data, family)


def test_the_shipped_recipe_is_read() -> None:
    made = read_memory_recipe(recipe_path("lab-memory"))
    assert made.gates.remembered == 0.9
    assert made.tuning_rows == 200
