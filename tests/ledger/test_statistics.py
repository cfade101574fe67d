"""Numbers from sums: against scikit-learn and against making them anew, alone and paired."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn import metrics as reference

from suture.errors import SutureError
from suture.ledger import (
    Measurement,
    Role,
    Row,
    Statistic,
    compare,
    derive,
    interval_of,
    without_interval,
)

LABELS = 4


def _codes(seed: int, n: int = 240, unread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    gold = draws.integers(0, LABELS, n)
    said = np.where(draws.random(n) < 0.6, gold, draws.integers(0, LABELS, n))
    return gold, np.where(draws.random(n) < unread, -1, said)


def _rows(gold: np.ndarray, said: np.ndarray, *, each: int = 1) -> list[Row]:
    found = []
    for i, (right, given) in enumerate(zip(gold, said, strict=True)):
        scores = {"t.gold": float(right), "t.said": float(given)}
        found.append(Row(f"{i:04d}", scores, f"c{i // each}" if each > 1 else None))
    return found


def _of(rows: list[Row], kind: str, columns: list[str], **options: object) -> float:
    found = derive(rows, kind, columns, definition="x", better="higher", **options)  # type: ignore[arg-type]
    return float(found["value"])


@pytest.mark.parametrize("seed", range(3))
def test_f1_is_scikit_learns(seed: int) -> None:
    gold, said = _codes(seed)
    rows, columns = _rows(gold, said), ["t.gold", "t.said"]
    codes = list(range(LABELS))
    for kind, average in (("macro_f1", "macro"), ("weighted_f1", "weighted")):
        wanted = reference.f1_score(gold, said, labels=codes, average=average, zero_division=0)
        assert _of(rows, kind, columns, labels=LABELS) == pytest.approx(wanted, abs=1e-12)
    each = reference.precision_recall_fscore_support(gold, said, labels=[2], zero_division=0)
    for kind, wanted in zip(("precision_of", "recall_of", "f1_of"), each, strict=False):
        assert _of(rows, kind, columns, label=2) == pytest.approx(float(wanted[0]), abs=1e-12)
    assert _of(rows, "accuracy", columns) == pytest.approx((gold == said).mean())


def test_a_label_that_never_occurs_is_left_out_of_a_macro_mean() -> None:
    gold, said = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    wanted = reference.f1_score(gold, said, average="macro")
    assert _of(_rows(gold, said), "macro_f1", ["t.gold", "t.said"], labels=9) == pytest.approx(
        wanted
    )


def test_errors_and_correlation() -> None:
    draws = np.random.default_rng(1)
    gold = draws.normal(3e6, 1.0, 200)  # far from 0, where sums of squares lose digits
    said = gold + draws.normal(0.0, 0.5, 200)
    rows, columns = _rows(gold, said), ["t.gold", "t.said"]
    assert _of(rows, "rmse", columns) == pytest.approx(np.sqrt(((gold - said) ** 2).mean()))
    assert _of(rows, "mae", columns) == pytest.approx(np.abs(gold - said).mean())
    assert _of(rows, "pearson", columns) == pytest.approx(pearsonr(gold, said)[0], abs=1e-9)
    assert _of(_rows(gold, np.full(200, 0.1)), "pearson", columns) == 0.0


def test_counts() -> None:
    rows = [
        Row("1", {"tp": 2.0, "fp": 1.0, "fn": 0.0, "tp_b": 0.0, "fp_b": 1.0, "fn_b": 1.0}),
        Row("2", {"tp": 1.0, "fp": 0.0, "fn": 3.0, "tp_b": 1.0, "fp_b": 0.0, "fn_b": 0.0}),
    ]
    assert _of(rows, "micro_precision", ["tp", "fp", "fn"]) == 3 / 4
    assert _of(rows, "micro_recall", ["tp", "fp", "fn"]) == 3 / 6
    assert _of(rows, "micro_f1", ["tp", "fp", "fn"]) == pytest.approx(0.6)
    columns = ["tp", "fp", "fn", "tp_b", "fp_b", "fn_b"]
    # F1 0.6 of six that are right, 0.5 of two
    assert _of(rows, "weighted_pair_f1", columns) == pytest.approx((6 * 0.6 + 2 * 0.5) / 8)
    assert _of(rows, "macro_count_f1", columns) == pytest.approx(0.55)
    assert _of(rows, "ratio", ["tp", "fn"]) == 1.0


def test_bleu_of_the_corpus() -> None:
    # 3 of 4 words and 1 of 3 pairs, 5 words in the reference
    row = Row("1", {"h1": 3.0, "n1": 4.0, "h2": 1.0, "n2": 3.0, "long": 4.0, "wanted": 5.0})
    wanted = np.exp(1 - 5 / 4) * np.sqrt(3 / 4 * 1 / 3)
    assert _of([row], "bleu", list(row.scores)) == pytest.approx(wanted)
    none = Row("1", {**row.scores, "h2": 0.0})
    assert _of([none], "bleu", list(row.scores)) == 0.0


@pytest.mark.parametrize("each", [1, 4])
def test_the_interval_is_that_of_a_plain_bootstrap_over_clusters(each: int) -> None:
    gold, said = _codes(3, 200)
    rows = _rows(gold, said, each=each)
    found = derive(
        rows, "macro_f1", ["t.gold", "t.said"], definition="x", better="higher", labels=LABELS
    )
    groups = np.arange(200).reshape(-1, each)
    draws = np.random.default_rng(7)
    again = []
    for _ in range(1500):
        at = groups[draws.integers(0, len(groups), len(groups))].ravel()
        codes = list(range(LABELS))
        again.append(
            reference.f1_score(gold[at], said[at], labels=codes, average="macro", zero_division=0)
        )
    low, high = np.quantile(again, [0.025, 0.975])
    assert found["interval"] == pytest.approx([low, high], abs=0.015)
    assert (found["n"], found["direction"]) == (200, "higher")


def test_counts_of_0_and_1_have_wilsons_interval() -> None:
    rows = [Row(str(i), {"t.hit": float(i < 50)}) for i in range(50)]
    found = derive(rows, "mean", ["t.hit"], definition="x", better="higher")
    assert found["value"] == 1.0
    assert found["interval"][0] == pytest.approx(0.9287, abs=1e-4)


def test_rows_without_the_columns_are_left_out_and_counted() -> None:
    gold, said = _codes(4)
    rows = [*_rows(gold, said), Row("unread", {"t.gold": 1.0})]
    found = derive(rows, "accuracy", ["t.gold", "t.said"], definition="x", better="higher")
    assert found["n"] == len(rows) - 1
    some = [replace(row, scores={**row.scores, "v": float(i % 2)}) for i, row in enumerate(rows)]
    half = derive(
        some, "accuracy", ["t.gold", "t.said"], definition="x", better="higher", where={"v": 1.0}
    )
    assert half["value"] == pytest.approx((gold == said)[1::2].mean())
    assert Statistic.load(half["statistic"]).of(
        [row for row in some if Statistic.load(half["statistic"]).takes(row)]
    ) == pytest.approx(half["value"])


def test_fewer_than_five_clusters_have_no_interval() -> None:
    gold, said = _codes(4, 8)
    columns = ["t.gold", "t.said"]
    few = derive(
        _rows(gold, said, each=2), "macro_f1", columns, definition="x", better="higher", labels=4
    )
    assert "interval" not in few


def test_a_mean_of_statistics() -> None:
    (g1, s1), (g2, s2) = _codes(5, 60), _codes(6, 40)
    one = _rows(g1, s1)
    two = [
        Row(f"u{row.item}", {"u.gold": row.scores["t.gold"], "u.said": row.scores["t.said"]})
        for row in _rows(g2, s2)
    ]
    parts = [
        {"kind": "macro_f1", "columns": [f"{name}.gold", f"{name}.said"], "labels": LABELS}
        for name in "tu"
    ]
    alone = [
        _of(rows, "macro_f1", part["columns"], labels=LABELS)  # type: ignore[arg-type]
        for rows, part in zip((one, two), parts, strict=True)
    ]
    found = derive([*one, *two], "mean_of", [], definition="x", better="higher", parts=parts)
    assert found["value"] == pytest.approx(sum(alone) / 2)
    assert found["n"] == 100
    low, high = found["interval"]
    assert low < found["value"] < high


def test_unknown_kinds_and_rows_without_columns() -> None:
    rows = [Row("1", {"x": 1.0})]
    with pytest.raises(SutureError, match="did you mean 'macro_f1'") as caught:
        derive(rows, "macro_fl", ["x"], definition="x", better="higher")
    assert caught.value.code == "E620"
    with pytest.raises(SutureError) as caught:
        derive(rows, "mean", ["y"], definition="x", better="higher")
    assert caught.value.code == "E621"


def _measured(gold: np.ndarray, said: np.ndarray, name: str, *, each: int = 1) -> Measurement:
    rows = _rows(gold, said, each=each)
    about = derive(
        rows, "macro_f1", ["t.gold", "t.said"], definition="x", better="higher", labels=LABELS
    )
    return Measurement(
        suite="emotion",
        model={"fingerprint": name, "path": name},
        n=len(rows),
        metrics={"t.macro_f1": about["value"]},
        better={"t.macro_f1": "higher"},
        rows=rows,
        data={"sha256": "d"},
        derived={"t.macro_f1": about},
    )


def test_a_derived_number_is_paired_by_drawing_the_same_clusters() -> None:
    gold, said = _codes(8, 300, unread=0.0)
    worse = np.where(np.arange(300) % 3 == 0, (gold + 1) % LABELS, said)
    before, after = _measured(gold, worse, "a"), _measured(gold, said, "b")
    role = Role.target("emotion.t.macro_f1:higher")
    assert (role.suite, role.column) == ("emotion", "t.macro_f1")
    row = compare([before], [after], roles=[role]).rows[0]
    gain = after.metrics["t.macro_f1"] - before.metrics["t.macro_f1"]
    assert row.difference == pytest.approx(gain)
    assert row.ci95[0] < gain < row.ci95[1]
    assert (row.verdict, row.test) == ("improved", "BCa bootstrap over items")
    # pairing takes away what both share: narrower than two intervals side by side
    alone = [interval_of(one, "t.macro_f1") for one in (before, after)]
    assert row.ci95[1] - row.ci95[0] < sum(high - low for low, high in filter(None, alone))
    back = compare([after], [before], roles=[Role.kept("emotion.t.macro_f1:0.02")]).rows[0]
    assert back.verdict == "broken"


def test_identical_models_differ_by_nothing() -> None:
    gold, said = _codes(9, 200)
    one = _measured(gold, said, "a", each=2)
    row = compare([one], [_measured(gold, said, "b", each=2)], roles=[
        Role.kept("emotion.t.macro_f1:0.05")
    ]).rows[0]  # fmt: skip
    assert row.difference == 0.0
    assert row.ci95 == pytest.approx((-0.037, 0.037), abs=1e-4)  # 100 clusters, none changed
    assert (row.verdict, row.clusters) == ("held", 100)


def test_what_does_not_vary_is_not_certain() -> None:
    codes = np.arange(40) % LABELS
    found = derive(
        _rows(codes, codes), "macro_f1", ["t.gold", "t.said"],
        definition="x", better="higher", labels=LABELS,
    )  # fmt: skip
    assert found["value"] == 1.0
    assert found["interval"] == pytest.approx([0.9124, 1.0], abs=1e-4)


def test_two_systems_alike_in_quality_have_zero_in_their_interval() -> None:
    gold, one = _codes(10, 200)
    _, two = _codes(10, 200)
    swapped = np.where(np.arange(200) % 2 == 0, one, np.roll(two, 0))
    row = compare(
        [_measured(gold, one, "a")], [_measured(gold, swapped, "b")],
        roles=[Role.target("emotion.t.macro_f1")],
    ).rows[0]  # fmt: skip
    assert row.ci95[0] <= 0.0 <= row.ci95[1]


def test_items_read_on_one_side_only_are_left_out_and_named() -> None:
    gold, said = _codes(11, 200, unread=0.0)
    before, after = _measured(gold, said, "a"), _measured(gold, said, "b")
    first = after.rows[0]
    unread = replace(after, rows=[replace(first, scores={"t.gold": 0.0}), *after.rows[1:]])
    row = compare([before], [unread], roles=[Role.target("emotion.t.macro_f1")]).rows[0]
    assert row.n == 199
    assert "1 items left out" in row.note


def test_other_statistics_are_not_paired() -> None:
    gold, said = _codes(12)
    before, after = _measured(gold, said, "a"), _measured(gold, said, "b")
    about = after.derived["t.macro_f1"]
    other = {**about, "statistic": {**about["statistic"], "labels": 9}}
    after = replace(after, derived={"t.macro_f1": other})
    with pytest.raises(SutureError, match="another statistic") as caught:
        compare([before], [after], roles=[Role.target("emotion.t.macro_f1")])
    assert caught.value.code == "E607"


def test_a_measurement_keeps_what_its_numbers_are_made_of(tmp_path) -> None:
    gold, said = _codes(13)
    one = _measured(gold, said, "a")
    again = Measurement.load(one.save(tmp_path / "m.json"))
    assert again.derived == one.derived
    statistic = Statistic.load(again.derived["t.macro_f1"]["statistic"])
    assert statistic.of(again.rows) == pytest.approx(one.metrics["t.macro_f1"])


def _leaning(values: np.ndarray, model: str, column: str = "ei.bias") -> Measurement:
    rows = [Row(str(i), {column: float(value)}) for i, value in enumerate(values)]
    about = derive(rows, "mean", [column], definition="x", better="lower")
    return Measurement(
        suite="personality",
        model={"fingerprint": model},
        n=len(rows),
        metrics={"ei.bias": about["value"]},
        better={"ei.bias": "lower"},
        rows=rows,
        data={"sha256": "d"},
        derived={"ei.bias": {**about, "best": 0.0}},
    )


@pytest.mark.parametrize("column", ["ei.bias", "ei.shift"])  # the rows' own score, and another
def test_where_a_value_in_between_is_best_a_gain_is_a_move_towards_it(column: str) -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.1, 200)
    noise -= noise.mean()
    near, far, across = (
        _leaning(noise + level, name, column)
        for level, name in ((-0.2, "a"), (-0.6, "b"), (0.6, "c"))
    )
    role, kept = Role.target("personality.ei.bias"), Role.kept("personality.ei.bias:0.05")
    away = compare([near], [far], roles=[role, kept])
    assert [row.verdict for row in away.rows] == ["broken", "broken"]
    first = away.rows[0]
    assert (first.before, first.after, first.difference) == pytest.approx((-0.2, -0.6, -0.4))
    assert first.best == 0.0
    assert "0 is best" in first.note
    towards = compare([far], [near], roles=[role, kept])
    assert [row.verdict for row in towards.rows] == ["improved", "held"]
    other_side = compare([far], [across], roles=[role]).rows[0]  # as far from 0 as before
    assert other_side.verdict == "not proven"
    assert abs(other_side.difference) < 1e-9
    with pytest.raises(SutureError, match="is best at 0") as caught:
        compare([far], [near], roles=[Role.target("personality.ei.bias:lower")])
    assert caught.value.code == "E604"


def test_columns_that_metrics_are_made_of_are_no_metrics() -> None:
    gold, said = _codes(14)
    before, after = _measured(gold, said, "a"), _measured(gold, said, "b")
    with pytest.raises(SutureError, match="not a metric") as caught:
        compare([before], [after], roles=[Role.target("emotion.t.said:higher")])
    assert caught.value.code == "E606"
    for wrong in ("t.macrof1", "t.golf"):
        with pytest.raises(SutureError) as caught:
            compare([before], [after], roles=[Role.target(f"emotion.{wrong}:higher")])
        assert "t.macro_f1" in str(caught.value)
        assert "t.gold" not in str(caught.value)


def test_shares_have_wilsons_interval_whichever_kind_they_are() -> None:
    gold, said = _codes(15, 100)
    rows = [
        replace(row, scores={**row.scores, "t.accuracy": float(row.scores["t.gold"] == given)})
        for row, given in zip(_rows(gold, said), said, strict=True)
    ]
    shares = [
        derive(rows, kind, columns, definition="x", better="higher")["interval"]
        for kind, columns in (("mean", ["t.accuracy"]), ("accuracy", ["t.gold", "t.said"]))
    ]
    assert shares[0] == shares[1]


def test_what_is_no_share_has_no_interval_of_one() -> None:
    rows = [Row(str(i), {"t.h": 0.0, "t.n": 4.0, "t.l": 5.0, "t.w": 5.0}) for i in range(5)]
    none = derive(rows, "bleu", ["t.h", "t.n", "t.l", "t.w"], definition="x", better="higher")
    assert none["value"] == 0.0
    assert "interval" not in none
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    for name in ("dist_1", "dist_2", "jaccard", "token_f1", "eq_bench"):
        rows = [Row(str(i), {f"t.{name}": value}) for i, value in enumerate(values)]
        found = derive(rows, "mean", [f"t.{name}"], definition="x", better="higher")
        assert found["interval"][1] == 1.0  # of the bootstrap; Wilson's ends at 0.882


def test_a_mean_of_shares_that_are_all_0_is_not_certain() -> None:
    rows = [Row(str(i), {f"t.{i % 2}.accuracy": 0.0}) for i in range(20)]
    parts = [{"kind": "mean", "columns": [f"t.{half}.accuracy"]} for half in range(2)]
    found = derive(rows, "mean_of", [], definition="x", better="higher", parts=parts)
    assert found["interval"] == pytest.approx([0.0, 0.161], abs=1e-3)


def test_the_same_numbers_have_the_same_interval_whatever_they_are_called() -> None:
    gold, said = _codes(16)
    rows = [
        replace(row, scores={**row.scores, "t.constant": row.scores["t.said"]})
        for row in _rows(gold, said)
    ]
    one, two = (
        derive(rows, "macro_f1", ["t.gold", name], definition="x", better="higher", labels=LABELS)
        for name in ("t.said", "t.constant")
    )
    assert one["interval"] == two["interval"]


def test_the_list_of_statistics_is_whole() -> None:
    with pytest.raises(SutureError, match="mean_of"):
        Statistic.load({"kind": "zzzzzzzz"})


def test_why_a_number_has_no_interval() -> None:
    gold, said = _codes(17, 4)
    few = _measured(gold, said, "a")
    assert "fewer than 5" in without_interval(few, "t.macro_f1")
    constant = _rows(np.arange(12), np.ones(12))
    about = derive(constant, "pearson", ["t.gold", "t.said"], definition="x", better="higher")
    still = replace(few, rows=constant, derived={"t.r": about, "t.p": {"value": 0.3}})
    same = [Row(str(i), {"t.dist_2": 1.0}) for i in range(9)]
    of_rows = derive(same, "mean", ["t.dist_2"], definition="x", better="higher")
    assert interval_of(replace(few, rows=same, derived={"t.dist_2": of_rows}), "t.dist_2") is None
    assert interval_of(still, "t.r") is None
    assert "nothing varies" in without_interval(still, "t.r")
    assert "one number about all rows" in without_interval(still, "t.p")
    told = replace(few, rows=constant[:4], derived={"t.gold": {"value": 1.5}})  # a mean, described
    assert "fewer than 5" in without_interval(told, "t.gold")
