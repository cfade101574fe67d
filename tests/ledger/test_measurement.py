"""Measurement files: round trip, permissions, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from suture.errors import SutureError
from suture.ledger import (
    Measurement,
    ReplyRow,
    Row,
    load_replies,
    mean_scores,
    replies_path,
    replies_sha256,
)

ROWS = [Row("1", {"refusal_rate": 1.0}), Row("2", {"refusal_rate": 0.0}, "a")]
REPLY = ReplyRow("1", "a “prompt”\n", "a reply", True, 3)


def made(**changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "suite": "safety",
        "model": {"fingerprint": "f" * 64},
        "n": 2,
        "metrics": mean_scores(ROWS),
        "better": {"refusal_rate": "higher"},
        "rows": ROWS,
        "replies": [REPLY],
    }
    return Measurement(**{**values, **changes})


def test_round_trip(tmp_path: Path) -> None:
    file = made().save(tmp_path / "new" / "safety.json")
    assert Measurement.load(file) == made()
    content = json.loads(file.read_text())
    assert content["model"]["fingerprint"] == "f" * 64
    assert content["n"] == 2
    assert content["metrics"] == {"refusal_rate": 0.5}
    assert content["rows"][0] == {"item": "1", "scores": {"refusal_rate": 1.0}}
    assert content["rows"][1]["cluster"] == "a"
    assert "a reply" not in file.read_text()
    assert sorted(p.name for p in file.parent.iterdir()) == ["safety.json", "safety.replies.jsonl"]


def test_numbers_about_all_rows_need_no_row(tmp_path: Path) -> None:
    about = {"value": 0.3, "definition": "a p-value", "direction": "higher", "n": 2}
    whole = made(
        metrics={**mean_scores(ROWS), "p": 0.3},
        better={"refusal_rate": "higher", "p": "higher"},
        derived={"p": about},
    )
    file = whole.save(tmp_path / "m.json")
    assert Measurement.load(file) == whole
    content = json.loads(file.read_text())
    for wrong, said in (
        ({}, "metric 'p' has no row behind it"),
        ({"p": {**about, "value": 0.4}}, "'derived' and 'metrics' differ in 'p'"),
        ({"p": 0.3}, "'derived' is not an object of objects"),
    ):
        file.write_text(json.dumps({**content, "derived": wrong}))
        with pytest.raises(SutureError, match=said):
            Measurement.load(file)
    assert "derived" not in json.loads(made().save(file).read_text())


def test_replies_are_for_the_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = made().save(tmp_path / "safety.json")
    finally:
        os.umask(before)
    beside = replies_path(file)
    assert stat.S_IMODE(beside.stat().st_mode) == 0o600
    assert load_replies(beside) == [REPLY]


def test_the_hash_of_replies_is_of_canonical_lines() -> None:
    line = (
        r'{"ended":true,"item":"1","prompt":"a \u201cprompt\u201d\n","reply":"a reply","tokens":3}'
    )
    lines = f"{line}\n{line}\n".encode()
    assert replies_sha256([REPLY, REPLY]) == hashlib.sha256(lines).hexdigest()


def test_redact_leaves_no_replies(tmp_path: Path) -> None:
    file = made().save(tmp_path / "safety.json")
    made().save(file, redact=True)
    assert not replies_path(file).exists()


def test_a_score_that_is_no_number_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(SutureError, match="E601"):
        made(rows=[Row("1", {"kl": float("nan")})], metrics={}).save(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


GOOD: dict[str, Any] = {
    "suite": "s",
    "model": {"fingerprint": "f"},
    "n": 1,
    "metrics": {"m": 1.0},
    "rows": [{"item": "1", "scores": {"m": 1.0}}],
}


def test_the_least_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(GOOD))
    assert Measurement.load(tmp_path / "m.json").rows == [Row("1", {"m": 1.0})]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suite": None}, "suite"),
        ({"model": {}}, "fingerprint"),
        ({"rows": []}, "no rows"),
        ({"rows": GOOD["rows"] * 2}, "twice"),
        ({"n": 3}, "n is 3"),
        ({"metrics": {"other": 1.0}}, "other"),
        ({"rows": [{"item": "1", "scores": {"m": "yes"}}]}, r"rows\[0\]\.scores\.m"),
        ({"rows": [{"item": "1", "scores": {"m": float("nan")}}]}, "NaN"),
        ({"better": {"m": "up"}}, "better"),
    ],
)
def test_unusable_files(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(SutureError, match=said) as caught:
        Measurement.load(file)
    assert caught.value.code == "E602"
    assert caught.value.where == str(file)


@pytest.mark.parametrize(
    ("text", "where"),
    [('{"item": 1}\n', ":1"), ('{"item": 1, "reply": "a"}\n{\n', ":2"), ("\n", "")],
)
def test_unusable_replies(tmp_path: Path, text: str, where: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(text)
    with pytest.raises(SutureError) as caught:
        load_replies(file)
    assert (caught.value.code, caught.value.where) == ("E603", f"{file}{where}")


def test_means_leave_out_rows_without_the_score() -> None:
    rows = [Row("1", {"a": 1.0}), Row("2", {"a": 0.0, "b": 0.25})]
    assert mean_scores(rows) == {"a": 0.5, "b": 0.25}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"item": 1, "reply": "a"}\n\n{"item": "1", "reply": "b"}\n', "'1' stands in line 1"),
        ('{"item": 2, "reply": ""}\n\n{"item": 1, "reply": "b", "ended": "false"}\n', "'false'"),
    ],
)
def test_replies_name_the_line_that_is_wrong(tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(text)
    with pytest.raises(SutureError, match=what) as caught:
        load_replies(file)
    assert (caught.value.code, caught.value.where) == ("E603", f"{file}:3")
