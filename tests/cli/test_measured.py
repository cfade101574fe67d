"""What a measurement looks like on a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from suture.cli.measured import ends, show, unread
from suture.ledger import Measurement, Row, derive, mean_scores


def test_intervals_say_what_they_stand_on(capsys: Any) -> None:
    values = [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    rows = [Row(str(i), {"kl": v, "right": v}, "ab"[i % 2]) for i, v in enumerate(values)]
    better: Any = {"kl": "lower", "right": "higher"}
    show(Measurement("x", {}, 6, mean_scores(rows), better, rows), None, False)
    kl, right, why = capsys.readouterr().out.splitlines()
    assert "no interval" in kl  # a KL of 0 or 1 is no share
    assert "n=6 in 2 clusters" in right
    assert " to " in right
    assert why.startswith("no interval for kl: fewer than 5")


def test_a_tiny_number_keeps_its_digits_in_the_interval() -> None:
    assert ends((7.512e-4, 1.021e-3), 8.778e-4) == "7.512e-04 to 1.021e-03"
    assert ends((0.0, 2e-5), 1e-5) == "0.000 to 2.000e-05"
    assert ends((4e-4, 0.05), 0.02) == "4.000e-04 to 0.050"
    assert ends((0.0, 0.5), 0.25) == "0.000 to 0.500"
    assert ends(None, 0.25) == "no interval"


def test_many_metrics_without_an_interval_are_one_short_line(capsys: Any) -> None:
    rows = [Row(str(n), {f"m{k}.kl": 0.5 for k in range(20)}) for n in range(3)]
    metrics = mean_scores(rows)
    better: Any = dict.fromkeys(metrics, "lower")
    one = Measurement("emotion", {"fingerprint": "m"}, 3, metrics, better, rows)
    show(one, None, False)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("no interval for")]
    assert "and 14 more: fewer than 5 rows" in line


def test_hardly_any_reply_in_the_form_asked_for_is_told(capsys: Any) -> None:
    def shown(strict: int, name: str = "t.") -> str:
        rows = [
            Row(str(i), {f"{name}parsed_strict": float(i < strict), f"{name}parsed_lenient": 1.0})
            for i in range(80)
        ]
        means = mean_scores(rows)
        better: Any = dict.fromkeys(means, "higher")
        show(Measurement("emotion", {"fingerprint": "m"}, 80, means, better, rows), None, False)
        return str(capsys.readouterr().out)

    assert "t: 0 of 80 replies had the form asked for, in 80 an answer could be" in shown(0)
    assert "\n1 of 80 replies had the form asked for" in shown(1, "")
    assert "form asked for" not in shown(40)


def test_too_few_rows_are_told_of_derived_numbers_too(capsys: Any) -> None:
    rows = [Row(str(i), {"gold": float(i % 2), "said": 1.0}) for i in range(4)]
    about = derive(rows, "macro_f1", ["gold", "said"], definition="", better="higher", labels=2)
    one = Measurement(
        "emotion", {"fingerprint": "m"}, 4, {"f1": about["value"]}, {"f1": "higher"}, rows,
        derived={"f1": about},
    )  # fmt: skip
    show(one, None, False)
    assert "f1: fewer than 5 rows or clusters" in capsys.readouterr().out


def test_wording_of_answers_of_one_word_is_not_shown(capsys: Any) -> None:
    def shown(last: float, form: str) -> str:
        scores = {form: 1.0, "distinct_2": 1.0, "repetition": 0.0}
        rows = [Row(str(i), scores) for i in range(9)] + [Row("9", {**scores, "repetition": last})]
        means = mean_scores(rows)
        better: Any = dict.fromkeys(means, "higher")
        show(Measurement("emotion", {"fingerprint": "m"}, 10, means, better, rows), None, False)
        return str(capsys.readouterr().out)

    dull = shown(0.0, "t.parsed_strict")
    assert "parsed_strict" in dull
    assert "distinct_2" not in dull
    assert "repetition" not in dull
    assert "repetition" in shown(0.5, "t.parsed_strict")
    assert "repetition" in shown(0.0, "refusal_rate")


@pytest.mark.parametrize(
    ("suite", "told"),
    [("stress", "the options parser"), ("personality", "parser and unread"), ("other", "")],
)
def test_only_options_that_a_suite_has_are_named(suite: str, told: str) -> None:
    rows = [Row(str(k), {"parsed_strict": 0.0}) for k in range(3)]
    found = Measurement(suite, {}, 3, {"parsed_strict": 0.0}, {"parsed_strict": "higher"}, rows)
    (line,) = unread(found)
    assert line.startswith("0 of 3 replies had the form asked for")
    assert line.endswith(told)
    assert ("how the rest counts" in line) == bool(told)
