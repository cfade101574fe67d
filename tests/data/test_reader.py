"""Every way a data file can be wrong is refused with file, line and column; nothing else is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture.data import AnsweredPair, Choice, Pair, Prompt, read_jsonl, reader, sha256_file
from suture.errors import SutureError

GOOD = b'{"prompt": "Hello"}\n'


def _file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return path


def _refusal(path: Path, record: type = Prompt) -> SutureError:
    with pytest.raises(SutureError) as caught:
        read_jsonl(path, record)
    return caught.value


@pytest.mark.parametrize(
    ("content", "code", "at", "words"),
    [
        (b"", "E302", "1:1", "no rows"),
        (b"\n \n\r\n", "E302", "1:1", "no rows"),
        (GOOD + b'{"prompt": "caf\xe9"}\n', "E303", "2:16", "0xe9"),
        ('{"prompt": "x"}\n'.encode("utf-16"), "E303", "1:1", "UTF-16"),
        (GOOD + b'\n{"prompt": "a" "b"}\n', "E304", "3:16", "delimiter"),
        (b'[\n{"prompt": "a"}]\n', "E304", "1:2", "jq -c"),
        (b"id,prompt\n1,hello\n", "E304", "1:1", "JSONL"),
        (b'{"prompt": "a", "x": NaN}\n', "E304", "1:1", "NaN"),
        (b'{"prompt": "a", "prompt": "b"}\n', "E304", "1:17", "twice"),
        (b"[" * 100_000 + b"]" * 100_000 + b"\n", "E304", "1:1", "nested"),
        (GOOD + b'"just text"\n', "E305", "2:1", "a string"),
        (GOOD + b"[1]\n", "E305", "2:1", "a list"),
        (b"{}\n", "E306", "1:1", "nothing"),
        (b'{"id": "a", "promt": "b"}\n', "E306", "1:13", "'promt' meant"),
        (b'{"prompt": 5}\n', "E307", "1:2", "a text"),
        (b'{"prompt": "  "}\n', "E307", "1:2", "blank"),
        (b'{"prompt": "a", "id": true}\n', "E307", "1:17", "a text"),
        (b'{"prompt": "a", "id": 7}\n{"prompt": "b", "id": "7"}\n', "E308", "2:17", "line 1"),
        (b'{"prompt": "a", "id": "2"}\n{"prompt": "b"}\n', "E308", "2:1", "line 1"),
        (b'{"prompt": "\\ud83d"}\n', "E310", "1:2", "U+D83D"),
        (b'{"prompt": "a", "clutser": "x"}\n', "E311", "1:17", "'cluster'"),
        (GOOD + b'{"prompt": "Hel', "E312", "2:12", "cut off"),
        (GOOD + b'{"prompt": "Hello"', "E312", "2:19", "cut off"),
        (GOOD + b'{"prompt": "caf\xc3', "E312", "2:16", "cut off"),
    ],
)
def test_refusals_name_file_line_and_column(
    tmp_path: Path, content: bytes, code: str, at: str, words: str
) -> None:
    path = _file(tmp_path, content)
    error = _refusal(path)
    assert (error.code, error.where) == (code, f"{path}:{at}")
    assert words in str(error)
    assert error.fix


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "absent.jsonl").code == "E301"
    assert "is a folder" in _refusal(tmp_path).what


def test_a_huge_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LINE_BYTES", 64)
    path = _file(tmp_path, GOOD + b'{"prompt": "' + b"a" * 100 + b'"}\n')
    assert (_refusal(path).code, _refusal(path).where) == ("E309", f"{path}:2:1")


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"prompt": "Hello"}\r\n\r\n{"prompt": "There"}\r\n',
        b'\n{"prompt": "Hello", "source": {"any": [1]}}\n\n{"prompt": "There"}',
    ],
    ids=["BOM and CRLF", "blank lines, extra column, no last newline"],
)
def test_what_is_accepted(tmp_path: Path, content: bytes) -> None:
    rows = read_jsonl(_file(tmp_path, content), Prompt)
    assert [row.prompt for row in rows] == ["Hello", "There"]


def test_line_separators_inside_strings_do_not_split_rows(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"prompt": "a\u2028b\x85c"}\n'.encode())
    assert read_jsonl(path, Prompt)[0].prompt == "a\u2028b\x85c"


def test_ids_default_to_line_numbers_and_numbers_become_text(tmp_path: Path) -> None:
    path = _file(tmp_path, GOOD + b"\n" + b'{"prompt": "b", "id": 70}\n' + GOOD)
    assert [row.id for row in read_jsonl(path, Prompt)] == ["1", "70", "4"]


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = _file(tmp_path, GOOD * 2 + b"broken\n")
    assert len(read_jsonl(path, Prompt, limit=2)) == 2
    with pytest.raises(SutureError, match="E702"):
        read_jsonl(path, Prompt, limit=0)


def test_pairs_and_choices(tmp_path: Path) -> None:
    path = _file(tmp_path, b'{"prompt": "a"}\n{"prompt": "b", "response": "c"}\n')
    assert [row.response for row in read_jsonl(path, Pair)] == [None, "c"]
    error = _refusal(path, AnsweredPair)
    assert (error.code, error.where) == ("E306", f"{path}:1:1")
    assert "'response'" in error.what
    row = {"prompt": "a", "options": ["x", "y"], "answer": 1}
    choice = read_jsonl(_file(tmp_path, json.dumps(row).encode()), Choice)[0]
    assert choice.options[choice.answer] == "y"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": 2}, "options are 0 to 1"),
        ({"answer": True}, "whole number"),
        ({"answer": "1"}, "whole number"),
        ({"options": ["x"]}, "at least 2"),
        ({"options": ["x", "x"]}, "differ"),
        ({"options": "xy"}, "list"),
    ],
)
def test_wrong_choices(tmp_path: Path, change: dict[str, object], words: str) -> None:
    row = {"prompt": "a", "options": ["x", "y"], "answer": 1} | change
    error = _refusal(_file(tmp_path, json.dumps(row).encode()), Choice)
    assert error.code == "E307"
    assert words in error.what


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = _file(tmp_path_factory.getbasetemp(), raw)
    error = None
    try:
        assert read_jsonl(path, Prompt)
    except SutureError as refusal:
        error = refusal
    assert error is None or (error.where or "").startswith(f"{path}:")


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(_file(tmp_path, b"abc")) == expected


def test_tables_and_gzip_are_read_like_lines(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "x, y"}, {"id": "b", "prompt": "two\n\nlines", "cluster": "c"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "p.jsonl").write_text(lines)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    table = 'id,prompt,cluster\na,"x, y",\nb,"two\n\nlines",c\n'
    (tmp_path / "p.csv").write_text(table)
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(table.encode()))
    expected = read_jsonl(tmp_path / "p.jsonl", Prompt)
    for name in ("p.jsonl.gz", "p.csv", "p.csv.gz"):
        assert read_jsonl(tmp_path / name, Prompt) == expected
    (tmp_path / "c.csv").write_text('prompt,options,answer\nQ,"[""yes"", ""no""]",1\n')
    [choice] = read_jsonl(tmp_path / "c.csv", Choice)
    assert (choice.options, choice.answer, choice.id) == (["yes", "no"], 1, "2")


def test_damaged_gzip_and_wide_rows_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "p.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"prompt": "x"}\n')[:-6])
    (tmp_path / "w.csv").write_text("prompt\nx, y\n")
    for name, code in ((cut.name, "E301"), ("w.csv", "E305")):
        with pytest.raises(SutureError) as caught:
            read_jsonl(tmp_path / name, Prompt)
        assert caught.value.code == code
    with pytest.raises(SutureError, match=r"did you mean '.*w\.csv'"):
        read_jsonl(tmp_path / "w.csw", Prompt)
