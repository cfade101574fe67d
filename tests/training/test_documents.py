"""Text files of every kind become documents; what cannot be read is said with file and remedy."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from suture.errors import SutureError
from suture.training.documents import Document, TextSource, documents, held_out, sections


def read(path: Path, **options: Any) -> list[str]:
    return [d.text for d in documents(TextSource(name="x", files=(path,), **options))]


def test_text_is_one_document_or_split(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\ntwo\n\nthree\n".encode())
    assert read(file) == ["one\ntwo\n\nthree"]
    assert read(file, split=r"\n\n") == ["one\ntwo", "three"]
    assert read(file, split=r"\n\n", most=9) == ["one\ntwo", "th"]


def test_rows_of_every_kind(tmp_path: Path) -> None:
    rows = [{"text": "first", "more": 'a,"b"'}, {"text": "second\nline", "more": "c"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.csv").write_text('text,more\nfirst,"a,""b"""\n"second\nline",c\n')
    for name in ("a.json", "a.jsonl.gz", "a.csv"):
        assert read(tmp_path / name) == ["first", "second\nline"]
        both = read(tmp_path / name, field=["text", "more"])
        assert both == ['first\na,"b"', "second\nline\nc"]


def test_an_archive_gives_its_text_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, text in (("c/b.txt", "b"), ("c/a.txt", "a"), ("c/README", "x"), ("c/d.xml", "d")):
            archive.writestr(name, text)
    found = documents(TextSource(name="x", files=(tmp_path / "a.zip",), inside="*.txt"))
    assert list(found) == [
        Document("x", f"{tmp_path}/a.zip/c/a.txt", "a"),
        Document("x", f"{tmp_path}/a.zip/c/b.txt", "b"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "options", "code", "place"),
    [
        ("a.txt", b"caf\xe9", {}, "E940", "a.txt"),
        ("a.pdf", b"x", {}, "E940", "a.pdf"),
        ("a.txt.gz", b"no gzip", {}, "E940", "a.txt.gz"),
        ("a.zip", b"no zip", {}, "E940", "a.zip"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', {}, "E940", "a.jsonl"),
        ("a.jsonl", b'{"text": "x"}\n\n{"body": "x"}\n', {}, "E941", "a.jsonl:3"),
        ("a.csv", b"title,body\na,b\n", {}, "E941", "a.csv:2"),
        ("a.txt", b" \n\n ", {}, "E942", "a.txt"),
        ("a.json", b"[1, 2, 3]", {}, "E941", "a.json:1"),
        ("a.jsonl", b'{"text": "x"}\n"str"\n', {}, "E941", "a.jsonl:2"),
    ],
)
def test_what_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, options: dict[str, Any], code: str, place: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SutureError) as caught:
        read(tmp_path / name, **options)
    assert caught.value.code == code
    assert place in str(caught.value.where)
    assert caught.value.fix


def test_latin_1_is_read_when_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert read(tmp_path / "a.txt", encoding="latin-1") == ["café"]


def test_sections_are_the_text_cut_at_paragraphs() -> None:
    text = "\n\n".join(f"Paragraph {i} " + "word " * 20 for i in range(200))
    found = list(sections(text, 1000))
    assert "".join(found) == text
    assert all(part.endswith("\n\n") and 1000 <= len(part) <= 2000 for part in found[:-1])
    assert "".join(sections("x" * 5000, 1000)) == "x" * 5000
    assert list(sections("short", 1000)) == ["short"]


def test_a_section_is_held_out_by_its_words() -> None:
    texts = [f"section number {i}" for i in range(4000)]
    kept = [text for text in texts if held_out(text, 0.1)]
    assert 0.08 < len(kept) / len(texts) < 0.12
    assert all(held_out(f"  {text.upper()} ", 0.1) for text in kept)
    assert {text for text in texts if held_out(text, 0.05)} <= set(kept)
