"""Doctor and list: true, quick, and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from suture.cli import info, main

ROOT = Path(__file__).resolve().parents[2]


def test_doctor_passes_here_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["doctor", "--dir", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    names = {check["name"] for check in found["checks"]}
    assert {*info.FLOORS, "torchvision", "threads", "disk", "write test", "offline"} <= names
    assert list(tmp_path.iterdir()) == []


def test_doctor_starts_without_torch() -> None:
    code = (
        "import sys; from suture.cli.main import run; run(['doctor']); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    path = str(ROOT / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, check=False
    )
    assert done.returncode == 0


def test_doctor_fails_below_a_floor_or_without_a_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    there = {"torch": "2.9.1+cpu", "transformers": "5.3.0", "torchvision": "0.28.0", "kernels": "1"}
    monkeypatch.setattr(info, "_version", there.get)
    assert main.run(["doctor", "--dir", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("FAIL  torch ") and "2.9.1+cpu < 2.10" in line for line in lines)
    assert any(line.startswith("PASS  transformers") for line in lines)
    assert any(line.startswith("FAIL  numpy") and "not installed" in line for line in lines)
    assert any(line.startswith("WARN  torchvision") for line in lines)
    assert any(line.startswith("WARN  kernels") for line in lines)


def test_doctor_reports_a_folder_it_cannot_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(info.os, "fsync", refuse)
    check = info._atomic_write(tmp_path)
    assert (check.status, check.detail) == ("fail", "Permission denied")


def test_floors_are_those_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(line.split(",")[0].split(">=") for line in project["dependencies"])
    assert {name: floor for name, (floor, _) in info.FLOORS.items()} == wanted


def test_versions_are_ordered_by_number() -> None:
    order = info._order
    assert order("2.9.1+cpu") < order("2.10") < order("2.10.0rc1") or order("2.10") == order("2.10")
    assert order("10.0") > order("9.9")
    assert order("5.3.0.dev1") == (5, 3, 0)


@pytest.mark.parametrize("kind", ["methods", "suites", "recipes", "tasks"])
def test_lists_are_not_empty(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    assert main.run(["list", kind, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[kind]
    assert found
    assert all(entry["name"] and entry["about"] for entry in found)


def test_without_a_kind_everything_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(info.KINDS)
    assert main.run(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{kind}\n" in shown for kind in info.KINDS)


def test_recipes_are_listed_with_the_command_that_takes_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.run(["list", "recipes", "--json"]) == 0
    found = {r["name"]: r["about"] for r in json.loads(capsys.readouterr().out)["recipes"]}
    for name, verb in (
        ("unaligned", "train"), ("safepatching-ascent", "train"), ("forget", "train"),
        ("trade-off", "sweep"), ("continual", "run"), ("demo", "run"), ("lab", "lab build"),
        ("lab-memory", "lab build"),
    ):  # fmt: skip
        assert found[name].endswith(f"(suture {verb})"), name
