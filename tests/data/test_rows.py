"""Rows to train on in their usual forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import write_jsonl
from suture.data import AnsweredPair, Passage, read_answered
from suture.errors import SutureError


def test_questions_and_answers_are_prompts_and_responses(tmp_path: Path) -> None:
    asked = [{"question": "q1", "answer": "a1", "cluster": "c"}, {"question": "q2", "answer": "a2"}]
    found = read_answered(write_jsonl(tmp_path / "a.jsonl", asked))
    chat = [{"prompt": "q1", "response": "a1", "cluster": "c"}, {"prompt": "q2", "response": "a2"}]
    assert found == read_answered(write_jsonl(tmp_path / "b.jsonl", chat))
    assert [type(row) for row in found] == [AnsweredPair] * 2
    assert found[0].id == "1"
    assert found[0].cluster == "c"


def test_texts_are_passages_with_nothing_that_asks(tmp_path: Path) -> None:
    rows = read_answered(write_jsonl(tmp_path / "a.jsonl", [{"text": "One."}, {"text": "Two."}]))
    assert rows == [Passage(id="1", response="One."), Passage(id="2", response="Two.")]
    assert rows[0].prompt == ""
    file = tmp_path / "book.txt"
    file.write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.\n")
    assert read_answered(file) == [Passage(id="book.txt", response="One.\nTwo.\n")]


def test_the_limit_holds_in_every_form(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(5)]
    assert len(read_answered(write_jsonl(tmp_path / "a.jsonl", rows), limit=2)) == 2


@pytest.mark.parametrize(
    ("rows", "code", "where"),
    [
        ([{"question": "q", "answer": "a"}, {"question": "q"}], "E306", ":2:1"),
        ([{"question": "q", "answer": " "}], "E307", ":1:"),
        ([{"name": "q"}], "E306", ""),
        ([{"text": ""}], "E307", ":1:"),
        ([{"prompt": "q"}], "E306", ":1:1"),
        ([{"text": "a"}, {"prompt": "q", "response": "a"}], "E306", ":2:"),
        ([{"id": "x", "text": "a"}, {"id": "x", "text": "b"}], "E308", ":2:"),
    ],
)
def test_refusals_name_file_and_line(tmp_path: Path, rows: Any, code: str, where: str) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(SutureError) as caught:
        read_answered(file)
    assert caught.value.code == code
    assert str(caught.value.where).startswith(f"{file}{where}")


def test_text_files_without_text_and_of_other_encodings(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for content, code in ((b" \n", "E302"), (b"one\n\xff", "E303")):
        file.write_bytes(content)
        with pytest.raises(SutureError) as caught:
            read_answered(file)
        assert caught.value.code == code
    with pytest.raises(SutureError) as caught:
        read_answered(tmp_path / "none.jsonl")
    assert caught.value.code == "E301"
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    with pytest.raises(SutureError) as caught:
        read_answered(tmp_path / "empty.jsonl")
    assert caught.value.code == "E302"
