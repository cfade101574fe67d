"""`suture train` and `suture plan` on a recipe that makes a model from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from suture.cli.main import run as suture
from suture.recipes import placed, shipped_recipes
from suture.training.pretrain import read_pretraining
from training_corpus import tiny_model, write_corpus


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    values = {
        "pretrain": {
            "texts": [{"name": "prose", "files": "a.txt"}], "tokenizer": {"vocabulary": 300},
            "block": 16, "held_out": 0.2, "dev_blocks": 4,
        },
        "model": {"model_type": "suture-decoder", "hidden_size": 16, "num_hidden_layers": 1,
                  "num_attention_heads": 2},
        "arms": {"vanilla": {}, "moe": {"experts": 2}}, "arm": "vanilla",
        "output": "out", "checkpoints": [3, 6],
        "train": {"steps": 6, "batch_tokens": 128, "warmup": 1},
    }  # fmt: skip
    (tmp_path / "pre.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "pre.yaml"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert suture([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_plan_counts_what_training_then_makes(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(capsys, "plan", str(recipe))
    assert (before["steps"], before["tokens"], before["checkpoints"]) == (6, 768, 2)
    assert not before["packed"]
    assert not (recipe.parent / "out").exists()
    made = run(capsys, "train", str(recipe))
    assert made["parameters"] == before["parameters"]
    assert made["tokens"] == before["tokens"]
    assert [step for step, _ in made["dev"]] == [0, 3, 6]
    steps = recipe.parent / "out.steps"
    assert sorted(p.name for p in steps.glob("step-*")) == ["step-000003", "step-000006"]
    weights = [p / "model.safetensors" for p in (steps / "step-000006", recipe.parent / "out")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "<title>" in (steps / "curves.svg").read_text()
    after = run(capsys, "plan", str(recipe))
    assert after["packed"]
    (packed,) = recipe.parent.glob("packed-*")
    facts = json.loads((packed / "packed.json").read_text())
    assert after["text_tokens"] == facts["tokens"]["train"]


def test_an_arm_is_chosen_on_the_command_line(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = run(capsys, "plan", str(recipe))
    mixed = run(capsys, "plan", str(recipe), "--set", "arm=moe")
    assert mixed["parameters"] > dense["parameters"]
    assert mixed["arm"] == "moe"
    short = ["--set", "arm=moe", "--set", "train.steps=3", "--set", "checkpoints=0"]
    assert suture(["train", str(recipe), *short]) == 0
    text = capsys.readouterr().out
    assert "checkpoints" not in text
    assert "dev loss" in text
    assert "out.steps" in text
    record = (recipe.parent / "out.steps" / "record.jsonl").read_text().splitlines()
    assert {"lm", "balance", "loss", "step"} <= json.loads(record[1]).keys()
    pictures = {file.stem: file.read_text() for file in (recipe.parent / "out.steps").glob("*.svg")}
    assert pictures.keys() == {"curves", "routers", "parts"}
    assert "load_entropy" in pictures["routers"]
    assert "balance" in pictures["parts"]
    assert "balance" not in pictures["curves"]


def test_plan_says_where_too_little_is_held_out(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run(capsys, "plan", str(recipe), "--set", "pretrain.block=40000")
    assert any("held out" in warning for warning in told["warnings"])


def test_plan_refuses_what_training_would(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = tiny_model(recipe.parent / "teacher")
    taught = ["plan", str(recipe), "--set", f"distil.teacher={teacher}"]
    assert suture(taught) == 1
    assert "E978" in capsys.readouterr().err
    assert suture(["plan", str(recipe), "--set", "distil.teacher=nowhere"]) == 1
    capsys.readouterr()
    alone = run(capsys, "plan", str(recipe), "--set", "model.num_hidden_layers=2")
    found = run(capsys, *taught, "--set", "model.num_hidden_layers=2")
    assert found["peak_memory"] > alone["peak_memory"]
    assert suture(["plan", str(recipe), "--set", "pretrain.held_out=0.0001"]) == 1
    assert "E943" in capsys.readouterr().err
    assert suture(["plan", str(recipe), "--set", "train.steps=4"]) == 1
    assert "E948" in capsys.readouterr().err
    late = run(capsys, "plan", str(recipe), "--set", "train.warmup=100")
    assert "warms up for 100 steps" in late["warnings"][0]


def test_checkpoints_are_counted_with_the_last(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, "plan", str(recipe), "--set", "checkpoints=[3]")
    assert found["checkpoints"] == 2
    assert run(capsys, "plan", str(recipe), "--set", "checkpoints=0")["checkpoints"] == 0


def test_a_wrong_arm_ends_before_anything_is_made(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suture(["train", str(recipe), "--set", "arm=cea"]) == 1
    assert "there is no arm 'cea'" in capsys.readouterr().err
    assert sorted(p.name for p in recipe.parent.iterdir()) == ["a.txt", "b.jsonl", "pre.yaml"]


@pytest.mark.parametrize("name", ["pretrain_decoder", "pretrain_encoder"])
def test_every_arm_of_the_shipped_recipes_is_a_model(name: str, tmp_path: Path) -> None:
    from suture.training.newborn import model_config, size_of

    file = shipped_recipes()[name]
    sizes = {}
    for arm in yaml.safe_load(file.read_text())["arms"]:
        made = read_pretraining(file, [f"arm={arm}"])
        config = model_config(made.shape, {"vocabulary": 4096, "end": 0}, block=128)
        sizes[arm] = size_of(config, made.pretrain.objective.name)
    assert 500_000 < sizes["vanilla"] < 600_000
    for arm in ("wide", "cea", "cea-no-pathway", "caa-50"):  # equal but for a norm
        assert 0.99 < sizes[arm] / sizes["wide"] < 1.01
        assert 1_900_000 < sizes[arm] < 2_000_000
    copy = placed(file.read_text(), file, tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text(copy)
    own = read_pretraining(tmp_path / "own.yaml", ["arm=wide"])  # its texts are found from afar
    assert own.pretrain.texts[0].name == "stories"
