"""Comparisons at equal dev loss and at equal steps, against numbers worked out by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from suture.errors import SutureError
from suture.patch import open_model
from suture.runs.aligned import (
    Arm,
    Point,
    at_loss,
    at_step,
    bracketing,
    combined,
    common_loss,
    common_step,
    compare,
    read_arms,
    table,
)
from suture.suites import measure
from suture.training.record import Record
from training_corpus import tiny_model


def arm(name: str, seed: int, *points: tuple[int, float, float]) -> Arm:
    return Arm(name, seed, tuple(Point(step, dev, {"ood": value}) for step, dev, value in points))


FAST = arm("fast", 0, (0, 8.0, 9.0), (100, 5.0, 6.0), (200, 4.0, 5.6))
SLOW = arm("slow", 0, (0, 8.0, 9.0), (100, 6.0, 6.8), (200, 4.5, 5.7))


def test_values_are_interpolated_in_the_dev_loss() -> None:
    assert common_loss([FAST, SLOW]) == 4.5
    assert at_loss(FAST, 4.5) == {"ood": pytest.approx(5.8)}
    assert at_loss(SLOW, 4.5) == {"ood": pytest.approx(5.7)}
    assert at_loss(SLOW, 6.75)["ood"] == pytest.approx(9.0 - 2.2 * 1.25 / 2)
    assert at_loss(FAST, 4.0) == {"ood": 5.6}


def test_the_last_way_down_counts() -> None:
    rough = arm("x", 0, (0, 8.0, 9.0), (1, 5.0, 1.0), (2, 6.0, 2.0), (3, 4.0, 3.0))
    assert at_loss(rough, 5.5)["ood"] == pytest.approx(2.25)
    assert bracketing([(0, 8.0), (1, 5.0), (2, 6.0), (3, 4.0)], 5.5) == (2, 3)
    assert bracketing([(0, 8.0), (1, 5.0)], 4.0) == ()
    assert bracketing([(0, 8.0), (1, 5.0), (2, 6.0)], 5.0) == (1,)


def test_a_metric_that_one_checkpoint_lacks_is_left_out() -> None:
    run = Arm("x", 0, (Point(0, 8.0, {"a": 1.0}), Point(1, 4.0, {"a": 3.0, "b": 1.0})))
    assert at_loss(run, 6.0) == {"a": 2.0}
    assert at_loss(run, 4.0) == {"a": 3.0, "b": 1.0}


def test_equal_steps_are_the_last_that_all_have() -> None:
    other = arm("other", 0, (0, 8.0, 9.0), (100, 6.0, 7.0))
    assert common_step([FAST, other]) == 100
    assert at_step(FAST, 100) == {"ood": 6.0}
    with pytest.raises(SutureError, match="E954"):
        common_step([FAST, arm("x", 0, (7, 1.0, 1.0))])


def test_differences_are_paired_by_seed() -> None:
    runs = []
    for seed, shift in enumerate((0.0, 0.5, 1.0)):  # seeds differ much, the gap little
        runs.append(arm("base", seed, (0, 8.0, 9.0), (1, 4.0, 5.0 + shift)))
        runs.append(arm("new", seed, (0, 8.0, 9.0), (1, 4.0, 4.8 + shift + 0.01 * seed)))
    found = compare(runs, how="loss", baseline="base")
    assert found.places == {0: 4.0, 1: 4.0, 2: 4.0}
    (gap,) = found.gaps
    assert gap.by_seed == {0: pytest.approx(-0.2), 1: pytest.approx(-0.19), 2: pytest.approx(-0.18)}
    want = stats.ttest_1samp([-0.2, -0.19, -0.18], 0).confidence_interval()
    assert gap.ends == (pytest.approx(want.low), pytest.approx(want.high))
    assert gap.settled
    level = next(one for one in found.levels if one.arm == "base")
    assert level.mean == pytest.approx(5.5)
    assert level.ends is not None
    assert level.ends[0] < 4.5  # the level itself is far less certain than the gap


def test_a_single_seed_settles_nothing() -> None:
    (gap,) = compare([FAST, SLOW], how="steps", baseline="fast").gaps
    assert (gap.mean, gap.ends, gap.settled) == (pytest.approx(0.1), None, False)


def test_a_metric_of_several_tasks_is_their_mean_where_all_are() -> None:
    found = combined(
        {
            "a": [("x", {"acc": 0.5}), ("y", {"acc": 0.7}), ("z", {"loss": 3.0})],
            "b": [("x", {"acc": 0.6}), ("z", {"loss": 2.0})],  # the mean over x alone says nothing
            "c": [("x", {"acc": 0.4}), ("y", {"acc": 0.5}), ("z", {"loss": 1.0})],
        }
    )
    assert found["a"] == {"acc": pytest.approx(0.6), "acc.x": 0.5, "acc.y": 0.7, "loss": 3.0}
    assert found["b"] == {"acc.x": 0.6, "loss": 2.0}
    assert found["c"]["acc"] == pytest.approx(0.45)
    seeds = combined({"a": [("x", {"acc": 0.5}), ("x", {"acc": 0.7})], "b": [("x", {"acc": 0.5})]})
    assert seeds == {"a": {"acc": pytest.approx(0.6)}, "b": {}}


def test_the_table_says_where_seeds_are_missing() -> None:
    more = Arm("slow", 1, (Point(0, 8.0, {}), Point(200, 4.0, {})))
    base = arm("fast", 1, (0, 8.0, 9.0), (200, 4.0, 5.6))
    text = "\n".join(table(compare([FAST, SLOW, base, more], how="steps", baseline="fast")))
    assert "| slow | 5.700 (+0.100), 1 of 2 seeds |" in text
    alone = "\n".join(table(compare([FAST, SLOW], how="loss", baseline="fast"), {"ood": "OOD"}))
    assert "| architecture | OOD |" in alone
    assert "has no interval" in alone


def test_folders_and_files_become_arms(tmp_path: Path) -> None:
    """Whatever the folders are called by then, a file goes to the weights it was measured on."""
    source = tiny_model(tmp_path / "one", steps=2)
    run = source.parent / "model.steps"
    (source.parent / "again").mkdir()
    source.rename(run / "step-000002")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "seed": 7}))
    run = run.rename(tmp_path / "vanilla-7.steps")
    (tmp_path / "more.txt").write_text("Numbers: 1 2 3 4 5 6 7 8 9. " * 60)
    (tmp_path / "d.yaml").write_text("texts: [{name: sums, files: more.txt}]")
    files = []
    for number in range(2):
        found = measure(
            "base-capability", open_model(run / "step-000002"), data=tmp_path / "d.yaml",
            options={"passages": 3, "length": 200 + number}, device="cpu",
        )  # fmt: skip
        files.append(tmp_path / f"{number}.json")
        found.save(files[-1])
    (tmp_path / "elsewhere").mkdir()
    moved = run.rename(tmp_path / "elsewhere" / run.name)
    (made,) = read_arms([moved], files)
    assert (made.name, made.seed) == ("vanilla", 7)
    (point,) = made.points
    assert point.step == 2
    assert point.dev == Record(moved / "record.jsonl").curve("dev")[-1][1]
    both = [json.loads(file.read_text())["metrics"]["out_loss"] for file in files]
    assert point.values["out_loss"] == pytest.approx(sum(both) / 2)
    with pytest.raises(SutureError, match="E938"):
        read_arms([moved, tmp_path], files)
    stranger = json.loads(files[0].read_text())
    stranger["model"]["fingerprint"] = "x"
    files[0].write_text(json.dumps(stranger))
    with pytest.raises(SutureError, match="E938") as caught:
        read_arms([moved], files)
    assert "0.json" in str(caught.value.where)
    shutil.copytree(moved, tmp_path / "cea-7.steps")
    other = tmp_path / "cea-7.steps" / "step-000002" / "pretraining.json"
    other.write_text(json.dumps({**json.loads(other.read_text()), "text": "another"}))
    with pytest.raises(SutureError, match="other texts"):
        read_arms([moved, tmp_path / "cea-7.steps"], [])


@pytest.mark.parametrize(
    ("runs", "how", "told"),
    [
        ([], "loss", "no runs"),
        ([FAST, FAST], "loss", "2 runs are called 'fast'"),
        ([FAST, Arm("x", 0, ())], "steps", "the run 'x'"),
        ([FAST, SLOW], "step", "equal 'step'"),
    ],
)
def test_what_are_no_runs_to_compare(runs: list[Arm], how: Any, told: str) -> None:
    with pytest.raises(SutureError) as caught:
        compare(runs, how=how, baseline="fast")
    assert caught.value.code == "E938"
    assert told in caught.value.what
    assert caught.value.fix


def test_what_cannot_be_compared() -> None:
    with pytest.raises(SutureError, match="E953") as caught:
        compare([FAST, SLOW], how="loss", baseline="vanilla")
    assert "fast, slow" in str(caught.value.fix)
    never = arm("late", 0, (100, 3.0, 1.0), (200, 2.0, 1.0))
    with pytest.raises(SutureError, match="E954"):
        compare([FAST, never], how="loss", baseline="fast")
