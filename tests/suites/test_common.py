"""Quality columns, thinning, and the identity of data."""

from __future__ import annotations

from pathlib import Path

import pytest

from suture.data import Prompt
from suture.errors import SutureError
from suture.ledger import ReplyRow
from suture.suites.common import items_sha256, one_id_each, quality, thin
from suture.suites.task import says


def columns(text: str, ended: bool = True) -> tuple[float, float, float]:
    found = quality(ReplyRow("1", "p", text, ended, 3))
    return found["ends_properly"], found["distinct_2"], found["repetition"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0.0, 0.0, 0.0)),
        ("  \n", (0.0, 0.0, 0.0)),
        ("positive", (1.0, 1.0, 0.0)),
        ("a b c d", (1.0, 1.0, 0.0)),
        ("no no", (1.0, 1.0, 0.0)),
        ("no no no no", (1.0, pytest.approx(1 / 3), 1.0)),
        ("ab cd ab cd ab cd", (1.0, pytest.approx(2 / 5), 1.0)),
        ("ab cd ab cd ef", (1.0, pytest.approx(3 / 4), 0.0)),  # twice is not yet a loop
        ("so x y x y x y z", (1.0, pytest.approx(4 / 7), pytest.approx(6 / 8))),
    ],
)
def test_quality(text: str, expected: tuple[float, float, float]) -> None:
    assert columns(text) == expected


def test_a_reply_cut_off_does_not_end_properly() -> None:
    assert columns("a b c", ended=False)[0] == 0.0


def test_loops_are_seen_without_blanks() -> None:
    assert columns("我不能" * 20)[2] == 1.0
    assert columns("abcdefghijklmnopqrstuvwxyz0123456789")[2] == 0.0


def test_thin_spreads_evenly() -> None:
    assert thin(range(10), 5) == [0, 2, 4, 6, 8]
    assert thin(range(10), 3) == [0, 3, 6]
    assert thin(range(3), 10) == [0, 1, 2]
    assert thin(range(3), None) == [0, 1, 2]
    with pytest.raises(SutureError, match="E702"):
        thin(range(3), 0)


def prompt(id: str, text: str) -> Prompt:
    return Prompt(id=id, prompt=text)


def test_data_identity() -> None:
    one, two = prompt("1", "a"), prompt("2", "b")
    assert items_sha256([one, two]) != items_sha256([two, one])
    assert items_sha256([one]) != items_sha256([one, two])
    assert items_sha256([one]) == items_sha256([prompt("1", "a")])
    assert items_sha256([one]) != items_sha256([prompt("1", "A")])


def test_an_id_in_two_files() -> None:
    with pytest.raises(SutureError, match="id '1'"):
        one_id_each([prompt("1", "a"), prompt("1", "b")], [Path("a"), Path("b")])


@pytest.mark.parametrize(
    ("reply", "option", "expected"),
    [
        ("Positive.", "positive", True),
        (" positive, I think", "positive", True),
        ("positively", "positive", False),
        ("not positive", "positive", False),
        ("", "positive", False),
        ("The cat sat", "the cat", True),
        ("The dog", "the cat", False),
        ("The", "the cat", False),
        ("42", "42", True),
        ("+ and more", "+", True),
        ("- and more", "+", False),
    ],
)
def test_says(reply: str, option: str, expected: bool) -> None:
    assert says(reply, option) is expected
