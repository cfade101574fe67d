"""From a task to rows, a training on them and a measurement; and a task from the documents."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import write_jsonl
from suture.cli.main import run
from suture.data import read_answered
from suture.ledger import Measurement

ROOT = Path(__file__).resolve().parents[2]
RECORDS = [
    {"id": str(i), "text": f"the fox {i}", "gold": "positive" if i % 2 else "negative"}
    for i in range(12)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "records.jsonl", RECORDS)


def test_rows_are_prompts_and_right_answers(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    line = ["task", "rows", "sst2", "--data", str(data), "-o", str(out)]
    assert run(line) == 0
    rows = read_answered(out)
    assert [row.response for row in rows] == [one["gold"] for one in RECORDS]
    assert all(one["text"] in row.prompt for row, one in zip(rows, RECORDS, strict=True))
    shapes = {row.prompt.replace(one["text"], "") for row, one in zip(rows, RECORDS, strict=True)}
    assert len(shapes) == 3  # wordings take turns
    first = out.read_bytes()
    assert run(line) == 0
    assert out.read_bytes() == first
    assert out.stat().st_mode & 0o777 == 0o600
    assert run([*line, "--paraphrases", "1", "--limit", "5"]) == 0
    assert (
        len({row.prompt.replace(row.prompt.split("fox ")[1][:1], "") for row in read_answered(out)})
        == 1
    )


def test_numbers_that_cannot_be_and_the_test_split(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("suture.progress.silent", False)
    line = ["task", "rows", "sst2", "--data", str(data), "-o", str(tmp_path / "r.jsonl")]
    for option in ("--paraphrases", "--orders"):
        assert run([*line, option, "0"]) != 0
        assert "E799" not in capsys.readouterr().err
        assert run([*line, option, "9"]) == 1
        assert "E580" in capsys.readouterr().err
    assert run([*line, "--split", "test"]) == 0
    assert "cannot be measured on it" in capsys.readouterr().err


def test_what_is_held_out_is_not_trained_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = ROOT / "src/suture/suites/data/tasks/sst2.yaml"
    file = tmp_path / "apart.yaml"
    file.write_text(shipped.read_text() + "held_out: true\n")
    assert run(["task", "rows", str(file), "--data", str(data), "-o", str(tmp_path / "r")]) == 1
    assert "E586" in capsys.readouterr().err
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"id": "1", "text": "x"}])
    assert run(["task", "rows", "sst2", "--data", str(bare), "-o", str(tmp_path / "r")]) == 1
    assert "E586" in capsys.readouterr().err


def test_the_tuned_way_from_rows_to_numbers(
    tiny: Callable[..., Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, tuned, out = tmp_path / "rows.jsonl", tmp_path / "tuned", tmp_path / "m.json"
    assert run(["task", "rows", "sst2", "--data", str(data), "-o", str(rows)]) == 0
    recipe = ["train", str(ROOT / "recipes" / "tune-task.yaml"), "--set", f"model={tiny()}"]
    recipe += ["--set", f"output={tuned}", "--set", f"data=[{{file: {rows}}}]"]
    recipe += ["--set", "train.epochs=1", "--set", "train.learning_rate=0.001"]
    assert run(recipe) == 0, capsys.readouterr().err
    measure = ["measure", "emotion", "--model", str(tuned), "--data", str(data), "--set"]
    assert run([*measure, "task=sst2", "-o", str(out), "--max-new-tokens", "4"]) == 0
    assert Measurement.load(out).derived["sst2.accuracy"]["n"] == len(RECORDS)


def test_the_task_of_the_documents_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "jobs" / "tasks.md").read_text(encoding="utf-8")
    (task,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (record,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    file, data, out = (tmp_path / name for name in ("queue-mood.yaml", "r.jsonl", "m.json"))
    file.write_text(task)
    write_jsonl(data, [json.loads(record)] * 1)
    line = ["measure", "sentiment", "--model", "baseline:majority", "--data", str(data)]
    train = write_jsonl(tmp_path / "t.jsonl", [{"id": "9", "text": "At last.", "gold": "calm"}])
    line += ["--set", f"task={file}", "--set", f"train={train}", "-o", str(out)]
    assert run(line) == 0
    found = Measurement.load(out)
    assert found.metrics["queue-mood.parsed_strict"] == 1.0
    assert found.replies == ()
    assert found.rows[0].cluster == "queue-mood/ticket 7"
