"""The table of unlearning: settings come from the tuning side, intervals from the families."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import unlearning_points as points
import unlearning_report as report

BEFORE = {"forget_ks": 0.5, "model_utility_geometric": 0.8}


def trajectory(ks: float, utility: float) -> dict[str, Any]:
    epochs = []
    for epoch in (2, points.FIXED):
        numbers = dict.fromkeys(report.COLUMNS, 0.5)
        numbers |= {"forget_ks": ks * points.FIXED / epoch, "model_utility_geometric": utility}
        epochs.append({"epoch": epoch, "metrics": {f"tofu.{k}": v for k, v in numbers.items()}})
    return {"fixed": points.FIXED, "first_peak": 2, "epochs": epochs}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Every method's second setting is best on the tuning side, and worst on the families."""
    for side in ("tuning", "seed-0", "seed-1"):
        home = tmp_path / side
        (home / "points").mkdir(parents=True)
        for name in ("before", "oracle"):
            (home / f"{name}.json").write_text(json.dumps({"metrics": BEFORE}))
        seen: dict[str, int] = {}
        for point in points.points():
            place = seen[point.method] = seen.get(point.method, -1) + 1
            good = (place == 1) == (side == "tuning")
            found = trajectory(0.1 if good else 0.4, 0.6 if side != "seed-1" else 0.7)
            file = home / "points" / f"{point.folder}.epochs" / "trajectory.json"
            file.parent.mkdir()
            file.write_text(json.dumps(found))
    return tmp_path


def test_settings_are_chosen_on_the_tuning_side_alone(cache: Path) -> None:
    picked = report.choose(cache)
    firsts = {}
    for point in points.points():
        firsts.setdefault(point.method, []).append(point)
    assert picked == {method: settings[1] for method, settings in firsts.items()}
    rows = report.collect(cache)["rows"]
    assert {value for row in rows for value in row["fixed"]["forget_ks"]} == {0.4}


def test_methods_with_settings_missing_are_left_out(cache: Path) -> None:
    lost = next(point for point in points.points() if point.method == "GA")
    (cache / "tuning" / "points" / f"{lost.folder}.epochs" / "trajectory.json").unlink()
    assert "GA" not in report.choose(cache)


def test_the_overall_score() -> None:
    found = trajectory(0.25, 0.4)
    assert report.overall(found, BEFORE) == pytest.approx(0.5)  # half of the way, half of it kept
    assert report.overall(trajectory(0.6, 0.8), BEFORE) == 0.0
    assert report.overall({"diverged": "loss is nan", "epochs": []}, BEFORE) == 0.0


def test_intervals_are_over_families(cache: Path) -> None:
    mean, low, high = report.mean_interval([0.6, 0.7])
    assert mean == pytest.approx(0.65)
    assert high - mean == pytest.approx(12.706 * 0.05 * math.sqrt(2) / math.sqrt(2), rel=1e-3)
    assert low == pytest.approx(2 * mean - high)
    table = report.markdown(report.collect(cache))
    assert "n = 2 families" in table
    assert "| RKLD |" in table
    assert "0.650 [" in table


def test_every_method_has_as_many_settings() -> None:
    counts: dict[str, int] = {}
    for point in points.points():
        counts[point.method] = counts.get(point.method, 0) + 1
    assert set(counts.values()) == {6}
