"""The benchmark of the experts: its sides agree, its page says what was found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import moe as bench

ROW: dict[str, Any] = {
    "experts": 64, "hidden": 768, "width": 768, "tokens": 4096, "threads": 1,
    "ms": {
        "ours": {"cpu": 300.0, "wall": 310.0},
        "dense": {"cpu": 290.0, "wall": 300.0},
        "loop": {"cpu": 3000.0, "wall": 3100.0},
        "grouped_mm": {"cpu": 390.0, "wall": 400.0},
        "eager": {"cpu": 3300.0, "wall": 3400.0},
    },
    "left_out": ["batched_mm: its copies take 27 GiB"],
}  # fmt: skip


def test_all_sides_agree_at_a_small_size() -> None:
    case = bench.Case(5, 16, 8, 33)
    sides = case.sides()
    case.check(sides)
    assert set(sides) >= {"ours", "dense", "loop", "eager", "grouped_mm", "batched_mm"}
    found = bench.measure(sides, 1)
    assert all(side["cpu"] >= 0 for side in found.values())


def test_a_side_that_differs_is_not_timed() -> None:
    case = bench.Case(5, 16, 8, 33)
    sides = case.sides()
    loop = sides["loop"]
    sides["loop"] = lambda: (2 * loop()[0], loop()[1])
    with pytest.raises(AssertionError):
        case.check(sides)


def test_ratios_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench.ratios(ROW)
    assert found == {
        "dense": pytest.approx(300 / 290), "loop": 10.0, "transformers": pytest.approx(1.3),
    }  # fmt: skip
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "moe.json")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "moe.md")
    bench.write(ROW)
    bench.write({**ROW, "threads": 2})
    bench.write(ROW)  # in the place of the former one
    assert len(json.loads((tmp_path / "moe.json").read_text())["rows"]) == 2
    text = (tmp_path / "moe.md").read_text()
    assert "at most | 1.1 | 1.03 |" in text
    assert "batched_mm: its copies take 27 GiB." in text
