"""Replies to numbers and sides, as the released code reads them and more kindly; the bins."""

from __future__ import annotations

import numpy as np
import pytest

from suture.suites.mbti.dimensions import dimensions
from suture.suites.mbti.parsing import (
    EDGES,
    bin_of,
    lenient_score,
    lenient_side,
    score,
    side,
    soft_value,
)


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        ("[[7]]", 7, 7),
        ("[7]", 7, 7),
        ("[[7.125]]", 7.125, 7.125),
        ("[[10]]", 10, 10),
        ("[3] but rather [[6]]", 6, 6),
        ("[[2]] or [[8]]", None, None),
        ("On a scale from [[1]] to [[9]], I would say [[7]]", None, None),
        ("<think>[[2]]? [[8]]?</think>\n[[8]]", 8, 8),
        ("<think>[[2]], or", None, None),
        ("[[7]], so: [[7]]", 7, 7),
        ("[[11]]", None, None),
        ("[[7.1255]]", None, 7.1255),  # the only number there is
        ("", None, None),
        ("Score: 7", None, 7),
        ("My rating is 6.5.", None, 6.5),
        ("I would say 8/9", None, 8),
        ("4 out of 9", None, 4),
        ("7", None, 7),
        ("between 3 and 5", None, None),
        ("score: 3, or score: 5", None, None),
        ("12", None, None),
        ("-3", None, None),
        ("I cannot tell.", None, None),
    ],
)
def test_scores(reply: str, strict: float | None, lenient: float | None) -> None:
    assert score(reply) == strict
    assert lenient_score(reply) == lenient


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        ("CHOICE: A", 0, 0),
        ("choice: <b>", 1, 1),
        ("Choice: E", 0, 0),
        ("CHOICE: <I>", 1, 1),
        ("CHOICE: A\n", None, 0),
        (" CHOICE: B.", None, 1),
        ("I think so. CHOICE: **B**", None, 1),
        ("CHOICE: A or CHOICE: B", None, None),
        ("B", None, 1),
        ("(a)", None, 0),
        ("An introvert.", None, 1),
        ("not an introvert", None, None),
        ("extraverted or introverted", None, None),
        ("CHOICE: N", None, None),  # a pole of another dimension
        ("a long story about somebody who is called an introvert by all", None, None),
        ("", None, None),
    ],
)
def test_sides(reply: str, strict: int | None, lenient: int | None) -> None:
    about = dimensions()["E/I"]
    assert side(reply, about) == strict
    assert lenient_side(reply, about) == lenient


def test_scores_become_shares_and_only_the_released_code_leaves_the_scale() -> None:
    assert [soft_value(x) for x in (0, 1, 5, 9, 10)] == [0, 0, 0.5, 1, 1]
    assert soft_value(10, clip=False) == 1.125
    assert soft_value(0, clip=False) == -0.125


def test_the_bins_are_those_of_numpy_and_one_falls_into_the_tenth() -> None:
    assert np.array_equal(EDGES, np.linspace(0, 1, 10))
    assert [bin_of((x - 1) / 8) for x in range(1, 10)] == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert bin_of(0.5) == 4
    assert bin_of(1.0) == 9
    for value in np.linspace(-0.2, 1.2, 141):
        assert bin_of(value) == np.digitize(value, np.linspace(0, 1, 10)) - 1
