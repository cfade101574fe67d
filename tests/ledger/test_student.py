"""Student's t and Welch's test against scipy."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from suture.ledger.student import mean_interval, t_below, t_quantile, welch


@pytest.mark.parametrize("value", [-40.0, -3.2, -0.01, 0.0, 0.7, 2.0, 12.0])
@pytest.mark.parametrize("degrees", [1, 2.3, 9, 30, 500])
def test_distribution(value: float, degrees: float) -> None:
    assert t_below(value, degrees) == pytest.approx(stats.t.cdf(value, degrees), abs=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.975, 0.9999])
@pytest.mark.parametrize("degrees", [1, 2, 4.5, 100])
def test_quantiles(share: float, degrees: float) -> None:
    assert t_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), abs=1e-7)


def test_welch_and_the_interval_of_a_mean() -> None:
    rnd = random.Random(0)
    one, two = [rnd.random() for _ in range(7)], [2 * rnd.random() for _ in range(4)]
    found, wanted = welch(one, two), stats.ttest_ind(two, one, equal_var=False)
    ends = wanted.confidence_interval()
    assert found.p_value == pytest.approx(wanted.pvalue)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    mean = stats.ttest_1samp(two, 0).confidence_interval()
    assert mean_interval(two) == pytest.approx((mean.low, mean.high))


def test_nothing_varies() -> None:
    assert welch([1, 1], [1, 1]).p_value == 1
    found = welch([1, 1], [3, 3])
    assert (found.difference, found.low, found.high, found.p_value) == (2, 2, 2, 0)
    assert mean_interval([2.0, 2.0, 2.0]) == (2, 2)
