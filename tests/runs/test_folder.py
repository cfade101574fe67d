"""A run folder resumes: finished stages are reused while inputs and outputs are unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suture.errors import SutureError
from suture.runs.folder import RunFolder


class Kitchen:
    """Three stages that depend on each other; counts how often each was really run."""

    def __init__(self, path: Path) -> None:
        self.path, self.ran = path, list[str]()
        self.data, self.fail = "data", ""

    def run(self) -> RunFolder:
        home = RunFolder.open(self.path)
        with home.lock():
            one = home.stage("one", inputs={"data": self.data}, work=self._work(home, "one"))
            two = home.stage(
                "two",
                inputs={"one": one.facts},
                outputs=("two.txt", "tree"),
                work=self._work(home, "two"),
            )
            home.stage("three", inputs={"two": two.facts}, work=self._work(home, "three"))
        return home

    def _work(self, home: RunFolder, name: str) -> Callable[[], dict[str, Any]]:
        def work() -> dict[str, Any]:
            self.ran.append(name)
            if name == "two":
                (home.path / "two.txt").write_text(self.data)
                (home.path / "tree").mkdir()
                (home.path / "tree" / "leaf").write_text("leaf")
            if name == self.fail:
                raise KeyboardInterrupt
            return {"made from": self.data}

        return work


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path / "run")


def test_the_same_call_reuses_everything(kitchen: Kitchen) -> None:
    first = kitchen.run()
    again = kitchen.run()
    assert kitchen.ran == ["one", "two", "three"]
    assert [r.reused for r in again.finished] == [True] * 3
    assert again.seconds == first.seconds
    assert again.finished[0].facts == {"made from": "data"}


def test_an_interrupted_stage_runs_again_and_finished_ones_do_not(kitchen: Kitchen) -> None:
    kitchen.fail = "two"
    with pytest.raises(KeyboardInterrupt):
        kitchen.run()
    kitchen.fail = ""
    kitchen.run()
    assert kitchen.ran == ["one", "two", "two", "three"]
    lines = (kitchen.path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [(e["event"], e["stage"]) for e in events] == [
        ("begun", "one"),
        ("done", "one"),
        ("begun", "two"),
        ("interrupted", "two"),
        ("reused", "one"),
        ("begun", "two"),
        ("done", "two"),
        ("begun", "three"),
        ("done", "three"),
    ]


def test_a_changed_input_redoes_what_depends_on_it(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.data = "other"
    kitchen.run()
    assert kitchen.ran == ["one", "two", "three"] * 2
    assert (kitchen.path / "two.txt").read_text() == "other"


@pytest.mark.parametrize("damage", ["changed", "removed", "record", "added"])
def test_damaged_output_is_made_again(kitchen: Kitchen, damage: str) -> None:
    home = kitchen.run()
    if damage == "changed":
        (home.path / "two.txt").write_text("tampered")
    elif damage == "removed":
        (home.path / "tree" / "leaf").unlink()
    elif damage == "added":
        (home.path / "tree" / "more").write_text("x")
    else:
        (home.path / "stages" / "two.json").write_text('{"key": ')
    kitchen.run()
    assert kitchen.ran == ["one", "two", "three", "two"]


def test_outputs_stay_inside(tmp_path: Path) -> None:
    home = RunFolder.open(tmp_path / "run")
    for output in ("../x", "/tmp/x"):
        with pytest.raises(ValueError, match="leaves"):
            home.stage("s", inputs={}, outputs=(output,), work=dict)


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SutureError, match="E724"):
        RunFolder.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(SutureError, match="E724"):
        RunFolder.open(tmp_path / "thesis.txt")


def test_roles_cannot_change_after_measuring(tmp_path: Path) -> None:
    home = RunFolder.open(tmp_path / "run")
    home.claim({"name": "a"}, "hash one")
    home.claim({"name": "a"}, "hash two")  # nothing measured yet
    home.stage("measure-before-safety", inputs={}, work=dict)
    home.claim({"name": "b"}, "hash two")
    with pytest.raises(SutureError, match="E725"):
        home.claim({"name": "b"}, "hash three")


def test_one_process_at_a_time_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys; from suture.runs.folder import RunFolder\n"
        "with RunFolder.open(sys.argv[1]).lock():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    src = str(Path(__file__).resolve().parents[2] / "src")
    home = RunFolder.open(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.path)],
        env={"PYTHONPATH": src},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SutureError, match=f"pid {holder.pid}"), home.lock():
            pass
        holder.kill()
    with home.lock():
        assert "pid" in (home.path / "lock").read_text()
