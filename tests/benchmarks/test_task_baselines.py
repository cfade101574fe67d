"""The table of CPU baselines: a row per task in the order of suites, a cell per baseline."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location(
    "task_baselines", ROOT / "benchmarks" / "task_baselines.py"
)
assert _spec is not None
assert _spec.loader is not None
bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)


def _row(task: str, baseline: str, **changes: Any) -> dict[str, Any]:
    return {
        "task": task, "suite": "sentiment", "aspect": None, "baseline": baseline, "test": 1037,
        "headline": "macro_f1", "seeds": [0.5, 0.52, 0.54],
        "metrics": {"macro_f1": {"value": 0.5123, "interval": [0.49, 0.53]}},
    } | changes  # fmt: skip


def test_the_page() -> None:
    rows = [
        _row("masc", "tf-idf"),
        _row(
            "masc", "majority", seeds=[0.2], metrics={"macro_f1": {"value": 0.2, "interval": None}}
        ),
        _row("a-emotion", "majority", suite="emotion", aspect="perception"),
    ]
    lines = bench.page(rows).splitlines()
    assert lines[2].startswith("| a-emotion | macro_f1 | 1,037 | 51.2 [49.0, 53.0] ± 2.0 | – |")
    assert lines[3] == "| masc | macro_f1 | 1,037 | 20.0 | – | 51.2 [49.0, 53.0] ± 2.0 | – |"


def test_a_task_is_learned_and_measured(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    text = "".join(f"a {('dull', 'fine')[k % 2]} film number {k}\t{k % 2}\n" for k in range(40))
    for name in ("train", "test"):
        (tmp_path / "sst2" / f"{name}.tsv").write_text(text)
    row = bench.Bench(bench.load_task("sst2"), tmp_path).run("lexicon", 2)
    assert (row["train"], row["test"], row["clusters"]) == (40, 40, 40)
    assert row["metrics"]["accuracy"]["value"] == 1
    assert len(row["seeds"]) == 2
    assert row["metrics"]["macro_f1"]["interval"][1] == 1


def test_the_written_page_is_that_of_the_results() -> None:
    rows = json.loads(bench.RESULTS.read_text(encoding="utf-8"))["rows"]
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(rows)
    found = {(row["task"], row["baseline"]): row["metrics"] for row in rows}
    for year, majority in ((2015, 58.53), (2017, 46.43)):
        accuracy = found[f"masc-twitter{year}", "majority"]["accuracy"]["value"]
        assert round(100 * accuracy, 2) == majority
