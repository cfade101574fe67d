"""The map of tasks: every modality of the survey, and what is on a disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from suture.cli import main
from suture.suites.tasks.spec import shipped

ROOT = Path(__file__).resolve().parents[2]


def test_the_map_names_every_task_and_every_modality(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["list", "tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tasks"]
    assert {row["name"] for row in rows} == set(shipped())
    modalities = {name for row in rows for name in row["modalities"]}
    assert modalities == {"text", "image", "audio", "video", "physiology"}
    notes = {row["name"]: row["notes"] for row in rows}
    assert "ecf" in notes["meld-emotion"]  # the same conversations
    assert all(row["licence"] and row["metrics"] and row["there"] is None for row in rows)


def test_what_is_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_text("dull\t0\n")
    assert main.run(["list", "tasks", "--data", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (own,) = [line for line in lines if line.startswith("sst2 ")]
    (other,) = [line for line in lines if line.startswith("goemotions ")]
    assert own.endswith("  dev")
    assert other.endswith("  -")


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["list", "tasks", "--data", str(tmp_path / "no"), "--json"]) == 1
    assert "E730" in capsys.readouterr().out


def test_the_map_needs_no_heavy_library() -> None:
    code = (
        "import sys; from suture.cli.main import run; run(['list', 'tasks']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'sklearn')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
