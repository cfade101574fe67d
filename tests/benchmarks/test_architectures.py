"""The benchmark of the architectures: which checkpoints it measures, and what its table says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import architectures as bench
import architectures_report

from suture.training.pretrain import read_pretraining

DEV = {  # arm: dev loss after 0, 10, 20 and 30 steps, by seed
    "vanilla": {0: [8.0, 6.0, 5.2, 5.0], 1: [8.0, 6.1, 5.3, 5.1], 2: [8.0, 6.0, 5.1, 4.9]},
    "wide": {0: [8.0, 5.5, 4.9, 4.5], 1: [8.0, 5.6, 5.0, 4.6], 2: [8.0, 5.4, 4.8, 4.4]},
}


@pytest.fixture
def runs(tmp_path: Path) -> list[bench.Run]:
    """Trained runs whose out_loss is the dev loss and a half, a third less for vanilla."""
    found = bench.runs_of(tmp_path / "decoder", ["vanilla", "wide"], [0, 1, 2])
    for run in found:
        run.steps.mkdir(parents=True)
        dev = [(10 * i, value) for i, value in enumerate(DEV[run.arm][run.seed])]
        lines = [json.dumps({"step": step, "dev": value}) + "\n" for step, value in dev]
        (run.steps / "record.jsonl").write_text("".join(lines))
        facts = {"arm": run.arm, "parameters": 1, "steps": 30, "dev": dev}
        (run.steps / "report.json").write_text(json.dumps(facts))
        run.output.mkdir()
    for run, steps in bench.wanted(found).items():
        for step in steps:
            shift = 0.5 - 0.3 * (run.arm == "vanilla") + 0.01 * run.seed
            metrics: dict[str, Any] = {"out_loss": dict(run.dev())[step] + shift}
            files = {"base": metrics}
            files |= {
                f"transfer-{t}": {"transfer_accuracy": a} for t, a in (("x", 0.5), ("y", 0.7))
            }
            for name, values in files.items():
                file = run.measured(step, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"metrics": values}))
    return found


def test_only_what_a_comparison_needs_is_measured(runs: list[bench.Run]) -> None:
    steps = {(run.arm, run.seed): found for run, found in bench.wanted(runs).items()}
    assert steps["vanilla", 0] == (30,)  # it came least far: its end is the place
    assert steps["wide", 0] == (10, 20, 30)  # 5.0 lies between 5.5 and 4.9, and the last
    runs[0].output.rmdir()  # a seed that is not trained through is left out
    assert {run.seed for run in bench.wanted(runs)} == {1, 2}


def test_the_table_says_levels_and_paired_gaps(
    runs: list[bench.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures_report, "ROOT", tmp_path)
    for folder in ("benchmarks/results", "docs/generated", "docs/img"):
        (tmp_path / folder).mkdir(parents=True)
    text = "\n".join(architectures_report.report(runs, bench.wanted(runs), "decoder", "wide"))
    assert (tmp_path / "docs/generated/architectures_decoder.md").read_text() == text
    first, second = text.split("At equal steps")
    row = next(line for line in first.splitlines() if line.startswith("| vanilla"))
    # equal dev loss 5.0, 5.1, 4.9: OOD is 0.3 lower within every seed, transfer is the same
    assert (
        row
        == "| vanilla | 5.210 (**−0.300, −0.300 to −0.300**) | 0.600 (+0.000, +0.000 to +0.000) |"
    )
    assert "at equal dev loss (5.000, 5.100, 4.900 by seed, 3 seeds)" in f"at {first[3:]}"
    after = next(line for line in second.splitlines() if line.startswith("| vanilla"))
    assert "+0.200" in after  # at equal steps it is 0.5 behind in dev loss
    result = json.loads((tmp_path / "benchmarks/results/architectures_decoder.json").read_text())
    assert result["loss"]["places"] == {"0": 5.0, "1": 5.1, "2": 4.9}
    assert len(result["runs"]) == 6
    assert "vanilla" in (tmp_path / "docs/img/architectures_decoder.svg").read_text()


def test_what_is_not_measured_through_is_left_out(runs: list[bench.Run]) -> None:
    wanted = bench.wanted(runs)
    for run, steps in wanted.items():
        for step in steps:
            for name in bench.measurements("decoder"):
                run.measured(step, name).write_text(json.dumps({"metrics": {}}))
    assert bench.complete(wanted, "decoder") == wanted
    gone = next(run for run in runs if (run.arm, run.seed) == ("wide", 1))
    gone.measured(30, "transfer-sst2").unlink()
    assert {run.seed for run in bench.complete(wanted, "decoder")} == {0, 2}


def test_a_student_learns_from_the_teacher_of_the_next_seed(tmp_path: Path) -> None:
    arms = ["moe-tcd", "vanilla", "moe-random", "moe-outer", "moe-inner"]
    found = bench.runs_of(tmp_path, arms, [0, 1])
    names = [(run.arm, run.seed) for run in found]
    assert names[:4] == [("vanilla", 0), ("moe-outer", 0), ("vanilla", 1), ("moe-outer", 1)]
    taught = next(run for run in found if (run.arm, run.seed) == ("moe-tcd", 1))
    with pytest.raises(SystemExit, match="vanilla first"):
        bench.lesson(taught, [0, 1])
    (tmp_path / "vanilla-0.steps" / "step-000000").mkdir(parents=True)
    (tmp_path / "vanilla-0").mkdir()
    assert bench.lesson(taught, [0, 1]) == ["arm=moe-outer", f"distil.teacher={tmp_path}/vanilla-0"]
    untrained = bench.lesson(bench.Run("moe-random", 1, tmp_path), [0, 1])
    assert untrained[1].endswith("vanilla-0.steps/step-000000")
    one_site = bench.lesson(bench.Run("moe-inner", 1, tmp_path), [0, 1])
    assert one_site[2:] == ["distil.trunk=0", "distil.attention=0"]


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_every_arm_stands_in_the_recipe(kind: str, tmp_path: Path) -> None:
    for arm in ("vanilla", "moe-outer", *bench.ARMS, *bench.TAUGHT):
        run = bench.Run(arm, 0, tmp_path)
        for folder in (tmp_path / "vanilla-0", tmp_path / "vanilla-0.steps" / "step-000000"):
            folder.mkdir(parents=True, exist_ok=True)
        changes = [f"output={run.output}", *bench.lesson(run, [0])]
        recipe = read_pretraining(bench.RECIPES / f"pretrain_{kind}.yaml", changes)
        assert (recipe.distil is not None) == (arm in bench.TAUGHT)
