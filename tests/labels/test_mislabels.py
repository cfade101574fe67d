"""Self-reports against annotators: a toy table per label and per user, confidence, estimators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crowd import TWO, graded, votes
from helpers import write_jsonl
from suture.errors import SutureError
from suture.labels import (
    compare_estimators,
    confidence,
    declared,
    estimate,
    mislabel_rate,
    read_votes,
)
from suture.ledger.intervals import wilson

FOUR = ("E/I", "S/N", "T/F", "J/P")


def of(letters: str) -> dict[str, str]:
    return dict(zip(FOUR, letters, strict=True))


def test_a_toy_table() -> None:
    stated = [of("INTJ"), of("ENFP"), of("ISTJ"), {"E/I": "E"}]
    seen: list[dict[str, str | None]] = [
        {**of("INTJ")},
        {**of("INTP")},
        {**of("ISTJ"), "J/P": None},
        {**of("ISTJ")},
    ]
    found = mislabel_rate(stated, seen)
    assert (found.labels, found.wrong) == (4 + 4 + 3 + 1, 2 + 1)
    assert found.rate == pytest.approx(3 / 12)
    assert (found.users, found.users_wrong, found.user_rate) == (4, 2, 0.5)
    assert found.interval is None  # four users are too few to resample
    assert found.user_interval == wilson(0.5, 4)
    assert found == mislabel_rate(stated, seen)
    with pytest.raises(SutureError, match="E393"):
        mislabel_rate([{"E/I": "E"}], [{"E/I": None}])


def test_intervals_are_the_ledgers() -> None:
    """Never of width zero: shares of nobody and of everybody have Wilson's over users."""
    same = mislabel_rate([of("INTJ")] * 10, [of("INTJ")] * 10)
    assert same.interval == same.user_interval == wilson(0.0, 10)
    other = mislabel_rate([of("INTJ")] * 10, [of("ESFP")] * 10)
    assert other.interval == wilson(1.0, 10)
    one = mislabel_rate([of("INTJ")], [of("INTP")])
    assert (one.rate, one.interval, one.user_interval) == (0.25, None, wilson(1.0, 1))
    single = mislabel_rate([{"E/I": "E"}] * 20, [{"E/I": "E"}] * 15 + [{"E/I": "I"}] * 5)
    assert single.interval == wilson(0.25, 20)
    mixed = mislabel_rate([of("INTJ")] * 20, [of("INTJ")] * 15 + [of("ESFJ")] * 5)
    assert mixed.interval is not None
    assert mixed.interval[0] < mixed.rate < mixed.interval[1]


def people(tmp_path: Path, **more: Any) -> Path:
    marks = {"E/I": "E+", "S/N": "N-", "T/F": "T+", "J/P": "P-"}
    other = {"E/I": "I+", "S/N": "S-", "T/F": "F+", "J/P": "J-"}
    rows = [
        {"id": i, "annotation": {d: {"A1": m[d], "A2": m[d]} for d in FOUR}, **more}
        for i, m in enumerate([marks, other] * 3, start=1)
    ]
    return write_jsonl(tmp_path / "v.jsonl", rows)


