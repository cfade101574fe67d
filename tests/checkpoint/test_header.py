"""The safetensors header: refused whenever two readers could see two models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from raw_folders import floats, pack, pack_header
from suture.checkpoint.header import build_header, read_header
from suture.errors import SutureError


def parse(path: Path):  # type: ignore[no-untyped-def]
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(fd, name=path.name, where=str(path))
    finally:
        os.close(fd)


def refusal(path: Path, content: bytes) -> SutureError:
    path.write_bytes(content)
    with pytest.raises(SutureError) as caught:
        parse(path)
    assert str(path) in str(caught.value)
    return caught.value


def entry(span: list[int], shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape or [span[1] - span[0]], "data_offsets": span}


@pytest.mark.parametrize(
    ("header", "data", "code", "words"),
    [
        ({"a": entry([0, 2]), "b": entry([1, 3])}, 3, "E112", "overlap"),
        ({"a": entry([0, 2]), "b": entry([3, 4])}, 4, "E112", "gap"),
        ({"a": entry([0, 2])}, 5, "E112", "3 trailing bytes"),
        ({"a": entry([0, 9])}, 4, "E111", "truncated"),
        ({"a": entry([0, 2], [3])}, 2, "E112", "does not fill"),
        ({"a": entry([0, 2], [2], "F128")}, 2, "E112", "unknown dtype"),
        ({"a": entry([0, 2], [-1, -2])}, 2, "E112", "whole numbers"),
        ({"a": entry([0, 2], [True, 2])}, 2, "E112", "whole numbers"),
        ({"a": entry([0, 0], [2**62, 2**62])}, 0, "E112", "does not fill"),
        ({"a": {"dtype": "U8", "shape": [1]}}, 1, "E112", "expected dtype"),
        ({"a": 3}, 1, "E112", "expected dtype"),
        ({"__metadata__": {"x": 1}}, 0, "E112", "strings"),
        ({"a\x1b[31m": entry([0, 1])}, 1, "E112", "not printable"),
        ({"": entry([0, 1])}, 1, "E112", "empty"),
    ],
)
def test_refused_layouts(
    tmp_path: Path, header: dict[str, object], data: int, code: str, words: str
) -> None:
    error = refusal(tmp_path / "x.safetensors", pack_header(json.dumps(header)) + bytes(data))
    assert error.code == code
    assert words in error.what


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "E111", "8 bytes expected, 0 found"),
        (b"\0\0\0", "E111", "truncated"),
        ((2**62).to_bytes(8, "little") + b"{}", "E112", "limit"),
        ((100).to_bytes(8, "little") + b"{}", "E111", "108 bytes expected, 10 found"),
        (pack_header("[]"), "E112", "begin with"),
        (pack_header(b'{"\xff": 1}'), "E112", "UTF-8"),
        (pack_header('{"a":' * 5000 + "1" + "}" * 5000), "E112", "nested"),
        (pack_header('{"a": NaN}'), "E112", "NaN is not JSON"),
        (pack_header('{"a": ' + "9" * 5000 + "}"), "E112", "out of range"),
        (pack_header('{"a": 1'), "E112", "not JSON"),
    ],
)
def test_refused_bytes(tmp_path: Path, content: bytes, code: str, words: str) -> None:
    error = refusal(tmp_path / "x.safetensors", content)
    assert error.code == code
    assert words in error.what


def test_duplicate_names_are_refused_where_the_reference_takes_the_last(tmp_path: Path) -> None:
    one, two = json.dumps(entry([0, 4], [1], "F32")), json.dumps(entry([4, 8], [1], "F32"))
    path = tmp_path / "x.safetensors"
    error = refusal(path, pack_header(f'{{"a": {one}, "a": {two}}}') + bytes(8))
    assert error.code == "E113"
    assert "'a'" in error.what


names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(st.dictionaries(names, st.tuples(st.sampled_from(["U8", "F32", "I16"]), st.integers(0, 5))))
def test_agrees_with_the_reference_reader(
    tmp_path_factory: pytest.TempPathFactory, layout: dict[str, tuple[str, int]]
) -> None:
    width = {"U8": 1, "F32": 4, "I16": 2}
    tensors = {n: (d, (c, 1), bytes(range(c * width[d]))) for n, (d, c) in layout.items()}
    path = tmp_path_factory.mktemp("header") / "x.safetensors"
    path.write_bytes(pack(tensors, {"format": "pt"}))
    found, metadata, _start = parse(path)
    with safe_open(path, "numpy") as reference:
        assert set(reference.keys()) == set(found)
        assert reference.metadata() == metadata
    raw = path.read_bytes()
    for name, info in found.items():
        assert (info.dtype, info.shape) == tensors[name][:2]
        assert raw[info.start : info.start + info.nbytes] == tensors[name][2]


@given(st.data())
def test_whatever_is_accepted_the_reference_accepts_too(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Damage one byte anywhere in the header: never a crash, never laxer than the reference."""
    content = bytearray(pack({"a": floats(1.0), "b": ("U8", (2, 2), b"abcd")}))
    at = data.draw(st.integers(0, len(content) - 9))
    content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(content)
    try:
        found = set(parse(path)[0])
    except SutureError as refused:
        found = None
        code = refused.code
    if found is None:
        assert code in {"E111", "E112", "E113"}
        return
    with safe_open(path, "numpy") as reference:  # raises where the reference refuses
        assert set(reference.keys()) == found


def test_build_header_is_read_back(tmp_path: Path) -> None:
    entries = [("w", "F32", (2, 2)), ("é", "U8", (3,)), ("s", "I8", ())]
    header, starts = build_header(entries, {"format": "pt"})
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(16 + 3 + 1))
    found, metadata, start = parse(path)
    assert {name: info.start for name, info in found.items()} == starts
    assert metadata == {"format": "pt"}
    assert start % 8 == 0
