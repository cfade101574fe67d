"""The page of benchmarks/unlearning.py is that of its results, and the claims in it hold."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "unlearning.json"


@pytest.fixture
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("unlearning", ROOT / "benchmarks/unlearning.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_results(bench: Any) -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["arms"]
    page = (ROOT / "docs" / "generated" / "unlearning.md").read_text(encoding="utf-8")
    assert bench.page(rows) == page


@pytest.mark.parametrize("what", ["full", "lora"])
@pytest.mark.parametrize("way", ["live", "whole"])
def test_the_bounds_are_met(bench: Any, what: str, way: str) -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["arms"]
    ours, peer = rows[f"cached-{what}"], rows[f"{way}-{what}"]
    faster, share = bench.BOUNDS[what]
    assert peer["cpu_ms_per_token"] >= faster * ours["cpu_ms_per_token"]
    assert ours["memory_mb"] <= share * peer["memory_mb"]
    assert ours["losses"] == pytest.approx(peer["losses"], abs=1e-5)
    assert rows["npo-ours"]["cpu_ms_per_token"] <= rows["npo-trainer"]["cpu_ms_per_token"]
