"""Replies against references: numbers worked out by hand, and two other ways of counting."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from suture.ledger import Row, derive
from suture.suites.tasks.texts import METRICS, columns, eq_bench, ratings


def _longest(a: list[str], b: list[str]) -> int:
    """The longest common subsequence, by trying all of them."""
    for length in range(min(len(a), len(b)), 0, -1):
        if set(itertools.combinations(a, length)) & set(itertools.combinations(b, length)):
            return length
    return 0


def test_rouge_l_against_brute_force() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a = [draw.choice("abc") for _ in range(draw.randint(1, 7))]
        b = [draw.choice("abc") for _ in range(draw.randint(1, 7))]
        expected = 2 * _longest(a, b) / (len(a) + len(b))
        assert columns(" ".join(a), " ".join(b))["rouge_l"] == pytest.approx(expected)


def test_distinct_words_and_pairs() -> None:
    found = columns("so so so good", "x")
    assert found["dist_1"] == 2 / 4
    assert found["dist_2"] == 2 / 3
    assert columns("", "x")["dist_1"] == columns("one", "x")["dist_2"] == 0


def test_bleu_2_of_two_rows_by_hand() -> None:
    rows = [
        Row(str(k), columns(said, gold))
        for k, (said, gold) in enumerate(
            [("I am so sorry", "I am sorry to hear that"), ("that is good", "that is good")]
        )
    ]
    # words 3+3 of 4+3, pairs 1 + 2 of 3 + 2; 7 words against 9
    expected = math.exp(1 - 9 / 7) * math.sqrt((6 / 7) * (3 / 5))
    bleu = METRICS["bleu_2"]
    found = derive(rows, bleu.kind, bleu.columns, definition="", better="higher", **bleu.options)
    assert found["value"] == pytest.approx(expected)


def test_token_f1_takes_the_best_reference_and_ignores_articles() -> None:
    found = columns("The cake!", ["this cake", "for you"])
    assert found["token_f1"] == pytest.approx(2 * 1 / (1 + 2))
    assert found["exact_match"] == 0
    assert columns("a cake", ["the Cake."])["exact_match"] == 1
    assert columns("", ["cake"])["token_f1"] == 0


RIGHT = "Calm: 0\nSad: 6\nProud: 2\nAngry: 9"


def test_eq_bench_by_hand() -> None:
    assert eq_bench(RIGHT, RIGHT) == 1
    off_by_four = eq_bench("Calm: 4\nSad: 6\nProud: 2\nAngry: 9", RIGHT)
    assert off_by_four == pytest.approx(1 - 0.7477 * 0.325)
    off_by_six = eq_bench("Calm: 6\nSad: 6\nProud: 2\nAngry: 9", RIGHT)
    assert off_by_six == pytest.approx(1 - 0.7477 * 0.6)


def test_eq_bench_takes_the_revised_numbers_and_needs_all_four() -> None:
    twice = "First pass scores:\n**Calm**: 9\nSad: 6\nProud: 2\nAngry: 9\n\nRevised: \nCalm: 0/10"
    assert eq_bench(twice, RIGHT) == 1
    assert eq_bench("Calm: 0\nSad: 6\nProud: 2", RIGHT) is None
    assert eq_bench(RIGHT + "\nGlad: 1", RIGHT) is None
    assert columns("no idea", RIGHT)["eq_answered"] == columns("no idea", RIGHT)["eq_bench"] == 0
    assert ratings("Sehr wütend: 7") == {"sehr wütend": 7}
