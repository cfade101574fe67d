"""Files of votes: both forms, gaps, and every refusal with its place and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import write_jsonl
from suture.errors import SutureError
from suture.labels import Scale, read_scales, read_votes


def wide(**dimensions: Any) -> dict[str, Any]:
    return {"id": 1, "annotation": {name.replace("_", "/"): v for name, v in dimensions.items()}}


TWO = {"A1": "E+", "A2": "I-"}


def refused(path: Path, code: str, *words: str, scales: tuple[str, ...] = ()) -> str:
    with pytest.raises(SutureError) as raised:
        read_votes(path, read_scales(scales))
    told = str(raised.value)
    assert raised.value.code == code, told
    assert raised.value.fix
    for word in words:
        assert word in told, told
    return told


def test_one_row_per_item(tmp_path: Path) -> None:
    rows = [
        {**wide(E_I={"A2": "I-", "A1": "E+"}), "posts": ["never kept"], "source": "here"},
        {"id": "two", "annotation": {"E/I": {"A1": None, "A3": " I+ "}}},
    ]
    read = read_votes(write_jsonl(tmp_path / "v.jsonl", rows))
    assert read.items == ["1", "two"]
    assert read.annotators == ["A1", "A2", "A3"]
    assert read.ballots["E/I"].table(2, 3).tolist() == [[0, 2, -1], [-1, -1, 3]]
    assert read.rows == [{"source": "here"}, {}]
    assert read.ids == [1, "two"]
    assert list(read.lines) == [1, 2]
    assert read_votes(tmp_path / "v.jsonl", limit=1).items == ["1"]


def test_one_row_per_vote_in_any_order_and_as_a_table(tmp_path: Path) -> None:
    long = [
        {"item": "b", "annotator": "zoe", "vote": "yes"},
        {"item": "a", "annotator": "ann", "vote": "no"},
        {"item": "b", "annotator": "ann", "vote": "no"},
        {"item": "a", "annotator": 7, "vote": None},
    ]
    scales = read_scales(["label=no|yes"])
    read = read_votes(write_jsonl(tmp_path / "v.jsonl", long), scales)
    assert read.items == ["b", "a"]
    assert read.annotators == ["7", "ann", "zoe"]
    assert read.ballots["label"].table(2, 3).tolist() == [[-1, 0, 1], [-1, 0, -1]]
    first = read_votes(tmp_path / "v.jsonl", scales, limit=1)
    assert first.items == ["b"]
    assert first.ballots["label"].table(1, 2).tolist() == [[0, 1]]  # whatever stands between
    table = tmp_path / "v.csv"
    table.write_text("item,annotator,vote\nb,zoe,yes\na,ann,no\nb,ann,no\na,7,\n")
    same = read_votes(table, scales)
    assert same.items == read.items
    assert (same.ballots["label"].symbol == read.ballots["label"].symbol).all()
    # the rows of an item need not lie together
    assert read_votes(table, scales, limit=2).items == ["b", "a"]


def test_scales_are_declared_or_told_by_the_name(tmp_path: Path) -> None:
    rows = [{"id": 1, "annotation": {"mood": {"a": "--", "b": "+"}, "E/I": TWO}}]
    path = write_jsonl(tmp_path / "v.jsonl", rows)
    read = read_votes(path, read_scales(["mood=bad:--,-|good:+,++"]))
    assert read.ballots["mood"].scale.symbols == ["--", "-", "+", "++"]
    assert read.ballots["mood"].scale.pole_of == [0, 0, 1, 1]
    told = refused(path, "E380", "'mood'")
    assert "--scale 'mood=+|--'" in told  # may be typed as it stands, to be put in order
    file = tmp_path / "scales.yaml"
    file.write_text('mood: {bad: ["--", "-"], good: ["+", "++"]}\nE/I: [E+, I-]\n')
    read = read_votes(path, read_scales([str(file)]))
    assert read.ballots["E/I"].scale.names == ["E+", "I-"]
    refused(path, "E380", "'moods'", "did you mean 'mood'", scales=("moods=a|b",))


@pytest.mark.parametrize(
    ("line", "dimension", "word"),
    [
        ("stance: [no, unsure, yes]", "stance", "'no'"),
        ("stance: {yes: [a], b: [c]}", "stance", "'yes'"),
        ("stance: {a: [1], b: [c]}", "stance", "'1'"),
        ("no: [a, b]", "no", "'no'"),
    ],
)
def test_words_that_yaml_reads_as_something_else(
    tmp_path: Path, line: str, dimension: str, word: str
) -> None:
    file = tmp_path / "scales.yaml"
    file.write_text(line)
    with pytest.raises(SutureError, match="E702") as raised:
        read_scales([str(file)])
    assert f"'{dimension}'" in raised.value.what
    assert "in quotes" in str(raised.value.fix)
    assert word in str(raised.value.fix)
    file.write_text('stance: ["no", unsure, "yes"]')
    assert read_scales([str(file)])["stance"].names == ["no", "unsure", "yes"]


@pytest.mark.parametrize("text", ["mood", "mood=good", "=a|b", "mood=a|", "mood=a|a"])
def test_texts_that_are_no_scale(text: str) -> None:
    with pytest.raises(SutureError, match="E381"):
        read_scales([text])


def test_scales_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SutureError, match="E702"):
        read_scales(["mood=a:x,y|b:y,z"])
    with pytest.raises(SutureError, match="E381"):
        read_scales(["mood=a|b", "mood=a|c"])
    assert Scale.named("E/I/X") is None
    assert Scale.named("E/E") is None
    assert Scale.named("plain") is None


def test_unknown_symbols_name_line_and_nearest(tmp_path: Path) -> None:
    rows = [wide(E_I=TWO), {"id": 2, "annotation": {"E/I": {"A1": "E ", "A2": "I-"}}}]
    path = write_jsonl(tmp_path / "v.jsonl", rows)
    told = refused(path, "E385", "v.jsonl:2", "'E'", "E+, E-, I-, I+")
    assert "did you mean 'E" in told
    path = write_jsonl(tmp_path / "w.jsonl", [wide(E_I={"A1": True, "A2": "I-"})])
    refused(path, "E385", "w.jsonl:1", "is not a text")


def test_one_annotator_and_empty_dimensions(tmp_path: Path) -> None:
    refused(write_jsonl(tmp_path / "a.jsonl", [wide(E_I={"A1": "E+"})]), "E386", "'E/I'")
    for nobody in ({"A1": None, "A2": None}, {}):
        rows = [wide(E_I=TWO, S_N=nobody)]
        refused(write_jsonl(tmp_path / "b.jsonl", rows), "E387", "'S/N'")
    rows = [wide(E_I=TWO, S_N={"A1": "S+"})]
    refused(write_jsonl(tmp_path / "d.jsonl", rows), "E386", "'S/N'")
    rows = [wide(E_I=TWO), {"id": 2, "annotation": {"E/I": {"A1": None}}}]
    refused(write_jsonl(tmp_path / "c.jsonl", rows), "E384", "c.jsonl:2")


def test_other_dimensions_do_not_matter(tmp_path: Path) -> None:
    """An empty dimension, or one of a single annotator, stops only who asks for it."""
    empty = {"S/N": {"a": None}, "T/F": {"a": "T+"}}
    path = write_jsonl(tmp_path / "v.jsonl", [{"id": 1, "annotation": {"E/I": TWO, **empty}}])
    assert list(read_votes(path, dimensions=["E/I"]).ballots) == ["E/I"]
    assert "--dimension" in refused(path, "E387", "'S/N'")
    for name, code in (("S/N", "E387"), ("T/F", "E386"), ("X/Y", "E388")):
        with pytest.raises(SutureError, match=code):
            read_votes(path, dimensions=[name])


def test_rows_per_vote_without_a_dimension_say_its_name(tmp_path: Path) -> None:
    rows = [{"item": "t1", "annotator": who, "vote": "yes"} for who in "ab"]
    path = write_jsonl(tmp_path / "v.jsonl", rows)
    told = refused(path, "E380", "'stance'", scales=("stance=no|unsure|yes",))
    assert "rows that name no dimension vote on 'label'" in told


def test_rows_of_neither_form(tmp_path: Path) -> None:
    for row in ({"id": 1, "posts": []}, {"item": "a", "vote": "E+"}, {"annotation": []}):
        refused(write_jsonl(tmp_path / "v.jsonl", [row]), "E382", "v.jsonl:1")
    refused(write_jsonl(tmp_path / "v.jsonl", [wide(E_I=["E+"])]), "E382", "'E/I'")


def test_items_and_votes_twice(tmp_path: Path) -> None:
    refused(write_jsonl(tmp_path / "v.jsonl", [wide(E_I=TWO)] * 2), "E383", "v.jsonl:2")
    vote = {"item": "a", "annotator": "x", "vote": "yes"}
    rows = [vote, {**vote, "annotator": "y"}, {**vote, "vote": "no"}]
    path = write_jsonl(tmp_path / "w.jsonl", rows)
    refused(path, "E383", "w.jsonl:3", "line 1", scales=("label=no|yes",))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_bytes(json.dumps(wide(E_I=TWO)).encode() + b"\n" + b'{"id": "caf\xe9"}\n')
    refused(path, "E303", "v.jsonl:2:12", "0xe9")
    path.write_text("")
    refused(path, "E302")
    refused(tmp_path / "none.jsonl", "E301")


def test_blanks_around_names_make_no_new_ones(tmp_path: Path) -> None:
    rows = [wide(E_I=TWO), {"id": 2, "annotation": {"E/I ": {"A1 ": "E-", "A2": "I+"}}}]
    read = read_votes(write_jsonl(tmp_path / "v.jsonl", rows))
    assert read.annotators == ["A1", "A2"]
    assert list(read.ballots) == ["E/I"]
