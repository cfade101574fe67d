"""SafePatching from the command line: two trainings, two patches, the merge, and a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers import tiny_llama, write_jsonl
from suture.cli.main import run
from suture.data import Pair, read_jsonl
from suture.methods import SafePatching
from suture.patch import PatchedCheckpoint, open_model
from suture.recipes import recipe_path

HARMFUL = [{"prompt": f"a question {i}", "response": "Sure, here is"} for i in range(4)]
SMALL = ["--set", "train.steps=2", "--set", "train.learning_rate=1e-2", "--set", "device=cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its rows, and the two patches made by the shipped recipes."""
    home = tmp_path_factory.mktemp("safe-patching")
    tiny_llama(home / "base")
    write_jsonl(home / "harmful.jsonl", HARMFUL)
    for name in ("ascent", "descent"):
        code = run(
            ["train", str(recipe_path(f"safepatching-{name}")), "--set", f"model={home / 'base'}",
             "--set", f"patch={home / name}", "--set", f"data=[{{file: {home / 'harmful.jsonl'}}}]",
             *SMALL]
        )  # fmt: skip
        assert code == 0
    return home


def derive(home: Path, out: Path, *flags: object) -> int:
    return run(
        ["derive", "safe-patching", "--base", str(home / "base"), "--ascended",
         str(home / "ascent"), "--descended", str(home / "descent"), "--harmful",
         str(home / "harmful.jsonl"), "-o", str(out), "--device", "cpu", *map(str, flags)]
    )  # fmt: skip


