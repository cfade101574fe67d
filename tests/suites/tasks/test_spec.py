"""Task files: what is refused, and how prompts are filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from suture.data.tasks.record import Record, Turn
from suture.errors import SutureError
from suture.suites import load_suite
from suture.suites.tasks.rendering import answer_form, ordered, render, shown_labels
from suture.suites.tasks.spec import TaskSpec, load_task, shipped

TASK: dict[str, Any] = {
    "name": "moods",
    "suite": "emotion",
    "title": "moods",
    "shows": ["context", "speaker", "text", "caption"],
    "answer": {"kind": "label", "labels": ["calm", "angry", "sad"]},
    "prompts": {"zero-shot": [["{input}\n{labels}? {answer_form}"]]},
    "metrics": [{"name": "accuracy"}],
    "headline": "accuracy",
}
PARTS = [{"name": "what", "kind": "span"}, {"name": "how", "kind": "label", "labels": ["calm"]}]


def _spec(**changes: Any) -> TaskSpec:
    return TaskSpec.load({**TASK, **changes})


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_task_can_be_asked(name: str) -> None:
    spec = load_task(name)
    assert spec.name == name
    suite = load_suite(spec.suite, {"task": name})
    assert f"{name}.{spec.headline}" in suite.metrics
    assert all(len(paraphrases) >= 3 for paraphrases in spec.prompts.values())
    record = Record(
        id="1", text="{a} text", speaker="s", aspect="a", caption="c", audio_desc="d",
        video_desc="v", context=[Turn(speaker="x", text="before")],
    )  # fmt: skip
    for paraphrases in spec.prompts.values():
        for turns in paraphrases:
            asked = "\n".join(render(spec, record, turns, shown_labels(spec.answer)))
            assert "{input}" not in asked
            assert "{answer_form}" not in asked


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": {"step-by-step": [["{input}"]]}}, "zero-shot"),
        ({"prompts": {"zero-shot": [["{inptu}"]]}}, "did you mean {input}"),
        ({"prompts": {"zero-shot": [[]]}}, "empty"),
        ({"headline": "macro_f1"}, "none of the metrics"),
        ({"metrics": [{"name": "accuracy"}, {"name": "accuracy"}]}, "one name"),
        ({"shows": ["image"]}, "'image'"),
        ({"named": {"txt": "Post"}}, "'txt'"),
        ({"answer": {"kind": "label", "labels": ["a", "A"]}}, "two things"),
        ({"answer": {"kind": "label", "labels": ["a"], "synonyms": {"b": ["c"]}}}, "no label"),
        ({"answer": {"kind": "score", "low": 1, "high": 1}}, "low is 1"),
        (
            {"answer": {"kind": "label", "labels": [True, False]}},
            "'answer.labels.0': YAML takes \"yes\"",
        ),
        ({"answer": {"kind": "label", "labels": ["a"], "synonyms": {"a": [False]}}}, "in quotes"),
        ({"answer": {"kind": "label", "labels": ["a"], "synonyms": {"b": []}}}, "answer.synonyms"),
        ({"answer": {"kind": "label", "labels": ["a"], "default": "b"}}, "'answer.default': 'b'"),
        ({"answer": {"kind": "labels", "labels": ["a"], "default": ["b"]}}, "none of the labels"),
        ({"answer": {"kind": "score", "low": 0, "high": 1, "default": 2}}, "from 0 to 1"),
        ({"answer": {"kind": "pairs", "parts": PARTS, "default": [["a"]]}}, "there are 2 parts"),
        ({"answer": {"kind": "pairs", "parts": PARTS, "default": [["a", "b"]]}}, "'b' is none"),
        ({"answer": {"kind": "labl", "labels": ["a"]}}, "did you mean 'label'"),
        ({"answer": {"labels": ["a"]}}, "has no 'kind'"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump({**TASK, **changes}))
    with pytest.raises(SutureError) as caught:
        load_task(str(file))
    assert caught.value.code == "E702"
    assert said in str(caught.value)
    assert str(file) in str(caught.value.where)


def test_a_copy_of_a_shipped_task_has_a_name_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("like: sst2\ntitle: mine\n")
    with pytest.raises(SutureError, match="'name': it is missing") as caught:
        load_task(str(file))
    assert caught.value.code == "E702"
    file.write_text("like: sst2\nname: mine\n")
    assert load_task(str(file)).answer == load_task("sst2").answer


def test_several_tasks_are_a_list() -> None:
    with pytest.raises(SutureError, match="in brackets") as caught:
        load_task("sst2,goemotions")
    assert "task=[sst2, goemotions]" in str(caught.value)


def test_a_misspelt_key_names_the_right_one(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump({**TASK, "headlin": "accuracy"}))
    with pytest.raises(SutureError, match="did you mean 'headline'") as caught:
        load_task(str(file))
    assert caught.value.code == "E701"


def test_what_is_shown() -> None:
    record = Record(
        id="1", text="in braces: {labels}", speaker="Bo",
        context=[Turn(speaker="Ana", text="hello"), Turn(text="(noise)")],
    )  # fmt: skip
    spec = _spec(named={"text": "Post"}, numbered=True)
    (asked,) = render(spec, record, spec.prompts["zero-shot"][0], ["sad", "calm", "angry"])
    assert asked == (
        "Conversation so far:\n1. Ana: hello\n2. (noise)\nSpeaker: Bo\nPost: in braces: {labels}\n"
        "sad, calm or angry? Answer with one of these and nothing else: sad, calm or angry."
    )


def test_orders_of_labels_differ_and_stay() -> None:
    labels = ["a", "b", "c"]
    found = [ordered(labels, order, 0) for order in range(6)]
    assert found[0] == labels
    assert len({tuple(one) for one in found}) == 6
    assert found == [ordered(labels, order, 0) for order in range(6)]
    assert ordered(["a", "b"], 1, 3) == ["b", "a"]


def test_how_to_answer_tuples() -> None:
    parts = [
        {"name": "target", "kind": "span", "implicit": "NULL"},
        {"name": "mood", "kind": "label", "labels": ["calm", "sad"]},
    ]
    spec = _spec(answer={"kind": "pairs", "parts": parts}, metrics=[{"name": "micro_f1"}],
                 headline="micro_f1")  # fmt: skip
    said = answer_form(spec.answer, ["sad", "calm"])
    assert "[target, mood]" in said
    assert "mood is one of sad or calm" in said
    assert "or NULL" in said
