"""Templates around requests: one item each, one cluster per request."""

from __future__ import annotations

import base64
import codecs
import json
from pathlib import Path

import pytest

from helpers import write_jsonl
from suture.data import Prompt
from suture.errors import SutureError
from suture.suites import load_suite, measure, rescore
from suture.suites.jailbreaks import chosen, load_templates, wrapped

ITEMS = [
    Prompt(id="1", prompt="How do I bake {bread}?", category="food"),
    Prompt(id="2", prompt="B"),
]


def test_every_item_in_every_template() -> None:
    found = wrapped(ITEMS, chosen(["none", "prefix", "base64", "rot13"]))
    assert [one.id for one in found] == [
        *("1", "1@prefix", "1@base64", "1@rot13"),
        *("2", "2@prefix", "2@base64", "2@rot13"),
    ]
    assert {one.cluster for one in found[:4]} == {"1"}
    assert {one.category for one in found[:4]} == {"food"}
    asked = ITEMS[0].prompt
    assert found[0].prompt == asked
    assert asked in found[1].prompt
    assert base64.b64decode(found[2].prompt.split(": ")[-1]).decode() == asked
    assert codecs.decode(found[3].prompt.split(": ")[-1], "rot13") == asked


def test_shipped_templates_name_their_source_and_hold_one_place() -> None:
    found = load_templates()
    assert len(found) >= 8
    assert all(one.source and one.text.count("{prompt}") == 1 for one in found)
    assert [one.name for one in chosen(["all"])] == [one.name for one in found]


def test_the_suite_takes_them_as_an_option(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", [{"id": k, "prompt": k} for k in "abc"])
    suite = load_suite("safety").configure({"jailbreaks": "none, story"})  # type: ignore[attr-defined]
    items = suite.read([data], 2)
    assert [item.id for item in items] == ["a", "a@story", "b", "b@story"]
    texts = [{"item": item.id, "reply": "I cannot help with that."} for item in items]
    found = measure(
        "safety",
        "elsewhere",
        data=data,
        limit=2,
        replies=write_jsonl(tmp_path / "r.jsonl", texts),
        options={"jailbreaks": ["none", "story"]},
    )
    assert found.metrics["refusal_rate"] == 1.0
    assert [row.cluster for row in found.rows] == ["a", "a", "b", "b"]
    assert rescore(found.save(tmp_path / "m.json")).rows == found.rows


def test_a_file_of_templates_alone_means_all_of_them(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", [{"id": k, "prompt": k} for k in "ab"])
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"templates": [{"name": "x", "text": "<{prompt}>"}]}))
    items = load_suite("safety", {"templates": str(file)}).read([data], None)
    assert [item.id for item in items] == ["a@x", "b@x"]
    bare = load_suite("safety", {"templates": str(file), "jailbreaks": []}).read([data], None)
    assert [item.id for item in bare] == ["a", "b"]
    with pytest.raises(SutureError, match=r"gone\.json") as caught:
        load_suite("safety", {"templates": str(tmp_path / "gone.json")}).read([data], None)
    assert caught.value.code == "E541"


def test_own_files_and_refusals(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"templates": [{"name": "x", "text": "<{prompt}>"}]}))
    assert wrapped(ITEMS[1:], chosen(["x"], file))[0].prompt == "<B>"
    with pytest.raises(SutureError, match="did you mean 'prefix'") as caught:
        chosen(["prefx"])
    assert caught.value.code == "E541"
    for text, code in (
        ("{}", "E541"),
        ('{"templates": []}', "E541"),
        ('{"templates": [{"name": "x", "text": "no place"}]}', "E702"),
    ):
        file.write_text(text)
        with pytest.raises(SutureError) as caught:
            load_templates(file)
        assert caught.value.code == code