def test_two_patches_on_the_base_become_one(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert derive(home, tmp_path / "p", "--top-safety", 0.1, "--seed", 4, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in facts["matrices"]} >= {"model.layers.0.mlp.up_proj.weight"}
    assert sorted(facts["models"]) == ["ascended", "base", "descended"]
    base = open_model(home / "base")
    ascended, descended = (PatchedCheckpoint(base, [home / name]) for name in ("ascent", "descent"))
    rows = read_jsonl(home / "harmful.jsonl", Pair)
    found = PatchedCheckpoint(base, [tmp_path / "p"])
    expected = SafePatching(top_safety=0.1, seed=4).derive(
        base=base, ascended=ascended, descended=descended, harmful=rows, device="cpu"
    )
    for edit in expected:
        assert torch.equal(found.read(edit.name), edit.value)


def test_the_summary_counts(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert derive(home, tmp_path / "p") == 0
    assert "entries in 14 matrices taken" in capsys.readouterr().out


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes are shown, whatever an earlier --json has silenced."""
    monkeypatch.setattr("suture.progress.silent", False)


def test_what_rounding_loses_is_counted(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama(tmp_path / "base", dtype="bfloat16")
    for name in ("ascent", "descent"):
        words = ["train", str(recipe_path(f"safepatching-{name}")), *SMALL]
        words += ["--set", f"model={base}", "--set", f"patch={tmp_path / name}"]
        words += ["--set", f"data={home / 'harmful.jsonl'}"]
        assert run(words) == 0
    capsys.readouterr()
    words = ["derive", "safe-patching", "--base", base, "--ascended", tmp_path / "ascent"]
    words += ["--descended", tmp_path / "descent", "--harmful", home / "harmful.jsonl"]
    words += ["--device", "cpu", "--safety-scale", "0.001", "-o", tmp_path / "p"]
    assert run([str(word) for word in words]) == 0
    shown = capsys.readouterr().out
    assert "of them rounded away" in shown
    assert "last place of BF16" in shown


def test_sides_that_are_swapped_or_the_same_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = ["--ascended", home / "descent", "--descended", home / "ascent"]
    assert derive(home, tmp_path / "p", *swapped) == 1
    shown = capsys.readouterr().err
    assert "E572" in shown
    assert "trained by descent" in shown
    assert derive(home, tmp_path / "p", "--descended", home / "ascent") == 1
    assert "are the same" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.mark.usefixtures("noted")
def test_other_rows_and_idle_knobs_are_noted(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert derive(home, tmp_path / "p") == 0
    assert "not those" not in capsys.readouterr().err
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "else", "response": "Sure"}])
    assert derive(home, tmp_path / "q", "--harmful", other, "--retain", 0.01) == 0
    shown = capsys.readouterr().err
    assert "not those that the ascended patch was trained on" in shown
    assert "retain 0.01 is below the share important to a patch (0.03)" in shown


@pytest.mark.usefixtures("noted")
def test_the_first_tokens_that_are_trained_on_are_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(recipe_path("safepatching-ascent")), *SMALL]
    words += ["--set", f"model={home / 'base'}", "--set", f"data={home / 'harmful.jsonl'}"]
    assert run([*words, "--set", f"patch={tmp_path / 'p'}"]) == 0
    shown = capsys.readouterr().err
    assert "trained on: the first token of responses, 'S' in 4 of 4 rows" in shown
    assert "warning: refusals begin with 'S' too (Sorry" in shown
    rows = [{"prompt": "a", "response": "quick"}, {"prompt": "b", "response": "Here"}]
    other = write_jsonl(tmp_path / "r.jsonl", rows)
    words[-1] = f"data={other}"
    assert run([*words, "--set", f"patch={tmp_path / 'q'}"]) == 0
    shown = capsys.readouterr().err
    assert shown.count("in 1 of 2 rows") == 2
    assert "warning" not in shown


@pytest.mark.parametrize("gone", ["base", "ascended", "descended"])
def test_a_missing_model_is_named(
    home: Path, tmp_path: Path, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["derive", "safe-patching", "-o", str(tmp_path / "p")]
    for name, folder in (("base", "base"), ("ascended", "ascent"), ("descended", "descent")):
        words += [] if name == gone else [f"--{name}", str(home / folder)]
    assert run(words) == 1
    assert f"--{gone} is missing" in capsys.readouterr().err


def test_without_rows_the_remedy_is_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        ["derive", "safe-patching", "--base", str(home / "base"), "--ascended",
         str(home / "ascent"), "--descended", str(home / "descent"), "-o", str(tmp_path / "p")]
    )  # fmt: skip
    assert code == 1
    assert "--harmful FILE" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_the_shipped_recipe_runs(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"how {i}"} for i in range(4)])
    write_jsonl(
        tmp_path / "choices.jsonl",
        [{"prompt": f"yes or no {i}", "options": ["yes", "no"], "answer": i % 2} for i in range(4)],
    )
    changes = {
        "models.base": home / "base", "models.ascended": home / "ascent",
        "models.descended": home / "descent", "data.harmful": home / "harmful.jsonl",
        "suites.safety.data": tmp_path / "prompts.jsonl",
        "suites.safety.max_new_tokens": 2, "suites.over-refusal.limit": 2,
        "suites.over-refusal.max_new_tokens": 2,
        "suites.task.data": tmp_path / "choices.jsonl", "device": "cpu",
    }  # fmt: skip
    words = [w for key, value in changes.items() for w in ("--set", f"{key}={value}")]
    capsys.readouterr()
    code = run(
        ["run", str(recipe_path("safepatching")), "-o", str(tmp_path / "run"), "--json", *words]
    )
    found = capsys.readouterr()
    assert code in (0, 2, 3), found.err
    assert json.loads(found.out)["patch"]["tensors"] > 0


def test_the_shipped_continual_recipe_is_whole(tiny: Callable[..., Path]) -> None:
    from suture.runs.continual import is_continual, read_continual

    path = recipe_path("continual")
    assert is_continual(path)
    rows = path.parent / "data/affirmative.jsonl"
    recipe = read_continual(path, [f"model={tiny()}", f"rows={rows}", "suites.task.data=null"])
    assert {"safe-patching", "ascent", "npo"} <= recipe.approaches.keys()


def test_the_shipped_continual_recipe_has_a_plan(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(
        tmp_path / "rows.jsonl",
        [{"prompt": f"p{i}", "response": "Sure", "category": "ab"[i % 2]} for i in range(4)],
    )
    changes = [f"model={tiny()}", f"rows={rows}", "suites.task.data=null", "device=cpu"]
    sets = [part for change in changes for part in ("--set", change)]
    assert run(["plan", str(recipe_path("continual")), *sets]) == 0
    shown = capsys.readouterr().out
    assert "safe-patching  2          50" in shown  # 30 steps of ascent, 20 of descent
    assert "measured 7 times" in shown


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
def test_adapters_of_the_base_will_do(home: Path, tmp_path: Path) -> None:
    for name in ("ascent", "descent"):
        words = ["train", str(recipe_path(f"safepatching-{name}")), *SMALL]
        for change in (
            f"model={home / 'base'}", f"output={tmp_path / name}", "patch=null",
            f"data=[{{file: {home / 'harmful.jsonl'}}}]", "lora.rank=2",
        ):  # fmt: skip
            words += ["--set", change]
        assert run(words) == 0
    out = tmp_path / "p"
    flags = ["--ascended", tmp_path / "ascent", "--descended", tmp_path / "descent", "--retain", 1]
    assert derive(home, out, *flags) == 0
    base = open_model(home / "base")
    found = PatchedCheckpoint(base, [out])
    changed = {n for n in base.tensors if not torch.equal(base.read(n), found.read(n))}
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)


def test_either_spelling_will_do(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from suture.runs.recipe import MethodSpec

    assert recipe_path("safe-patching") == recipe_path("safepatching")
    assert recipe_path("safe-patching-ascent").stem == "safepatching-ascent"
    assert MethodSpec(name="safepatching").name == "safe-patching"
    assert run(["derive", "safepatching", "--help"]) == 0
    assert "--ascended" in capsys.readouterr().out
