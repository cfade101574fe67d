"""The plan of a training says what the training then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import suture.runs.training_plan as training_plan
from helpers import tiny_llama, write_jsonl
from suture.cli.run import plan as plan_command
from suture.errors import SutureError
from suture.runs.training_plan import is_training, plan_training
from suture.training.recipe import TrainRecipe, run_recipe

ROWS = [{"prompt": f"bake loaf {i}", "response": "The answer is" + "!" * i} for i in range(7)]
SETTINGS = {"epochs": 3, "batch_rows": 3, "batch_tokens": 90, "warmup": "epoch"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "base", vocab=300)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


def recipe(folder: Path, **changes: Any) -> TrainRecipe:
    values = {
        "model": folder / "base", "data": [{"file": folder / "rows.jsonl"}], "device": "cpu",
        "output": folder / "out", "train": SETTINGS,
    }  # fmt: skip
    return TrainRecipe.load(values | changes)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
@pytest.mark.parametrize(
    "changes",
    [{}, {"train": {"steps": 5, "batch_tokens": 60}}, {"lora": {"rank": 2}}],
    ids=["epochs", "steps", "lora"],
)
def test_steps_and_tokens_are_those_of_the_run(folder: Path, changes: dict[str, Any]) -> None:
    made = recipe(folder, **changes)
    found = plan_training(made)
    report = run_recipe(made)
    assert (found.steps, found.examples) == (report.steps, report.examples)
    if "train" not in changes:  # whole epochs
        assert found.tokens == report.tokens
    assert report.tokens == pytest.approx(found.tokens, rel=0.2)
    if made.lora:
        from safetensors.torch import load_file

        adapter = load_file(folder / "out" / "adapter_model.safetensors")
        assert found.trained == sum(tensor.numel() for tensor in adapter.values())
    else:
        assert found.trained == found.model["parameters"]


@pytest.mark.parametrize("key", ["output", "patch"])
def test_an_output_that_is_there_is_refused_as_by_the_run(folder: Path, key: str) -> None:
    (folder / "there").mkdir()
    made = recipe(folder, **{key: folder / "there"})
    for refuse in (plan_training, run_recipe):
        with pytest.raises(SutureError, match="E905") as caught:
            refuse(made)
        assert caught.value.where == str(folder / "there")


@pytest.mark.parametrize("include_eos", [True, False])
def test_the_teacher_takes_what_the_plan_says(folder: Path, include_eos: bool) -> None:
    objective = {"name": "rkld", "augment_epochs": 1, "include_eos": include_eos}
    made = recipe(folder, objective={**objective, "cache": folder / "cache"})
    found = plan_training(made)
    run_recipe(made)
    [file] = (folder / "cache").glob("*/teacher.f32")
    assert found.teacher is not None
    assert found.teacher["bytes"] == file.stat().st_size
    live = plan_training(recipe(folder, objective={**objective, "teacher": "live"}, output=None,
                                patch=folder / "p"))  # fmt: skip
    assert live.teacher is None
    assert live.peak_memory > found.peak_memory
    assert live.disk < found.disk


def test_less_memory_by_adapters_and_by_recomputing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_plan, "_PEFT", 0)  # the library is larger than this model
    plain = plan_training(recipe(folder)).peak_memory
    lora = plan_training(recipe(folder, lora={"rank": 2})).peak_memory
    again = plan_training(recipe(folder, train={**SETTINGS, "gradient_checkpointing": True}))
    assert lora < plain
    assert again.peak_memory < plain


def test_the_command_prints_it_and_refuses_what_the_training_would(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "r.yaml"
    file.write_text(
        "model: base\noutput: out\ndata: [{file: rows.jsonl}]\nobjective: {name: rkld}\n"
        "train: {epochs: 2, batch_rows: 4}\n"
    )
    assert is_training(file)
    plan_command(file)
    told = capsys.readouterr().out
    assert "teacher  " in told
    assert "rkld: 7 rows, 4 steps" in told
    plan_command(file, json=True)
    assert json.loads(capsys.readouterr().out)["teacher"]["vocabulary"] == 300
    measured = "measure: {suites: {unlearning: {data: rows.jsonl}}}\n"
    file.write_text(file.read_text() + measured)
    plan_command(file)
    assert capsys.readouterr().out.startswith(told.splitlines()[0])
    file.write_text(file.read_text() + "retain: [{file: rows.jsonl}]\n")
    with pytest.raises(SutureError, match="E915"):
        plan_command(file)


def test_other_recipes_are_no_trainings() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    trainings = {path.stem for path in folder.glob("*.yaml") if is_training(path)}
    assert trainings >= {"unaligned", "safepatching-ascent", "safepatching-descent", "rkld"}
    assert not trainings & {"continual", "lab", "demo", "trade-off", "restore-refusals"}
    assert "safepatching" not in trainings
