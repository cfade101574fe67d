"""A training measured epoch by epoch: on the weights that would be written, and resumed exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import suture.training.loop as loop
from helpers import tiny_llama, write_jsonl
from raw_folders import listing
from suture.cli.train import _epochs
from suture.errors import SutureError
from suture.patch import open_model
from suture.patch.format import DATA
from suture.runs.trajectory import MeasuredTraining, read_training, run_training
from suture.suites import measure

ROWS = [
    {"prompt": f"How do I bake loaf {i}?", "response": f"The answer is {i % 3}."} for i in range(12)
]
CHOICES = [
    {"prompt": f"How do I bake loaf {i}?", "options": ["The answer is 0.", "No."], "answer": i % 2}
    for i in range(6)
]
TRAIN = {"epochs": 3, "batch_tokens": 150, "learning_rate": 1e-2, "warmup": 1, "save_every": 1}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    write_jsonl(tmp_path / "choices.jsonl", CHOICES)
    return tiny_llama(tmp_path / "base", dtype="bfloat16")


def recipe(base: Path, out: str, measured: dict[str, Any] | None = None, **changes: Any) -> Any:
    folder = base.parent
    spec = {
        "suites": {"known": {"suite": "utility", "data": folder / "choices.jsonl"}},
        "peak": "known.accuracy",
        "keep": "all",
    }
    values = {
        "model": base, "data": [{"file": folder / "rows.jsonl"}], "patch": folder / out,
        "train": TRAIN, "device": "cpu", "measure": spec | (measured or {}),
    }  # fmt: skip
    return MeasuredTraining.load(values | changes)


def test_what_is_measured_is_what_is_written(base: Path) -> None:
    before = torch.get_rng_state()
    report, found = run_training(recipe(base, "p"))
    assert found is not None
    assert [one.epoch for one in found.epochs] == [1, 2, 3]
    for one in found.epochs:
        home = found.folder / f"epoch-{one.epoch:03d}"
        written = open_model(base, patches=[home / "patch"])
        told = json.loads((home / "known.json").read_text())
        assert told["model"]["fingerprint"] == written.fingerprint()
        again = measure("utility", written, data=base.parent / "choices.jsonl", device="cpu",
                        dtype="float32")  # fmt: skip
        assert [row.scores for row in again.rows] == [row["scores"] for row in told["rows"]]
    last = open_model(base, patches=[base.parent / "p"]).fingerprint()
    assert told["model"]["fingerprint"] == last
    assert report.steps > 3
    ElementTree.parse(found.folder / "trajectory.svg")
    assert json.loads((found.folder / "trajectory.json").read_text()) == found.as_dict()
    assert torch.equal(before, torch.get_rng_state())


def test_measuring_changes_nothing_in_the_training(base: Path) -> None:
    run_training(recipe(base, "p", {"keep": "none"}))
    run_training(recipe(base, "q", measure=None))
    assert open_model(base, patches=[base.parent / "p"]).fingerprint() == (
        open_model(base, patches=[base.parent / "q"]).fingerprint()
    )
    assert not list(base.parent.glob("p.epochs/*/patch"))


def test_a_killed_one_goes_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_training(recipe(base, "whole"))
    original, calls = loop._one_step, {"n": 0}

    def dies(*args: Any) -> float:
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(loop, "_one_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run_training(recipe(base, "killed"))
    assert (base.parent / "killed.epochs").exists()
    run_training(recipe(base, "killed"))
    folders = [base.parent / f"{name}.epochs" for name in ("whole", "killed")]
    metrics = [json.loads((f / "trajectory.json").read_text())["epochs"] for f in folders]
    assert metrics[0] == metrics[1]
    data = [(base.parent / name / DATA).read_bytes() for name in ("whole", "killed")]
    assert data[0] == data[1]


def test_only_reported_epochs_keep_their_patch(base: Path) -> None:
    _, found = run_training(recipe(base, "p", {"keep": "reported", "fixed": 2}))
    assert found is not None
    kept = {int(path.parent.name[-3:]) for path in found.folder.glob("epoch-*/patch")}
    assert kept == {2, found.peak}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
def test_an_adapter_is_measured_too(base: Path) -> None:
    changes = {"lora": {"rank": 2}, "patch": None, "output": base.parent / "a"}
    _, found = run_training(recipe(base, "a", **changes))
    assert found is not None
    marks = [
        json.loads((found.folder / f"epoch-00{n}" / "known.json").read_text())["model"]
        for n in (1, 2, 3)
    ]
    assert len({mark["fingerprint"] for mark in marks}) == 3
    assert (found.folder / "epoch-001" / "patch" / "adapter_config.json").exists()


def test_refusals(base: Path) -> None:
    with pytest.raises(SutureError, match=r"E745[\s\S]*accuracy"):
        run_training(recipe(base, "p", {"peak": "known.acuracy"}))
    with pytest.raises(SutureError, match=r"E745[\s\S]*accuracy"):
        run_training(recipe(base, "p", {"curves": ["known.acuracy"]}))
    run_training(recipe(base, "p", {"keep": "none", "curves": ["known.accuracy"]}))
    chart = (base.parent / "p.epochs" / "trajectory.svg").read_text()
    assert "known.accuracy from" in chart
    assert "known.accuracy_norm from" not in chart
    shutil.rmtree(base.parent / "p")
    with pytest.raises(SutureError, match="E744"):
        run_training(recipe(base, "p", {"fixed": 1}))
    with pytest.raises(SutureError, match="epochs"):
        recipe(base, "p", train={**TRAIN, "epochs": None, "steps": 3})


def test_a_recipe_file_names_files_beside_it(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "sub" / "train.yaml"
    file.parent.mkdir()
    file.write_text(
        "model: ../base\ndata: [{file: ../rows.jsonl}]\npatch: out\n"
        "train: {epochs: 1}\nmeasure:\n  suites:\n    utility: {data: ../choices.jsonl}\n"
    )
    made = read_training(file)
    assert made.measure is not None
    data = made.measure.suites["utility"].data
    assert data is not None
    assert data[0].resolve() == (base.parent / "choices.jsonl").resolve()
    untouched = listing(base)
    run_training(made)
    assert listing(base) == untouched


def test_epochs_of_other_rows_are_not_taken_for_these(base: Path) -> None:
    run_training(recipe(base, "p", {"keep": "none"}))
    shutil.rmtree(base.parent / "p")
    write_jsonl(base.parent / "rows.jsonl", ROWS[:-1])
    with pytest.raises(SutureError, match=r"E744[\s\S]*rows"):
        run_training(recipe(base, "p", {"keep": "none"}))
    write_jsonl(base.parent / "rows.jsonl", ROWS)
    write_jsonl(base.parent / "choices.jsonl", CHOICES[:-1])
    with pytest.raises(SutureError, match="E744"):
        run_training(recipe(base, "p", {"keep": "none"}))


def test_a_folder_without_an_epoch_is_taken_over(base: Path) -> None:
    with pytest.raises(SutureError, match="E902"):
        run_training(recipe(base, "p", train={**TRAIN, "learning_rate": 1e30, "warmup": 0}))
    shutil.rmtree(base.parent / ".p.training", ignore_errors=True)
    for epoch in base.parent.glob("p.epochs/epoch-*"):
        shutil.rmtree(epoch)
    _, found = run_training(recipe(base, "p"))
    assert found is not None
    assert len(found.epochs) == 3


def test_the_screen_names_every_epoch_that_counts(base: Path) -> None:
    _, found = run_training(recipe(base, "p", {"keep": "reported", "fixed": 2}))
    assert found is not None
    told = _epochs(found, written=True)
    assert "epoch 3 (written" in told or "epoch 3 (first peak, written)" in told
    assert "epoch 2 (fixed" in told
    assert f"epoch 2: {found.folder / 'epoch-002' / 'patch'}" in told
    assert "written" not in _epochs(found, written=False)
