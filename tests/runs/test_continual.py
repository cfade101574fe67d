"""Category after category on a tiny model, and the means and forgetting told of it."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import write_jsonl
from suture.errors import SutureError
from suture.ledger import Measurement
from suture.patch import PatchedCheckpoint, open_model
from suture.runs.continual import is_continual, read_continual, run_continual
from suture.runs.progress_table import forgetting, markdown

RECIPE = """\
name: tiny
model: model
rows: rows.jsonl
approaches:
  merged:
    safe_patching: {retain: 0.5, top_safety: 0.1, top_over_safety: 0.1}
    descent: {steps: 2, batch_tokens: 200, learning_rate: 1.0e-3, warmup: 0}
  npo:
    objective: {name: npo, beta: 0.5}
train: {steps: 2, batch_tokens: 200, learning_rate: 1.0e-2, warmup: 0, compute: float32}
suites:
  safety: {data: prompts.jsonl, max_new_tokens: 3}
  task: {data: choices.jsonl}
device: cpu
"""
KINDS = ("weapons", "fraud")


@pytest.fixture
def workshop(tmp_path: Path, tiny: Callable[..., Path]) -> Path:
    (tmp_path / "model").symlink_to(tiny(seed=3))
    rows = [
        {"prompt": f"a {kind} question {i}", "response": "Sure, here is", "category": kind}
        for i in range(3)
        for kind in KINDS
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(
        tmp_path / "prompts.jsonl",
        [
            {"id": f"{kind} {i}", "prompt": f"{kind} {i}", "category": kind}
            for kind in (*KINDS, "other")
            for i in range(2)
        ],
    )
    write_jsonl(
        tmp_path / "choices.jsonl",
        [{"prompt": f"yes or no {i}", "options": ["yes", "no"], "answer": i % 2} for i in range(4)],
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_every_step_is_a_patch_on_the_model_so_far(workshop: Path) -> None:
    recipe = read_continual(workshop / "recipe.yaml")
    out = workshop / "out"
    facts = run_continual(recipe, out)
    source = open_model(workshop / "model")
    assert facts["categories"] == list(KINDS)
    assert set(facts["approaches"]) == {"merged", "npo"}
    for name in facts["approaches"]:
        patches: list[Path] = []
        for number, step in enumerate(facts["approaches"][name]["steps"], 1):
            before = PatchedCheckpoint(source, patches)
            patches.append(out / name / str(number) / "patch")
            after = PatchedCheckpoint(source, patches)  # refused unless bound to `before`
            assert after.fingerprint() != before.fingerprint()
            measured = Measurement.load(out / name / str(number) / "safety.json")
            assert measured.model["fingerprint"] == after.fingerprint()
            rate = measured.metrics["refusal_rate"]
            assert step["metrics"]["safety.refusal_rate"] == rate
            ended = {row.item: row.scores["ends_properly"] for row in measured.rows}
            for kind in KINDS:
                own = [ended[f"{kind} {i}"] for i in range(2)]
                assert step["categories"]["safety.ends_properly"][kind] == sum(own) / 2
    rows = [json.loads(line) for line in (out / "rows/2.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"a fraud question {i}" for i in range(3)]
    assert stat.S_IMODE((out / "rows/2.jsonl").stat().st_mode) == 0o600
    assert json.loads((out / "continual.json").read_text()) == facts
    for name, found in facts["approaches"].items():
        mean = sum(step["metrics"]["task.accuracy"] for step in found["steps"]) / 2
        assert found["mean"]["task.accuracy"] == pytest.approx(mean)
        assert f"| {name} | mean |" in (out / "continual.md").read_text()


def test_the_merge_of_a_step_is_safe_patching_of_its_two_patches(workshop: Path) -> None:
    from suture.data import AnsweredPair, read_jsonl

    recipe = read_continual(workshop / "recipe.yaml")
    out = workshop / "out"
    run_continual(recipe, out)
    method = recipe.approaches["merged"].safe_patching
    assert method is not None
    source: Any = open_model(workshop / "model")
    base = PatchedCheckpoint(source, [out / "merged/1/patch"])
    models = {
        name: PatchedCheckpoint(base, [out / "merged/2" / name])
        for name in ("ascended", "descended")
    }
    rows = read_jsonl(out / "rows/2.jsonl", AnsweredPair)
    after = PatchedCheckpoint(base, [out / "merged/2/patch"])
    for edit in method.derive(base=base, **models, harmful=rows, device="cpu"):
        assert torch.equal(edit.value, after.read(edit.name))


def test_the_same_command_trains_nothing_twice(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_continual(workshop / "recipe.yaml")
    first = run_continual(recipe, workshop / "out")

    def never(*_a: object, **_k: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("suture.runs.continual.run_recipe", never)
    assert run_continual(recipe, workshop / "out") == first


def test_recipes_are_told_apart_and_checked(workshop: Path) -> None:
    file = workshop / "recipe.yaml"
    assert is_continual(file)
    recipe = read_continual(file, ["order=[fraud, weapons]", "approaches.npo.objective.beta=0.2"])
    assert recipe.order == ("fraud", "weapons")
    assert recipe.approaches["npo"].objective.beta == 0.2  # type: ignore[union-attr]
    for change, code in (
        ("order=[fraud, wepons]", "E732"),
        ("order=[fraud]", "E732"),
    ):
        with pytest.raises(SutureError) as wrong:
            run_continual(read_continual(file, [change]), workshop / "out")
        assert wrong.value.code == code
    for change in (
        "approaches.npo.safe_patching={}",
        "approaches={base: {objective: {name: npo}}}",
    ):
        with pytest.raises(SutureError) as wrong:
            read_continual(file, [change])
        assert wrong.value.code == "E702"
    with pytest.raises(SutureError) as gone:
        read_continual(file, ["rows=nothing.jsonl"])
    assert gone.value.code == "E721"


def test_a_row_without_a_category_is_refused(workshop: Path) -> None:
    write_jsonl(workshop / "rows.jsonl", [{"prompt": "a", "response": "b"}])
    with pytest.raises(SutureError, match="category"):
        run_continual(read_continual(workshop / "recipe.yaml"), workshop / "out")


def steps(better: str, *scores: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {"metrics": {"m": 0.0}, "better": {"m": better}, "categories": {"m": dict(found)}}
        for found in scores
    ]


def test_forgetting_counts_from_a_categorys_own_step() -> None:
    three = steps(
        "higher",
        {"a": 0.9, "b": 0.99, "c": 0.1},
        {"a": 0.95, "b": 0.8, "c": 0.1},
        {"a": 0.5, "b": 0.85, "c": 0.9},
    )
    lost = forgetting(three, "m", ["a", "b", "c"])
    assert lost == pytest.approx({"a": 0.45, "b": -0.05})
    down = forgetting(steps("lower", {"a": 0.2, "b": 1.0}, {"a": 0.5, "b": 0.1}), "m", ["a", "b"])
    assert down == pytest.approx({"a": 0.3})


def test_the_table_has_no_number_for_what_was_not_measured() -> None:
    facts = {
        "name": "n", "base": {"metrics": {"m": 1.0}, "categories": {"m": {"a": 1.0}}},
        "approaches": {
            "x": {
                "steps": [{"category": "a", "changed": True, "metrics": {}, "categories": {}}],
                "mean": {}, "mean_forgetting": {},
            }
        },
    }  # fmt: skip
    assert "| x | 1 a | – |" in markdown(facts)
    assert "0.000" not in markdown(facts)


def test_the_plan_counts_a_model_and_two_maps(tiny: Callable[..., Path]) -> None:
    from suture.checkpoint import Checkpoint
    from suture.methods import SafePatching
    from suture.runs.plan import deriving_memory

    source: Any = Checkpoint.open(tiny())
    merged = deriving_memory(SafePatching(merge="ties"), source, {})
    assert deriving_memory(SafePatching(), source, {}) - merged > 2**28


def test_the_plan_counts_steps_trainings_and_measurements(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from suture.cli.main import run as cli
    from suture.runs.continual_plan import plan_continual

    file = workshop / "recipe.yaml"
    recipe = read_continual(file)
    found = plan_continual(recipe)
    assert found.categories == {"weapons": 3, "fraud": 3}
    merged, npo = found.approaches["merged"], found.approaches["npo"]
    assert (merged.trainings, merged.steps, merged.tokens) == (2, 4, 800)
    assert (npo.trainings, npo.steps, npo.tokens) == (1, 2, 400)
    assert found.measurements == 1 + 2 * 2
    assert found.suites == {"safety": 6, "task": 4}
    assert found.touched == 14  # the matrices of two blocks
    longer = plan_continual(read_continual(file, ["approaches.npo.train={steps: 2000}"]))
    assert longer.approaches["npo"].seconds > 10 * npo.seconds
    assert longer.seconds > found.seconds
    assert plan_continual(read_continual(file, ["train.batch_tokens=200000"])).peak_memory > (
        found.peak_memory
    )
    assert not (workshop / "out").exists()
    assert cli(["plan", str(file), "--set", "suites.safety.decoding=rose"]) == 0
    shown = capsys.readouterr().out
    assert "weapons (3 rows), fraud (3 rows)" in shown
    assert "safety: decoding rose" in shown
    assert "measured 5 times" in shown
    assert cli(["plan", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["approaches"]["npo"]["steps"] == 2


def test_the_plan_is_an_upper_estimate_of_disk(workshop: Path) -> None:
    from suture.runs.continual_plan import plan_continual

    recipe = read_continual(workshop / "recipe.yaml")
    run_continual(recipe, workshop / "out")
    taken = sum(file.stat().st_size for file in (workshop / "out").rglob("*") if file.is_file())
    assert taken < plan_continual(recipe).disk


def test_suites_with_decoding_and_kept_answers(workshop: Path) -> None:
    changes = ["suites.safety.decoding=rose", f"cache={workshop / 'kept'}"]
    text = (workshop / "recipe.yaml").read_text().replace("  npo:\n    objective: {name: npo, "
        "beta: 0.5}\n", "")  # fmt: skip
    (workshop / "recipe.yaml").write_text(text)
    run_continual(read_continual(workshop / "recipe.yaml", changes), workshop / "out")
    measured = Measurement.load(workshop / "out/merged/1/safety.json")
    assert measured.model["decoding"]["name"] == "rose"
    assert (workshop / "kept/answers.sqlite").is_file()
    with pytest.raises(SutureError) as wrong:
        read_continual(workshop / "recipe.yaml", ["suites.task.judge=phrases"])
    assert wrong.value.code == "E537"


def test_a_step_with_nothing_left_to_do_changes_nothing(workshop: Path) -> None:
    changes = [
        "approaches.merged.ascent.cap=0.01",  # every token is above it
        "approaches.npo={objective: {name: gradient-ascent, cap: 0.01}}",
        "train.weight_decay=0",
    ]
    recipe = read_continual(workshop / "recipe.yaml", changes)
    facts = run_continual(recipe, workshop / "out")
    ascent, merged = (facts["approaches"][name]["steps"] for name in ("npo", "merged"))
    assert [step["changed"] for step in ascent] == [False, False]
    assert ascent[1]["metrics"] == facts["base"]["metrics"]
    assert [step["changed"] for step in merged] == [True, True]  # by the over-safety patch alone
    assert "(nothing changed)" in (workshop / "out/continual.md").read_text()
    assert run_continual(recipe, workshop / "out") == facts


def test_the_terminal_shows_the_main_metrics_and_tells_what_is_missing(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from suture.cli.main import run as cli

    rows = [{"id": str(i), "prompt": f"x {i}", "category": "theft"} for i in range(3)]
    write_jsonl(workshop / "prompts.jsonl", rows)
    out = workshop / "out"
    text = (workshop / "recipe.yaml").read_text()
    text = text[: text.index("  merged:")] + text[text.index("  npo:") :]
    (workshop / "recipe.yaml").write_text(text)
    assert cli(["run", str(workshop / "recipe.yaml"), "-o", str(out), "--limit", "2"]) == 0
    shown = capsys.readouterr().out
    head = shown.splitlines()[0]
    assert "safety.refusal_rate, n=2" in head
    assert "distinct_2" not in head
    assert "task.accuracy, n=2" in head
    assert "npo       1 weapons  0.000 [0.000, 0.658]" in shown
    note = "The rows have weapons, fraud; safety has theft."
    assert note in shown
    assert note in (out / "continual.md").read_text()
    assert str(out / "continual.md") in shown.splitlines()[-1]
