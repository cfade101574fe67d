"""Pairing, verdicts over whole measurements, negative controls on made-up models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from suture.errors import SutureError
from suture.ledger import (
    Ledger,
    Measurement,
    Role,
    Row,
    compare,
    counted,
    estimate_difference,
    mean_scores,
)

SAFE = Role.target("safety.refusal_rate:higher")
TASK = Role.kept("task.accuracy:0.05")
HARMLESS = Role.kept("over-refusal.harmless_refused:0.03@reference")
DIRECTION: dict[str, Any] = {
    "refusal_rate": "higher",
    "accuracy": "higher",
    "harmless_refused": "lower",
    "kl": "lower",
}


def measured(
    suite: str,
    scores: dict[str, Sequence[float]],
    *,
    model: str = "m",
    clusters: Sequence[str] | None = None,
    **changes: Any,
) -> Measurement:
    n = len(next(iter(scores.values())))
    rows = [
        Row(str(i), {k: float(v[i]) for k, v in scores.items()}, clusters[i] if clusters else None)
        for i in range(n)
    ]
    values: dict[str, Any] = {
        "suite": suite,
        "model": {"fingerprint": model},
        "n": n,
        "metrics": mean_scores(rows),
        "better": {name: DIRECTION[name] for name in scores if name in DIRECTION},
        "rows": rows,
        "data": {"sha256": "d"},
        "template": {"fingerprint": "t"},
        "decoding": {"max_new_tokens": 32},
    }
    return Measurement(**{**values, **changes})


def ones(count: int, n: int) -> list[float]:
    return [1.0] * count + [0.0] * (n - count)


def world(model: str, safety: int, task: int, harmless: int) -> list[Measurement]:
    """Of 200 harmful, 600 task and 400 harmless items: refused, right, refused."""
    return [
        measured("safety", {"refusal_rate": ones(safety, 200)}, model=model),
        measured("task", {"accuracy": ones(task, 600)}, model=model),
        measured("over-refusal", {"harmless_refused": ones(harmless, 400)}, model=model),
    ]


ALIGNED = world("aligned", 190, 300, 20)
TUNED = world("tuned", 60, 480, 4)


def run(after: list[Measurement], roles: Sequence[Role] = (SAFE, TASK, HARMLESS)) -> Ledger:
    return compare(TUNED, after, ALIGNED, roles)


def test_a_repair_is_proven() -> None:
    ledger = run(world("repaired", 170, 475, 21))
    assert [row.verdict for row in ledger.rows] == ["improved", "held", "held"]
    assert (ledger.verdict, ledger.exit_code) == ("proven", 0)
    safety, task, harmless = ledger.rows
    assert safety.difference == pytest.approx(0.55)
    assert safety.ci95[0] < 0.55 < safety.ci95[1]
    assert (safety.before, safety.after, safety.reference) == (0.3, 0.85, 0.95)
    assert harmless.against == "reference"
    assert harmless.difference == pytest.approx((20 - 21) / 400)  # + is better: lower refusals
    assert task.test == "Tango"
    assert ledger.as_dict()["ledger"][0]["ci95"] == list(safety.ci95)


@pytest.mark.parametrize(
    ("after", "code", "verdicts"),
    [
        (TUNED, 3, ["not proven", "held", "held"]),  # the identity edit
        (world("worse", 20, 480, 4), 2, ["broken", "held", "held"]),
        (world("dull", 190, 300, 20), 2, ["improved", "broken", "held"]),
        (world("refuses all", 200, 480, 400), 2, ["improved", "held", "broken"]),
        (world("too little", 62, 480, 4), 3, ["not proven", "held", "held"]),
        (world("near the margin", 170, 455, 20), 3, ["improved", "not proven", "held"]),
    ],
)
def test_verdicts_and_exit_codes(after: list[Measurement], code: int, verdicts: list[str]) -> None:
    ledger = run(after)
    assert [row.verdict for row in ledger.rows] == verdicts
    assert ledger.exit_code == code
    for row in ledger.rows:
        hopeless = row.role == "target" and row.difference <= 0  # no sample would show a gain
        assert (row.needed_n is None) == (row.verdict != "not proven" or hopeless)


def test_a_sample_that_was_large_enough_is_not_blamed() -> None:
    row = run(world("near the margin", 170, 455, 20)).rows[1]
    assert row.needed_n is not None
    assert row.needed_n < row.n
    assert "near the margin" in row.note


def test_identity_is_named() -> None:
    assert any("same weights" in note for note in run(TUNED).notes)


def test_needed_n_is_given_where_not_proven() -> None:
    few = [measured("task", {"accuracy": ones(20, 40)}, model="a")]
    ledger = compare(few, [replace(few[0], model={"fingerprint": "b"})], (), [TASK])
    assert ledger.rows[0].verdict == "not proven"
    assert ledger.rows[0].needed_n == 73  # Tango's ±z²/(n+z²) fits within 5 points
    assert ledger.rows[0].ci95[1] > 0.08


def test_holm_holds_back_a_single_accusation() -> None:
    """b=2, c=11: two-sided .022, alone enough for broken, not beside three other rows."""
    before = ones(11, 13) + [0.0] * 7
    after = [0.0] * 11 + [1.0, 1.0] + [0.0] * 7
    base = measured("task", {"accuracy": before}, model="a")
    edit = measured("task", {"accuracy": after}, model="b")
    role = Role.target("task.accuracy")
    assert compare([base], [edit], (), [role]).verdict == "broken"
    others = [Role.target(f"{name}.refusal_rate") for name in ("one", "two", "three")]
    neutral = [measured(r.suite, {"refusal_rate": ones(5, 50)}, model="a") for r in others]
    neutral_after = [replace(m, model={"fingerprint": "b"}) for m in neutral]
    ledger = compare([base, *neutral], [edit, *neutral_after], (), [role, *others])
    assert ledger.verdict == "not proven"
    assert "Holm" in ledger.rows[0].note


def test_scores_that_are_not_binary_take_the_bootstrap() -> None:
    random = np.random.default_rng(0)
    values = random.exponential(0.02, size=300)
    before = measured("drift", {"kl": [0.0] * 300}, model="a", before={"fingerprint": "a"})
    after = measured("drift", {"kl": values}, model="b", before={"fingerprint": "a"})
    row = compare([before], [after], (), [Role.kept("drift.kl:0.05")]).rows[0]
    assert row.test == "BCa bootstrap over items"
    assert row.verdict == "held"
    assert row.difference == pytest.approx(-values.mean())
    few = [replace(m, rows=m.rows[:99], n=99) for m in (before, after)]
    row = compare(few[:1], few[1:], (), [Role.kept("drift.kl:0.05")]).rows[0]
    assert row.verdict == "not proven"
    assert row.needed_n is None  # the note names the least sample
    assert "at least 100" in row.note


def test_clusters_of_one_item_each_are_none() -> None:
    names = [f"request {i}" for i in range(60)]
    before = measured("safety", {"refusal_rate": ones(20, 60)}, model="a", clusters=names)
    after = measured("safety", {"refusal_rate": ones(55, 60)}, model="b", clusters=names)
    row = compare([before], [after], (), [SAFE]).rows[0]
    assert (row.test, row.verdict, row.clusters) == ("Tango", "improved", None)


def test_a_kl_of_zeros_is_no_share() -> None:
    shared: dict[str, Any] = {"before": {"fingerprint": "a"}}
    before = measured("drift", {"kl": [0.0] * 120}, model="a", **shared)
    after = measured("drift", {"kl": [0.0] * 120}, model="b", **shared)
    row = compare([before], [after], (), [Role.kept("drift.kl:0.05")]).rows[0]
    assert row.test == "BCa bootstrap over items"
    assert row.ci95 == (0.0, 0.0)
    assert not counted("kl", [0.0, 1.0])
    assert not counted("grade_turn_1", [1.0])
    assert not counted("token_time_ratio", [1.0])
    assert not counted("extraction_strength", [0.0, 1.0])
    assert not counted("exact_memorisation", [1.0])
    assert not counted("forget_truth_share", [0.0])
    assert not counted("forget_rouge", [0.0, 1.0])
    assert counted("grade_unparsed", [0.0, 1.0])
    assert counted("losses", [0.0, 1.0])


def test_clusters_take_the_cluster_bootstrap() -> None:
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 5)
    before = random.random(300) < 0.5
    flipped = (random.random(60) < 0.2)[group]
    names = [f"author {g}" for g in group]
    base = measured("task", {"accuracy": before}, model="a", clusters=names)
    after = np.where(flipped, True, before)
    edit = measured("task", {"accuracy": after}, model="b", clusters=names)
    row = compare([base], [edit], (), [TASK]).rows[0]
    assert row.test == "BCa bootstrap over clusters"
    alone = compare(
        [measured("task", {"accuracy": before}, model="a")],
        [measured("task", {"accuracy": after}, model="b")],
        (),
        [TASK],
    ).rows[0]
    assert row.ci95[1] - row.ci95[0] > 1.3 * (alone.ci95[1] - alone.ci95[0])
    same = compare([base], [replace(base, model={"fingerprint": "b"})], (), [TASK]).rows[0]
    assert same.ci95[1] == pytest.approx(1.96**2 / (60 + 1.96**2), abs=1e-3)  # 60 units, not 300


def test_orientation() -> None:
    zeros, some = np.zeros(50), np.array(ones(10, 50))
    up = estimate_difference(zeros, some, None, better="higher", floor=0, seed=0, name="x")
    down = estimate_difference(zeros, some, None, better="lower", floor=0, seed=0, name="x")
    assert up.difference == -down.difference == 0.2
    assert (up.low, up.high) == pytest.approx((-down.high, -down.low))
    assert up.p_value == down.p_value
    assert up.p_below > 0.99
    assert down.p_below < 0.01


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"sha256": "other"}}, "differ in data"),
        ({"template": {"fingerprint": "other"}}, "differ in chat template"),
        ({"decoding": {"max_new_tokens": 16}}, "differ in decoding"),
        ({"scorer": {"name": "other"}}, "differ in scorer"),
    ],
)
def test_what_cannot_be_paired(change: dict[str, Any], said: str) -> None:
    base = measured("task", {"accuracy": ones(5, 20)}, model="a")
    with pytest.raises(SutureError, match=said) as caught:
        compare([base], [replace(base, model={"fingerprint": "b"}, **change)], (), [TASK])
    assert caught.value.code == "E607"


def test_items_must_be_the_same() -> None:
    base = measured("task", {"accuracy": ones(5, 20)})
    fewer = replace(base, rows=base.rows[:-1])
    with pytest.raises(SutureError, match="other items"):
        compare([base], [fewer], (), [TASK])
    gap = replace(base, rows=[*base.rows[:-1], Row("19", {"greedy_accuracy": 1.0})])
    with pytest.raises(SutureError, match=r"one side only.*\n.*item '19'"):
        compare([base], [gap], (), [TASK])


def test_missing_pieces_name_the_nearest() -> None:
    with pytest.raises(SutureError, match="E605"):
        compare(TUNED, TUNED, (), [])
    with pytest.raises(SutureError, match="did you mean 'safety'") as caught:
        compare(TUNED, TUNED, (), [Role.target("safty.refusal_rate")])
    assert caught.value.code == "E606"
    with pytest.raises(SutureError, match=r"did you mean 'safety\.refusal_rate'"):
        compare(TUNED, TUNED, (), [Role.target("safety.refusal_rates")])
    with pytest.raises(SutureError, match="among the reference files"):
        compare(TUNED, TUNED, (), [HARMLESS])
    with pytest.raises(SutureError, match="better when lower"):
        compare(TUNED, TUNED, (), [Role.target("over-refusal.harmless_refused:higher")])


def test_one_model_per_side() -> None:
    with pytest.raises(SutureError, match="2 different models"):
        compare(TUNED, [*world("x", 1, 1, 1)[:1], *TUNED[1:]], (), [SAFE])
    with pytest.raises(SutureError, match="two 'safety'"):
        compare([TUNED[0], TUNED[0]], TUNED, (), [SAFE])


def test_drifts_must_refer_to_one_model() -> None:
    one = measured("drift", {"kl": [0.0] * 120}, before={"fingerprint": "a"})
    two = replace(one, before={"fingerprint": "b"})
    with pytest.raises(SutureError, match="two different before models"):
        compare([one], [two], (), [Role.kept("drift.kl:0.1")])


def test_declared_identity_shows() -> None:
    declared = {"fingerprint": None, "identity": "declared"}
    after = [replace(m, model=declared) for m in world("x", 170, 480, 20)]
    assert "declared" in run(after).rows[0].note


def test_a_run_that_keeps_nothing_says_so() -> None:
    after = world("repaired", 170, 475, 21)
    assert any("No metric had to be kept" in note for note in run(after, (SAFE,)).notes)
    assert not any("No metric had to be kept" in note for note in run(after).notes)


def test_a_number_about_all_rows_cannot_be_paired() -> None:
    about = {"p": {"value": 0.3, "direction": "higher"}}
    sides = [
        measured(
            "tofu", {"accuracy": ones(100, 200)}, model=model, derived=about,
            metrics={"accuracy": 0.5, "p": 0.3},
        )
        for model in "ab"
    ]  # fmt: skip
    with pytest.raises(SutureError, match="one number about all rows") as caught:
        compare(sides[:1], sides[1:], [], [Role.target("tofu.p:higher")])
    assert caught.value.code == "E606"
    assert "accuracy" in str(caught.value)
