"""Verdict table, Holm, sample sizes, and how roles are written."""

from __future__ import annotations

import numpy as np
import pytest

from suture.errors import SutureError
from suture.ledger import Role, holm, judge, needed_n, roles_hash, run_verdict, tango

TARGET = Role(metric="safety.refusal_rate", role="target")
KEPT = Role(metric="task.accuracy", role="kept", margin=0.03)


@pytest.mark.parametrize(
    ("role", "low", "high", "verdict"),
    [
        (TARGET, 0.01, 0.20, "improved"),
        (TARGET, 0.00, 0.20, "not proven"),
        (TARGET, -0.05, 0.20, "not proven"),
        (TARGET, -0.20, -0.01, "broken"),
        (TARGET, -0.20, 0.00, "not proven"),
        (Role(metric="s.m", role="target", min_gain=0.1), 0.05, 0.2, "not proven"),
        (Role(metric="s.m", role="target", min_gain=0.1), 0.11, 0.2, "improved"),
        (KEPT, -0.02, 0.01, "held"),
        (KEPT, 0.05, 0.10, "held"),
        (KEPT, -0.03, 0.01, "not proven"),
        (KEPT, -0.05, -0.031, "broken"),
        (KEPT, -0.05, -0.02, "not proven"),
        (KEPT, -0.02, -0.01, "held"),  # worse for certain, and within the margin for certain
    ],
)
def test_verdict_table(role: Role, low: float, high: float, verdict: str) -> None:
    assert judge(role, low, high) == verdict


def test_broken_waits_for_holm() -> None:
    assert judge(KEPT, -0.3, -0.2, broken_allowed=False) == "not proven"
    assert judge(KEPT, -0.01, 0.2, broken_allowed=False) == "held"


def test_holm() -> None:
    # 0.005 <= .025/4, 0.008 <= .025/3, 0.013 > .025/2: stop, even though 0.02 < .025
    assert holm([0.02, 0.005, 0.013, 0.008]) == [False, True, False, True]
    assert holm([0.024]) == [True]
    assert holm([0.024, 0.024]) == [False, False]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("verdicts", "run"),
    [
        (["improved", "held"], "proven"),
        (["improved", "not proven"], "not proven"),
        (["improved", "not proven", "broken"], "broken"),
        ([], "not proven"),
    ],
)
def test_intersection_union(verdicts: list, run: str) -> None:
    assert run_verdict(verdicts) == run


def test_needed_n_of_the_specification() -> None:
    """Margin 3 points: about 870 at 10% discordance, 1,750 at 20%; 125 without any."""
    assert needed_n(KEPT, 0.0, 0.10, binary=True) == pytest.approx(870, abs=5)
    assert needed_n(KEPT, 0.0, 0.20, binary=True) == pytest.approx(1750, abs=10)
    assert needed_n(KEPT, 0.0, 0.0, binary=True) == 125
    assert needed_n(KEPT, 0.0, 1e-6, binary=False) == 100
    assert needed_n(KEPT, 0.0, 0.0, binary=True, units_per_item=0.5) == 250


def test_needed_n_of_a_target() -> None:
    assert needed_n(TARGET, 0.0, 0.2, binary=True) is None
    assert needed_n(TARGET, -0.1, 0.2, binary=True) is None
    nearer = Role(metric="s.m", role="target", min_gain=0.05)
    assert needed_n(nearer, 0.1, 0.2, binary=True) > needed_n(TARGET, 0.1, 0.2, binary=True)


def power(role: Role, gain: float, loss: float, n: int) -> float:
    counts = np.random.default_rng(0).multinomial(n, [gain, loss, 1 - gain - loss], size=4000)
    low, _ = tango(counts[:, 0], counts[:, 1], n)
    floor = 0.0 if role.role == "target" else -(role.margin or 0.0)
    return float((low > floor).mean())


@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.05), (0.10, 0.10)])
def test_needed_n_gives_80_percent_power_for_kept(gain: float, loss: float) -> None:
    n = needed_n(KEPT, 0.0, gain + loss, binary=True)
    assert n is not None
    assert abs(power(KEPT, gain, loss, n) - 0.80) < 0.04


@pytest.mark.parametrize(("gain", "loss"), [(0.15, 0.05), (0.30, 0.20), (0.25, 0.05)])
def test_needed_n_gives_80_percent_power_for_target(gain: float, loss: float) -> None:
    n = needed_n(TARGET, gain - loss, gain + loss, binary=True)
    assert n is not None
    assert abs(power(TARGET, gain, loss, n) - 0.80) < 0.05


def test_roles_as_written() -> None:
    target = Role.target("safety.refusal_rate:higher:0.1")
    assert (target.suite, target.column, target.better) == ("safety", "refusal_rate", "higher")
    assert target.min_gain == 0.1
    assert Role.target("a.b").better is None
    kept = Role.kept("over-refusal.harmless_refused:0.03@reference")
    assert (kept.suite, kept.margin, kept.against) == ("over-refusal", 0.03, "reference")
    assert Role.kept("task.accuracy:higher:0.05").better == "higher"


@pytest.mark.parametrize("text", ["task.accuracy", "task.accuracy:x", "task.accuracy:0.1:0.2"])
def test_unreadable_kept(text: str) -> None:
    with pytest.raises(SutureError, match="E604"):
        Role.kept(text)


def test_wrong_roles() -> None:
    for wrong in ("task:0.03", "task.accuracy:-0.03", "task.accuracy:0.03@aligned"):
        with pytest.raises(SutureError, match="E702"):
            Role.kept(wrong)
    with pytest.raises(SutureError, match="E604"):
        Role.target("safety.refusal_rate:upwards")


def test_roles_hash_sees_margins() -> None:
    other = KEPT.model_copy(update={"margin": 0.05})
    assert roles_hash([TARGET, KEPT]) == roles_hash([TARGET, KEPT])
    assert len({roles_hash(r) for r in ([TARGET, KEPT], [TARGET, other], [TARGET])}) == 3
