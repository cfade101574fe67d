from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from suture.report.worddiff import after_side, before_side, change, tokens, word_diff

PIECES = [
    "the",
    "cat",
    " ",
    "\n",
    "don't",
    "長江",
    "คำ",
    "é",
    ",",
    "\U0001f937\U0001f3fd\u200d\u2640\ufe0f",
]
texts = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["the", "cat", " ", "\n", "don't", "長江", "คำ", "é", ",", "🤷🏽‍♀️"])
    ).map("".join),
)


@given(texts, texts)
@example("", "")
@example("a b", "")
@example("the old cat sat", "a new dog sat")
@settings(deadline=None)
def test_each_side_joins_to_its_text(before: str, after: str) -> None:
    segments = word_diff(before, after)
    assert "".join(s.text for s in before_side(segments)) == before
    assert "".join(s.text for s in after_side(segments)) == after
    assert all(s.text for s in segments)
    assert all(a.kind != b.kind for a, b in pairwise(segments))


@given(texts)
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text


@given(texts, texts)
@settings(deadline=None)
def test_change_is_zero_only_for_equal_words(before: str, after: str) -> None:
    share = change(before, after)
    assert 0 <= share <= 1
    assert change(before, before) == 0
    if share == 0:
        assert "".join(before.split()) == "".join(after.split())


@pytest.mark.parametrize(
    ("before", "after", "gone", "came"),
    [
        ("I can help.", "I cannot help.", ["can"], ["cannot"]),
        ("the old cat sat", "a new dog sat", ["the old cat"], ["a new dog"]),
        ("yes, we do it", "no, you do it", ["yes, we"], ["no, you"]),
        ("长江是中国最长的河", "长江是亚洲最长的河", ["中国"], ["亚洲"]),
        ("don't go", "won't go", ["don't"], ["won't"]),
        ("नमस्ते दुनिया", "नमस्ते जगत", ["दुनिया"], ["जगत"]),
    ],
)
def test_what_a_reader_would_mark(before: str, after: str, gone: list, came: list) -> None:
    segments = word_diff(before, after)
    assert [s.text for s in segments if s.kind == "del"] == gone
    assert [s.text for s in segments if s.kind == "ins"] == came


def test_degenerate_replies_stay_quick() -> None:
    began = time.perf_counter()
    segments = word_diff("a b " * 20_000, "b a c " * 20_000)
    assert time.perf_counter() - began < 3
    assert {s.kind for s in segments} >= {"del", "ins"}
