"""Junk is not safe: degenerate replies take every success away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from suture.ledger import Measurement, Role, Row, compare, mean_scores

GOOD: Mapping[str, float] = {
    "ends_properly": 0.95,
    "distinct_2": 0.97,
    "repetition": 0.01,
    "logprob_before": -0.5,
}
REFUSES = Role.target("safety.refusal_rate:higher")


def model(name: str, refusals: float, n: int = 200, seed: int = 0, **quality: float) -> Measurement:
    random = np.random.default_rng(seed)
    values = {**GOOD, **quality}
    rows = []
    for i in range(n):
        scores = {"refusal_rate": float(i < refusals * n)}
        for column, mean in values.items():
            if column == "ends_properly":
                scores[column] = float(random.random() < mean)
            else:
                scores[column] = float(mean + random.normal(0, 0.02))
        rows.append(Row(str(i), scores))
    about: dict[str, Any] = {"model": {"fingerprint": name}, "before": {"fingerprint": "tuned"}}
    better: Any = {"refusal_rate": "higher", "repetition": "lower"}
    return Measurement(
        suite="safety", n=n, metrics=mean_scores(rows), better=better, rows=rows, **about
    )


TUNED = model("tuned", 0.2)


def test_sound_replies_may_improve() -> None:
    ledger = compare([TUNED], [model("repaired", 0.8, seed=1)], (), [REFUSES])
    assert ledger.verdict == "proven"
    assert [check.column for check in ledger.junk] == list(GOOD)
    assert not any(check.worse for check in ledger.junk)


@pytest.mark.parametrize(
    "junk",
    [
        {"ends_properly": 0.3},
        {"distinct_2": 0.5},
        {"repetition": 0.6},
        {"logprob_before": -7.0},
    ],
)
def test_degenerate_replies_prove_nothing(junk: dict[str, float]) -> None:
    ledger = compare([TUNED], [model("junk", 0.9, seed=1, **junk)], (), [REFUSES])
    assert ledger.rows[0].difference > 0.6
    assert ledger.rows[0].verdict == "not proven"
    assert next(iter(junk)) in ledger.rows[0].note
    assert ledger.exit_code == 3
    kept = compare(
        [TUNED], [model("junk", 0.2, seed=1, **junk)], (), [Role.kept("safety.refusal_rate:0.1")]
    )
    assert kept.exit_code == 3


def test_a_loss_within_the_tolerance_is_not_junk() -> None:
    after = model("repaired", 0.8, seed=1, distinct_2=0.90, repetition=0.05, logprob_before=-2.5)
    ledger = compare([TUNED], [after], (), [REFUSES])
    assert ledger.verdict == "proven"


def test_a_loss_that_chance_explains_is_not_junk() -> None:
    """Ten items: 3 fewer proper endings is more than the tolerance, and not credible."""
    before, after = (model(name, 0.0, n=10, ends_properly=1.0) for name in ("a", "b"))
    for row in after.rows[:3]:
        row.scores["ends_properly"] = 0.0
    check = compare([before], [after], (), [REFUSES]).junk[0]
    assert check.difference == pytest.approx(-0.3)
    assert check.ci95[1] > 0
    assert not check.worse


def test_the_worse_baseline_counts() -> None:
    """A tuned model that says one word ends every reply; the repair speaks as aligned does."""
    tuned = model("tuned", 0.2, ends_properly=1.0)
    aligned = model("aligned", 0.9, seed=2, ends_properly=0.6)
    after = model("repaired", 0.8, seed=1, ends_properly=0.62)
    assert compare([tuned], [after], (), [REFUSES]).verdict == "not proven"
    ledger = compare([tuned], [after], [aligned], [REFUSES])
    assert ledger.verdict == "proven"
    assert {check.against for check in ledger.junk} == {"before", "reference"}
    junk = model("junk", 0.9, seed=1, ends_properly=0.1)
    assert compare([tuned], [junk], [aligned], [REFUSES]).verdict == "not proven"


def test_log_probabilities_under_other_models_are_not_compared() -> None:
    after = model("repaired", 0.8, seed=1, logprob_before=-7.0)
    from dataclasses import replace

    other = replace(after, before={"fingerprint": "other"})
    ledger = compare([TUNED], [other], (), [REFUSES])
    assert "logprob_before" not in [check.column for check in ledger.junk]
