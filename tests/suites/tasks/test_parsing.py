"""Replies to answers: what is read strictly, what leniently, what not at all."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture.data.tasks.record import Record
from suture.suites.tasks.parsing import Parsed, parse
from suture.suites.tasks.rendering import canonical
from suture.suites.tasks.spec import (
    Answer,
    LabelAnswer,
    LabelsAnswer,
    PairsAnswer,
    Part,
    ScoreAnswer,
    SpansAnswer,
    TextAnswer,
)

POLARITY = LabelAnswer(
    labels=["negative", "neutral", "positive"],
    synonyms={"negative": ["unfavourable"], "positive": ["good", "very good"]},
)
SARCASM = LabelAnswer(labels=["sarcastic", "not sarcastic"])
YES = LabelAnswer(labels=["yes", "no"])
FEELINGS = LabelsAnswer(labels=["anger", "joy", "fear"], synonyms={"joy": ["happiness"]})
SCORE = ScoreAnswer(low=-3, high=3)
TEXT = "Lunch with Ana Silva at Café Rio , then the Night  Train home !"
RECORD = Record(id="1", text=TEXT)
SPANS = SpansAnswer()
PAIRS = PairsAnswer(
    parts=[
        Part(name="target", kind="span"),
        Part(name="feeling", kind="label", labels=["bad", "fine"], synonyms={"fine": ["ok"]}),
    ]
)
LINKS = PairsAnswer(
    parts=[
        Part(name="felt", kind="number"),
        Part(name="caused", kind="number"),
        Part(name="feeling", kind="label", labels=["joy", "fear"]),
    ]
)


def _read(answer: Answer, reply: str) -> tuple[Any, str]:
    found = parse(answer, reply, RECORD)
    return found.value, found.how


@pytest.mark.parametrize(
    ("reply", "value", "how"),
    [
        ("positive", "positive", "strict"),
        (' **"Positive".** ', "positive", "strict"),
        ("Very good!", "positive", "strict"),
        ("unfavourable", "negative", "strict"),
        ("The answer is positive.", "positive", "lenient"),
        ("Sentiment: neutral\nBecause nothing is valued.", "neutral", "lenient"),
        ("It is not positive, it is negative.", "negative", "lenient"),
        ("This isn’t positive but negative", "negative", "lenient"),
        ("neither positive nor negative, so neutral", "neutral", "lenient"),
        ("not only good but very good", "positive", "lenient"),
        ("The options are positive, negative or neutral. Answer: neutral", "neutral", "lenient"),
        ("positive at first; final answer: negative", "negative", "lenient"),
        ("not positive", None, "failed"),
        ("It is anything but positive.", None, "failed"),
        ("far from positive", None, "failed"),
        ("lacks any positive sentiment", None, "failed"),
        ("This isnt positive", None, "failed"),
        ("nothing but positive", "positive", "lenient"),
        ("<think>positive? negative?</think>negative", "negative", "strict"),
        ("neutral? positive?</think>\n\nnegative", "negative", "strict"),
        ("<think>positive, I would", None, "failed"),
        ("I would not call it very good", None, "failed"),
        ("positive or negative", None, "failed"),
        ("'positive', 'negative', 'neutral'", None, "failed"),
        ("nonpositive", None, "failed"),
        ("Non-negative", None, "failed"),
        ("non negative, I think", None, "failed"),
        ("the review is negative-free", None, "failed"),
        ("No doubt it is positive", "positive", "lenient"),
        ("Without a doubt positive, that is", "positive", "lenient"),
        ("No doubt it is not positive", None, "failed"),
        ("", None, "failed"),
        ("I cannot tell", None, "failed"),
    ],
)
def test_labels_are_found_unless_denied(reply: str, value: str | None, how: str) -> None:
    assert _read(POLARITY, reply) == (value, how)


def test_a_label_inside_another() -> None:
    assert _read(SARCASM, "not sarcastic") == ("not sarcastic", "strict")
    assert _read(SARCASM, "I think this is not sarcastic at all") == ("not sarcastic", "lenient")
    assert _read(SARCASM, "Clearly sarcastic, that is") == ("sarcastic", "lenient")
    assert _read(YES, "No, there is nothing") == ("no", "lenient")
    assert _read(YES, "Yes and no") == (None, "failed")
    assert _read(YES, "There is no doubt: yes") == ("yes", "lenient")


@pytest.mark.parametrize(
    ("reply", "value", "how"),
    [
        ("fear, anger", ["anger", "fear"], "strict"),
        ('["Happiness"]', ["joy"], "strict"),
        ("none", [], "strict"),
        ("joy\njoy", ["joy"], "strict"),
        ("There is fear and some joy, but no anger", ["joy", "fear"], "lenient"),
        ("I would say none of these", [], "lenient"),
        ("love", None, "failed"),
    ],
)
def test_several_labels(reply: str, value: list[str] | None, how: str) -> None:
    assert _read(FEELINGS, reply) == (value, how)


@pytest.mark.parametrize(
    ("reply", "value", "how"),
    [
        ("-1.5", -1.5, "strict"),
        ("−2", -2.0, "strict"),
        ("+0.25.", 0.25, "strict"),
        ("[[3]]", 3.0, "strict"),
        ("7", 3.0, "lenient"),  # moved to the nearer end
        ("Score: 2", 2.0, "lenient"),
        ("minus 1", -1.0, "lenient"),
        ("Score: minus 2", -2.0, "lenient"),
        ("on a scale from -3 to 3 the score is -1", -1.0, "lenient"),
        ("from -3 to 3", None, "failed"),
        ("between 1 and 2", None, "failed"),
        ("rather good", None, "failed"),
    ],
)
def test_scores(reply: str, value: float | None, how: str) -> None:
    assert _read(SCORE, reply) == (value, how)


@pytest.mark.parametrize(
    ("reply", "value", "how", "unaligned"),
    [
        ('["Ana Silva", "Café Rio"]', ["Ana Silva", "Café Rio"], "strict", 0),
        ("[]", [], "strict", 0),
        ('["Night Train"]', ["Night Train"], "strict", 0),  # two blanks in the text
        ('["Ana Silva", "Ana Silva"]', ["Ana Silva"], "strict", 0),
        ('["Rome"]', ["Rome"], "strict", 1),
        ('["Sil"]', ["Sil"], "strict", 1),  # part of a word
        ('```json\n["ana silva"]\n```', ["Ana Silva"], "lenient", 0),
        ('["Café Rio"] are the places I found.', ["Café Rio"], "lenient", 0),
        ('{"answer": ["Café Rio"]}', ["Café Rio"], "lenient", 0),
        ("- Ana Silva\n- Café Rio", ["Ana Silva", "Café Rio"], "lenient", 0),
        ("Ana Silva, Café Rio", ["Ana Silva", "Café Rio"], "lenient", 0),
        ("There is nobody of that name.", None, "failed", 0),
        ('["Ana Silva"', None, "failed", 0),
        ('[["a", "b"]]', None, "failed", 0),
    ],
)
def test_spans_are_pieces_of_the_text(
    reply: str, value: list[str] | None, how: str, unaligned: int
) -> None:
    found = parse(SPANS, reply, RECORD)
    assert (found.value, found.how, found.unaligned) == (value, how, unaligned)


@pytest.mark.parametrize(
    ("reply", "value", "how"),
    [
        ('[["Ana Silva", "fine"]]', [["Ana Silva", "fine"]], "strict"),
        ('[["ana silva", "OK"]]', [["ana silva", "fine"]], "strict"),
        ('Here: [["café rio", "**ok**"]] as asked', [["Café Rio", "fine"]], "lenient"),
        ('["Ana Silva", "bad"]', [["Ana Silva", "bad"]], "lenient"),
        ('[{"target": "Café Rio", "feeling": "bad"}]', [["Café Rio", "bad"]], "lenient"),
        ('{"target": "Café Rio", "feeling": "bad"}', [["Café Rio", "bad"]], "lenient"),
        ('[["Ana Silva", "great"]]', None, "failed"),
        ('[["Ana Silva"]]', None, "failed"),
        ("Ana Silva is fine", None, "failed"),
    ],
)
def test_pairs(reply: str, value: list[list[str]] | None, how: str) -> None:
    assert _read(PAIRS, reply) == (value, how)


def test_links_between_utterances() -> None:
    assert _read(LINKS, '[[3, 1, "joy"], [3, 1, "joy"]]') == ([[3, 1, "joy"]], "strict")
    assert _read(LINKS, '[["U3", "utterance 1", "Joy."]]') == ([[3, 1, "joy"]], "lenient")
    assert _read(LINKS, '[[true, 1, "joy"]]') == (None, "failed")


def test_deep_nesting_is_no_answer() -> None:
    assert _read(SPANS, "[" * 100_000) == (None, "failed")


def test_a_text_is_what_was_said() -> None:
    assert _read(TextAnswer(), " I am sorry. ") == ("I am sorry.", "strict")
    assert _read(TextAnswer(), " \n") == (None, "failed")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (POLARITY, "neutral"),
        (FEELINGS, ["joy", "fear"]),
        (FEELINGS, []),
        (SCORE, -0.4),
        (SPANS, ["Café Rio"]),
        (SPANS, []),
        (PAIRS, [["Ana Silva", "bad"]]),
        (LINKS, [[2, 2, "fear"]]),
        (TextAnswer(), "That must hurt."),
    ],
)
def test_what_is_written_canonically_is_read_strictly(answer: Answer, value: Any) -> None:
    assert _read(answer, canonical(answer, value)) == (value, "strict")


_PIECES = st.sampled_from(
    ["positive", "not", "joy", "answer is", "[", "]", "{", '"Ana Silva"', ",", "3", "-", "\n", "'"]
)


@given(st.one_of(st.text(), st.lists(_PIECES).map(" ".join)))
def test_whatever_is_said_is_read_or_not(reply: str) -> None:
    for answer in (POLARITY, FEELINGS, SCORE, SPANS, PAIRS, LINKS, TextAnswer()):
        found = parse(answer, reply, RECORD)
        assert (found.value is None) == (found.how == "failed")


def test_a_long_reply_is_read_in_time() -> None:
    began = time.process_time()
    for answer in (POLARITY, FEELINGS, SCORE, SPANS, PAIRS):
        for word in ("positive ", "[", "not ", '{"a": ', "3 ", "answer is "):
            parse(answer, word * 5_000, RECORD)
    assert time.process_time() - began < 10  # quadratic work would take minutes


def test_apostrophes_are_one_on_both_sides() -> None:
    record = Record(id="1", text="We went to Joe’s Pizza and Ann's Bar")
    for reply in ('["Joe’s Pizza"]', '["Joe\'s Pizza"]'):
        assert parse(SPANS, reply, record) == Parsed(["Joe’s Pizza"], "strict")
    assert parse(SPANS, '["Ann’s Bar"]', record).value == ["Ann's Bar"]
    knows = LabelAnswer(labels=["don’t know", "sure"])
    assert _read(knows, "Don’t know.") == _read(knows, "don't know") == ("don’t know", "strict")
    assert _read(TextAnswer(), "It’s fine")[0] == "It’s fine"


@pytest.mark.parametrize("label", ["angry (very)", "N/A.", "wow!"])
def test_labels_may_end_with_a_mark(label: str) -> None:
    answer = LabelAnswer(labels=[label, "calm"])
    several = LabelsAnswer(labels=[label, "calm"])
    for reply in (label, f'"{label}".', label.upper()):
        assert _read(answer, reply) == (label, "strict")
    assert _read(several, f"{label}, calm") == ([label, "calm"], "strict")
    alike = LabelAnswer(labels=["wow", "wow!"])
    assert [_read(alike, one)[0] for one in ("wow", "wow!", "Wow.")] == ["wow", "wow!", "wow"]


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("joy: no, anger: yes, fear: no", ["anger"]),
        ("joy=0, anger=1", ["anger"]),
        ("It says none of joy or anger", []),
    ],
)
def test_labels_denied_behind_their_names(reply: str, value: list[str]) -> None:
    assert _read(FEELINGS, reply) == (value, "lenient")


def test_numbers_that_are_no_score() -> None:
    share = ScoreAnswer(low=0, high=1)
    assert _read(share, "I would say 50%") == (None, "failed")
    assert _read(share, "It is 1e-1 here") == (0.1, "lenient")
