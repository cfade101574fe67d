"""Benchmarks in their own shapes: read, asked, scored by likelihood and by extraction."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import enliven
from helpers import write_jsonl
from suture.checkpoint import Checkpoint
from suture.errors import SutureError
from suture.inference import LoadedModel, load, option_logprobs
from suture.ledger import load_replies
from suture.suites import measure, rescore
from suture.suites.extraction import extract, form, wanted
from suture.suites.questions import read_questions

ABCD = {"text": ["red", "green"], "label": ["A", "B"]}
SHAPES: list[tuple[dict[str, Any], str, list[str], int | None, str | None]] = [
    ({"prompt": "P?", "options": ["x", "y"], "answer": 1}, "P?", ["x", "y"], 1, None),
    ({"prompt": "P?", "answer": "42"}, "P?", [], None, "42"),
    ({"question": "Q?", "choices": ["a", "b", "c", "d"], "answer": 2}, "Q?", [*"abcd"], 2, None),
    ({"question": "Q?", "choices": ["a", "b"], "answer": "B"}, "Q?", ["a", "b"], 1, None),
    ({"question": "Q?", "choices": ABCD, "answerKey": "B"}, "Q?", ["red", "green"], 1, None),
    (
        {
            "question": {
                "stem": "Q?",
                "choices": [{"label": "1", "text": "red"}, {"label": "2", "text": "green"}],
            },
            "answerKey": "1",
        },
        "Q?",
        ["red", "green"],
        0,
        None,
    ),
    (
        {"question": "is it so", "passage": "It is.", "answer": True},
        "It is.\nIs it so?",
        ["no", "yes"],
        1,
        None,
    ),
    ({"goal": "G", "sol1": "s", "sol2": "t", "label": 1}, "G", ["s", "t"], 1, None),
    (
        {"sentence": "A _ b.", "option1": "x", "option2": "y", "answer": "2"},
        "A _ b.\nWhat does _ stand for?",
        ["x", "y"],
        1,
        None,
    ),
    ({"ctx": "C", "endings": ["e", "f"], "label": "0"}, "C", ["e", "f"], 0, None),
    (
        {"premise": "P.", "choice1": "c", "choice2": "d", "question": "cause", "label": 0},
        "P.\nWhat was the cause?",
        ["c", "d"],
        0,
        None,
    ),
    ({"question": "Q?", "answer": "2+2 <<2+2=4>>4\n#### 1,004"}, "Q?", [], None, "1004"),
    ({"input": "I", "target": "(B)"}, "I", [], None, "(B)"),
]


@pytest.mark.parametrize(("row", "prompt", "options", "answer", "target"), SHAPES)
def test_shapes(
    row: dict[str, Any],
    prompt: str,
    options: list[str],
    answer: int | None,
    target: str | None,
    tmp_path: Path,
) -> None:
    (found,) = read_questions(write_jsonl(tmp_path / "some_test.jsonl", [row]))
    assert (found.prompt, found.options, found.answer) == (prompt, options, answer)
    assert (found.target, found.category, found.id) == (target, "some", "some/1")


def test_mmlu_tables_with_and_without_a_header(tmp_path: Path) -> None:
    rows = [["What, then?", "one", "two", "three", "four", "C"], ["And?", "1", "2", "3", "4", "A"]]
    bare, headed = tmp_path / "anatomy_test.csv", tmp_path / "anatomy_dev.csv"
    with bare.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with headed.open("w", newline="") as file:
        head = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
        csv.writer(file).writerows([head, *([*r[:5], "ABCD".index(r[5])] for r in rows)])
    first, second = read_questions(bare), read_questions(headed)
    assert [q.options for q in first] == [q.options for q in second]
    assert [q.answer for q in first] == [q.answer for q in second] == [2, 0]
    assert {q.category for q in (*first, *second)} == {"anatomy"}


def test_json_examples_and_gzip(tmp_path: Path) -> None:
    file = tmp_path / "navigate.json.gz"
    file.write_bytes(
        gzip.compress(json.dumps({"examples": [{"input": "I", "target": "No"}]}).encode())
    )
    (found,) = read_questions(file)
    assert (found.target, found.category) == ("No", "navigate")


@pytest.mark.parametrize("answer", [1, "1", "b", "B", "(b)", "no"])
def test_the_right_option_by_index_letter_or_text(answer: object, tmp_path: Path) -> None:
    row = {"prompt": "Bread?", "options": ["yes", "no"], "answer": answer}
    [found] = read_questions(write_jsonl(tmp_path / "q.jsonl", [row]))
    assert found.answer == 1
    row["answer"] = "perhaps"
    with pytest.raises(SutureError, match="its index from 0, its letter, or its text"):
        read_questions(write_jsonl(tmp_path / "x.jsonl", [row]))


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "x"}\n',
        "{broken\n",
        "[1]\n",
        '{"prompt": "P", "options": ["a", "b"], "answer": 7}\n',
    ],
)
def test_strange_rows_are_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"prompt": "P?", "answer": "1"}\n' + text)
    with pytest.raises(SutureError, match=r"x\.jsonl:2") as caught:
        read_questions(file)
    assert caught.value.code == "E535"


@pytest.mark.parametrize(
    ("reply", "target", "answer"),
    [
        ("So 3 + 4 = 7.\n#### 7", "7", "7"),
        ("The answer is $1,250.00, not 3.", "1250", "1250"),
        ("first 3 then 12", "12", "12"),
        ("none", "12", None),
        ("The answer is -0.50", "-0.5", "-0.5"),
        ("I think (A) or rather. So the answer is (C).", "(B)", "C"),
        ("B", "(B)", "B"),
        ("Because of this, (B)", "(A)", "B"),
        ("As it happens", "(A)", None),
        ("Well.\nThe answer is: the Valid one.", "valid one", "valid one"),
        ("first line\nTrue.", "True", "true"),
        ("  ", "True", None),
        ("the answer is ] ) }", "] ) }", "] ) }"),
        ("Options (A) and (B) are wrong, see above. The answer is C.", "(C)", "C"),
        ("I think (B). Wait, option (A) fails. So the answer is: B", "(B)", "B"),
        ("The answer is (B), as (A) fails", "(B)", "B"),
        ("Total: 16-3-4", "9", "4"),
        ("5-3 apples", "2", "3"),
        ("It falls by -3", "-3", "-3"),
        ("f(x)-3", "3", "3"),
        ("Yes. He left.", "Yes", "yes"),
        ("The answer is yes, because no other fits", "Yes", "yes"),
        ("The answer is clearly no", "Yes", "clearly no"),
        ("42\n\nLet me know if you have 3 other questions", "42", "42"),
        ("42\n\n3 other questions?", "42", "42"),
        ("It is 42.\n\nI hope this helps with all 3!", "42", "42"),
        ("Paris\n\nFeel free to ask more.", "Paris", "paris"),
        ("The answer is Paris, because it is the capital.", "Paris", "paris"),
        ("Paris. It lies on the Seine, as everybody has known for long.", "Paris", "paris"),
        ("New York City", "New York", "new york city"),
        ("I am afraid I do not know what to say about it at all.", "Paris", None),
    ],
)
def test_extraction(reply: str, target: str, answer: str | None) -> None:
    assert extract(reply, target) == answer


def test_forms() -> None:
    assert [form(t) for t in ("12", "-1.5", "$3", "(B)", "B", "yes")] == [
        "number",
        "number",
        "number",
        "letter",
        "text",
        "closed",
    ]
    assert wanted("1,000.0") == wanted("1000") == "1000"


CHOICES = [
    {"prompt": "Is bread made of flour?", "options": ["yes", "no, never"], "answer": 0},
    {"prompt": "Is the fox lazy?", "options": ["no", "yes"], "answer": 0},
    {"prompt": "Which one jumps?", "options": ["the dog", "the fox", "bread"], "answer": 1},
]


@pytest.fixture(scope="module")
def lm(tiny: Callable[..., Path]) -> LoadedModel:
    return enliven(load(Checkpoint.open(tiny(vocab=300, tie=False, seed=3))))


def test_choices_are_scored_by_likelihood(lm: LoadedModel, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "c.jsonl", CHOICES)
    found = measure("utility", lm, data=file)
    scores = option_logprobs(lm, [c["prompt"] for c in CHOICES], [c["options"] for c in CHOICES])
    for row, item, values in zip(found.rows, CHOICES, scores, strict=True):
        options = item["options"]
        fair = [v / len(o) for v, o in zip(values, options, strict=True)]
        assert row.scores["accuracy"] == float(values.index(max(values)) == item["answer"])
        assert row.scores["accuracy_norm"] == float(fair.index(max(fair)) == item["answer"])
    assert not found.replies


def test_shots_are_earlier_turns_and_are_not_asked(lm: LoadedModel, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "c.jsonl", CHOICES)
    found = measure("utility", lm, data=file, options={"shots": 1})
    assert [row.item for row in found.rows] == ["c/2", "c/3"]
    examples = write_jsonl(tmp_path / "c_dev.jsonl", CHOICES[:2])
    other = measure("utility", lm, data=file, options={"shots": 1, "examples": str(examples)})
    assert [row.item for row in other.rows] == ["c/1", "c/2", "c/3"]
    assert other.decoding["asked"] == {"shots": 1, "examples": str(examples)}


def test_every_style_and_way_to_present(lm: LoadedModel, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "c.jsonl", CHOICES)
    fits = {}
    for style in ("chat", "plain"):
        for present in ("text", "letters"):
            options = {"shots": 1, "style": style, "present": present}
            fits[style, present] = measure("utility", lm, data=file, options=options).rows
    assert all(len(rows) == 2 for rows in fits.values())


def test_open_questions(lm: LoadedModel, tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "o.jsonl",
        [
            {"question": "1 + 1?", "answer": "It is two.\n#### 2"},
            {"input": "Say yes", "target": "yes"},
        ],
    )
    found = measure("utility", lm, data=file, max_new_tokens=6)
    assert set(found.metrics) == {"exact_match", "answered"}
    assert [reply.item for reply in found.replies] == ["o/1", "o/2"]
    saved = found.save(tmp_path / "m.json")
    assert rescore(saved).rows == found.rows
    plain = measure("utility", lm, data=file, max_new_tokens=6, options={"style": "plain"})
    assert plain.n == 2


def test_replies_made_elsewhere_answer_both_kinds(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "q.jsonl", [*CHOICES, {"prompt": "1 + 1?", "answer": "2"}])
    texts = ["Yes, it is.", "I would say (A).", "dragons", "#### 2"]
    rows = [{"item": f"q/{k}", "reply": text} for k, text in enumerate(texts, 1)]
    replies = write_jsonl(tmp_path / "r.jsonl", rows)
    assert len(load_replies(replies)) == 4
    found = measure("utility", "elsewhere", data=file, replies=replies)
    assert [row.scores["exact_match"] for row in found.rows] == [1.0, 1.0, 0.0, 1.0]
    assert [row.scores["answered"] for row in found.rows] == [1.0, 1.0, 0.0, 1.0]
    assert found.model["identity"] == "declared"


def test_refusals(lm: LoadedModel, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "c.jsonl", CHOICES)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "E536"),
        ({"data": file, "options": {"shots": 3}}, "E536"),
        ({"data": file, "options": {"shots": 4}}, "E536"),
        ({"data": file, "options": {"shot": 1}}, "E701"),
        ({"data": file, "options": {"style": "loud"}}, "E702"),
    ]
    for named, code in cases:
        with pytest.raises(SutureError) as caught:
            measure("utility", lm, **named)
        assert caught.value.code == code
    with pytest.raises(SutureError) as caught:
        measure("task", lm, data=file, options={"shots": 1})
    assert caught.value.code == "E529"
