"""Student's t distribution and Welch's test, for means over few seeds or rounds.

Welch (1947), "The generalization of Student's problem when several different population variances
are involved", Biometrika 34. The incomplete beta function by its continued fraction (Lentz).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

_TINY = 1e-300


def t_below(value: float, degrees: float) -> float:
    """P(T < value) for `degrees` > 0 degrees of freedom, which need not be whole."""
    if math.isinf(value):
        return float(value > 0)
    tail = 0.5 * _beta(degrees / (degrees + value * value), degrees / 2, 0.5)
    return 1 - tail if value > 0 else tail


def t_quantile(share: float, degrees: float) -> float:
    """The value that a `share` of T lies below, by bisection to the last bit."""
    if share < 0.5:
        return -t_quantile(1 - share, degrees)
    low, high = 0.0, 1.0
    while t_below(high, degrees) < share:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_below(middle, degrees) < share else (low, middle)
    return high


@dataclass(frozen=True)
class Welch:
    """mean(other) - mean(base): its interval and the two-sided p of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def welch(base: Sequence[float], other: Sequence[float], *, level: float = 0.95) -> Welch:
    """Welch's test of two independent samples of at least two values each.

    Where neither varies, the difference is taken as it is: p is 1 for none and 0 for any.
    """
    parts = [variance(side) / len(side) for side in (base, other)]
    difference = fmean(other) - fmean(base)
    error = math.sqrt(sum(parts))
    if error == 0:
        return Welch(difference, difference, difference, float(difference == 0))
    sides = zip(parts, (base, other), strict=True)
    degrees = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in sides)
    reach = t_quantile(0.5 + level / 2, degrees) * error
    p_value = 2 * t_below(-abs(difference) / error, degrees)
    return Welch(difference, difference - reach, difference + reach, p_value)


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of at least two values."""
    reach = t_quantile(0.5 + level / 2, len(values) - 1) * math.sqrt(variance(values) / len(values))
    middle = fmean(values)
    return middle - reach, middle + reach


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges on the other side
        return 1 - _beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / _kept(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / _kept(1 + step * d)
            c = _kept(1 + step / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return math.exp(log_front) * fraction / a


def _kept(value: float) -> float:
    """Off zero, as Lentz's method wants it."""
    return value if abs(value) > _TINY else _TINY