def test_self_reports_from_a_file_and_from_the_votes(tmp_path: Path) -> None:
    read = read_votes(people(tmp_path))
    reports = [{"id": 1, "self_report": "entp"}, {"id": 2, "self_report": {"E/I": "I"}}]
    stated = declared(read, write_jsonl(tmp_path / "s.jsonl", reports))
    assert stated.labels == [of("ENTP"), {"E/I": "I"}, {}, {}, {}, {}]
    assert stated.without_item == []
    more = [*reports, {"id": "user7", "self_report": "INTJ"}, {"id": "user8"}]
    assert declared(read, write_jsonl(tmp_path / "m.jsonl", more)).without_item == ["user7"]
    own = declared(read_votes(people(tmp_path, self_report="ISTP")))
    assert own.labels == [of("ISTP")] * 6
    labels = estimate(read, mode="converged")
    sure = confidence([of("ENTP"), of("ENTP"), {}, {}, {}, {}], labels)
    assert min(sure[0].values()) > 0.8
    assert max(sure[1].values()) < 0.2
    assert sure[2] == {}


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([{"id": 1, "self_report": "INTX"}], "E392"),
        ([{"id": 1, "self_report": "INT"}], "E392"),
        ([{"id": 1, "self_report": {"E/I": "X"}}], "E392"),
        ([{"id": 1, "mbti": "INTJ"}], "E392"),
        ([{"id": 1, "hardlabels": {"E/I": "E"}}], "E392"),
        ([{"id": 1, "label": "INTJ"}], "E392"),
        ([{"id": 9, "self_report": "INTJ"}], "E393"),
        ([{"id": 1, "self_report": "INTJ"}] * 2, "E393"),
    ],
)
def test_self_reports_that_cannot_be(tmp_path: Path, rows: list[dict[str, Any]], code: str) -> None:
    read = read_votes(people(tmp_path))
    with pytest.raises(SutureError, match=code) as raised:
        declared(read, write_jsonl(tmp_path / "s.jsonl", rows))
    assert raised.value.fix
    with pytest.raises(SutureError, match="E392") as raised:
        declared(read)  # the votes have no such column
    assert raised.value.where == str(tmp_path / "v.jsonl")


def test_estimators_side_by_side() -> None:
    cells = graded(120, 4, 9)
    read = votes(cells)
    first = estimate(read)["F/S"].hard
    truth = [{"F/S": TWO.names[k]} for k in first]
    methods = ("released", "converged", "majority", "dawid-skene", "glad", "mace")
    rows = compare_estimators(read, "F/S", methods, truth=truth)
    assert [row["estimator"] for row in rows] == list(methods)
    assert rows[0]["accuracy"] == rows[0]["hard_as_first"] == 1
    assert rows[0]["moved"] == 0
    for row in rows:
        assert row["known"] == row["items"] == 120
        assert row["hard_as_majority"] > 0.9
        assert 0 <= row["brier"] < 0.5
    with pytest.raises(SutureError, match="E394"):
        compare_estimators(read, "F/S", ["mace", "wawa"])


def test_estimators_on_three_poles_leave_released_out() -> None:
    from suture.labels import Scale

    three = Scale(name="x", poles={"a": ["a"], "b": ["b"], "c": ["c"]})
    cells = np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2], [0, 1, 1], [2, 2, -1], [-1, -1, -1]])
    rows = compare_estimators(votes(cells, three), "x", ("released", "converged", "majority"))
    assert [row["estimator"] for row in rows] == ["converged", "majority"]
    assert [row["items"] for row in rows] == [5, 5]


@pytest.mark.parametrize("method", ["majority", "converged"])
def test_ties_hang_on_no_order_of_poles(method: str) -> None:
    """A tie counts as a half, whichever pole is named first."""
    from suture.labels import Scale

    cells = np.array([[0, 0], [1, 1], [0, 1], [0, 1], [1, 0]])
    truth = [{"x": name} for name in ("no", "yes", "no", "no", "no")]
    found = []
    for poles in (["no", "yes"], ["yes", "no"]):
        scale = Scale(name="x", poles={name: [name] for name in poles})
        own = votes(cells if poles[0] == "no" else 1 - cells, scale)
        found.append(compare_estimators(own, "x", [method, "dawid-skene"], truth=truth))
    for one, other in zip(*found, strict=True):
        for key in ("accuracy", "hard_as_first", "hard_as_majority", "ties"):
            assert one[key] == pytest.approx(other[key]), key
    if method == "majority":
        assert (found[0][0]["ties"], found[0][0]["hard_as_first"]) == (3, 1)
        assert found[0][0]["accuracy"] == pytest.approx((2 + 3 / 2) / 5)


def test_shares_of_nothing_are_none() -> None:
    """Two annotators who never agree: no majority, no hard label, and no warning."""
    from suture.labels import EM, stability

    read = votes(np.array([[0, 3], [3, 0], [1, 2], [2, 1]]))
    row = compare_estimators(read, "F/S", ["converged"])[0]
    assert row["hard_as_majority"] is None
    assert row["items"] == 4
    facts = stability(estimate(read, mode="converged")["F/S"], EM(), draws=20).facts()
    assert facts["settled"] is None
    assert 0 <= facts["mean_width"] <= 1
