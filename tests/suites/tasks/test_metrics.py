"""Columns and numbers of tasks, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from suture.errors import SutureError
from suture.ledger import Row
from suture.suites.tasks.metrics import columns, derived, kinds, score_columns
from suture.suites.tasks.spec import TaskSpec


def _task(answer: dict[str, Any], *metrics: Any) -> TaskSpec:
    listed = [one if isinstance(one, dict) else {"name": one} for one in metrics]
    return TaskSpec.load(
        {
            "name": "t",
            "suite": "sentiment",
            "title": "a task",
            "answer": answer,
            "prompts": {"zero-shot": [["{input} {answer_form}"]]},
            "metrics": listed,
            "headline": listed[0]["name"],
        }
    )


def _numbers(spec: TaskSpec, pairs: list[tuple[Any, Any]]) -> dict[str, float]:
    rows = []
    for i, (gold, said) in enumerate(pairs):
        own = columns(spec, gold, said)
        rows.append(Row(str(i), {f"t.{name}": value for name, value in own.items()}))
    return {name: about["value"] for name, about in derived(spec, rows, told="x").items()}


SCORES = [(-3.0, -3.8), (-1.2, -0.4), (0.0, 0.2), (0.4, -0.1), (2.6, 2.4)]


def test_scores_are_classed_as_mmsa_does() -> None:
    names = ["acc7", "acc5", "acc3", "acc2_has0", "acc2_non0", "f1_has0", "f1_non0", "mae", "rmse"]
    spec = _task({"kind": "score", "low": -3, "high": 3}, *names, "pearson")
    found = _numbers(spec, SCORES)  # gold 0 among them, and one prediction beyond the range
    assert found["acc7"] == pytest.approx(3 / 5)
    assert found["acc5"] == pytest.approx(4 / 5)
    assert found["acc3"] == pytest.approx(4 / 5)
    assert found["acc2_has0"] == pytest.approx(4 / 5)
    assert found["acc2_non0"] == pytest.approx(3 / 4)
    assert found["f1_has0"] == pytest.approx(0.8)
    assert found["f1_non0"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["mae"] == pytest.approx(0.5)
    assert found["rmse"] == pytest.approx((0.64 + 0.64 + 0.04 + 0.25 + 0.04) ** 0.5 / 5**0.5)
    gold, said = zip(*SCORES, strict=True)
    assert found["pearson"] == pytest.approx(np.corrcoef(gold, said)[0, 1])


def test_halves_are_rounded_to_even() -> None:
    assert score_columns(0.5, 0.0)["acc7"] == 1.0
    assert score_columns(1.5, 2.0)["acc7"] == 1.0
    assert score_columns(2.5, 3.0)["acc7"] == 0.0


def test_a_truth_of_zero_is_no_row_of_non0() -> None:
    assert "acc2_non0" not in score_columns(0.0, 1.0)
    assert score_columns(0.0, 1.0)["acc2_has0"] == 1.0


def test_an_unread_score_is_wrong_in_classes_and_has_no_error() -> None:
    found = score_columns(1.0, None)
    assert "said" not in found
    assert {found[name] for name in ("acc7", "acc5", "acc3", "acc2_has0", "acc2_non0")} == {0.0}


def test_bins_of_ones_own() -> None:
    edges = [-1.01, -0.1, 0.1, 1.01]  # CH-SIMS in three
    spec = _task(
        {"kind": "score", "low": -1, "high": 1},
        {"name": "acc_three", "kind": "acc_bins", "options": {"edges": edges}},
    )
    assert _numbers(spec, [(-0.1, -0.8), (0.0, 0.1), (0.2, 0.1), (1.0, 0.6)]) == {"acc_three": 0.75}
    bare = _task({"kind": "score", "low": -1, "high": 1}, {"name": "acc_three", "kind": "acc_bins"})
    with pytest.raises(SutureError, match="edges") as caught:
        columns(bare, 0.0, 0.0)
    assert caught.value.code == "E578"


def test_labels() -> None:
    spec = _task(
        {"kind": "label", "labels": ["a", "b", "c"]},
        "accuracy", "macro_f1", "weighted_f1",
        {"name": "f1_b", "kind": "f1_of", "options": {"label": "b"}},
    )  # fmt: skip
    found = _numbers(spec, [("a", "a"), ("a", "b"), ("b", "b"), ("c", None)])
    assert found["accuracy"] == 0.5
    # F1: a 2/3, b 2/3, c 0
    assert found["macro_f1"] == pytest.approx(4 / 9)
    assert found["weighted_f1"] == pytest.approx((2 * 2 / 3 + 2 / 3 + 0) / 4)
    assert found["f1_b"] == pytest.approx(2 / 3)


def test_sets_of_labels() -> None:
    spec = _task(
        {"kind": "labels", "labels": ["a", "b", "c"]}, "micro_f1", "macro_f1", "jaccard", "exact"
    )
    pairs = [(["a", "b"], ["a"]), (["c"], ["c", "b"]), ([], []), ([], None)]
    found = _numbers(spec, pairs)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["macro_f1"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["jaccard"] == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)
    assert found["exact"] == pytest.approx(1 / 4)


def test_spans_match_exactly_and_once() -> None:
    spec = _task(
        {"kind": "spans"}, "micro_f1", "micro_precision", "micro_recall", "exact", "token_f1"
    )
    pairs = [
        (["Ana Silva", "Rio"], ["Ana  Silva", "Silva"]),  # one right, one not, one missed
        (["Rio"], ["Rio", "Rio"]),  # twice is once
        ([], []),
        ([], ["Oslo"]),
        (["Bonn"], []),
        (["Bonn"], None),
    ]
    found = _numbers(spec, pairs)
    assert found["micro_precision"] == pytest.approx(2 / 4)
    assert found["micro_recall"] == pytest.approx(2 / 5)
    assert found["micro_f1"] == pytest.approx(2 * 2 / 9)
    assert found["exact"] == pytest.approx(2 / 6)
    assert found["token_f1"] == pytest.approx((2 * 2 / 6 + 2 / 3 + 1 + 0 + 0 + 0) / 6)


def test_pairs_by_emotion_weighted_by_how_often_it_is_right() -> None:
    parts = [
        {"name": "felt", "kind": "number"},
        {"name": "caused", "kind": "number"},
        {"name": "emotion", "kind": "label", "labels": ["neutral", "joy", "anger"]},
    ]
    six = {"labels": ["joy", "anger"]}
    spec = _task(
        {"kind": "pairs", "parts": parts}, "micro_f1", "exact",
        {"name": "weighted_f1", "kind": "weighted_pair_f1", "options": six},
        {"name": "macro_f1", "kind": "macro_pair_f1", "options": six},
    )  # fmt: skip
    pairs = [
        ([[3, 1, "joy"], [3, 3, "joy"]], [[3, 1, "joy"]]),
        ([[2, 1, "anger"]], [[2, 2, "anger"]]),
        ([], [[1, 1, "joy"], [1, 1, "joy"]]),
        ([[4, 4, "joy"]], []),
    ]
    found = _numbers(spec, pairs)
    # joy: 1 hit, 1 too many, 2 missed; anger: 0 hits, 1, 1
    assert found["micro_f1"] == pytest.approx(2 / (2 + 2 + 3))
    assert found["weighted_f1"] == pytest.approx((3 * 2 / 5 + 1 * 0) / 4)
    assert found["macro_f1"] == pytest.approx(0.2)
    assert found["exact"] == 0.0


def test_metrics_that_answers_do_not_have() -> None:
    spec = _task({"kind": "label", "labels": ["a", "b"]}, "macro_fl")
    with pytest.raises(SutureError, match="did you mean 'macro_f1'") as caught:
        columns(spec, "a", "a")
    assert caught.value.code == "E578"
    unknown = {"name": "f1", "kind": "f1_of", "options": {"label": "z"}}
    with pytest.raises(SutureError, match="no label"):
        columns(_task({"kind": "label", "labels": ["a", "b"]}, unknown), "a", "a")


@pytest.mark.parametrize(
    "answer",
    [
        {"kind": "label", "labels": ["a", "b"]},
        {"kind": "labels", "labels": ["a", "b"]},
        {"kind": "score", "low": 0, "high": 1},
        {"kind": "spans"},
    ],
)
def test_every_kind_that_is_listed_is_known(answer: dict[str, Any]) -> None:
    options = {"edges": [0, 0.5, 1], "label": "a"}
    names = kinds(_task(answer, "exact"))
    spec = _task(answer, *({"name": name, "options": options} for name in names))
    gold = {"label": "a", "labels": ["a"], "score": 0.75, "spans": ["x"]}[str(answer["kind"])]
    assert _numbers(spec, [(gold, gold)] * 2).keys() == set(names)


def test_pieces_count_whatever_their_apostrophes() -> None:
    from suture.suites.tasks.metrics import _set_counts

    assert _set_counts([["Joe’s"]], [["Joe's"]]) == {"tp": 1, "fp": 0, "fn": 0, "exact": 1}
