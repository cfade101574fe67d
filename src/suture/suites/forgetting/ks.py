"""The exact two-sample Kolmogorov–Smirnov test, which forget quality is the p-value of.

The p-value is a step function of the number of rows, and in the far tail (1e-21 and below) an
asymptotic formula is wrong by a factor of two: everything here is whole numbers until the last
division. D is the largest distance of the two empirical distribution functions; under the
hypothesis that both samples come from one distribution, each way of interleaving n and m values is
equally likely, so p is the share of lattice paths from (0, 0) to (n, m) that somewhere leave the
diagonal by D or more (Hodges 1958). For n = m the reflection principle counts them in closed form.

Where all values of one sample lie beyond the other's, D = 1 and p = 2 / C(2n, n): 1.9e-119 at
n = 200, 1.1e-239 at n = 400. Such a value means "fully separated" and is no graded score.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb


def ks_gap(one: Sequence[float], other: Sequence[float]) -> Fraction:
    """D: the largest distance of the two empirical distribution functions, as an exact fraction.

    Equal values are stepped over together. Both samples must have at least one value.
    """
    if not one or not other:
        raise ValueError("a sample without values has no distribution")
    a, b = sorted(one), sorted(other)
    n, m = len(a), len(b)
    i = j = largest = 0
    while i < n and j < m:
        here = min(a[i], b[j])
        while i < n and a[i] == here:
            i += 1
        while j < m and b[j] == here:
            j += 1
        largest = max(largest, abs(i * m - j * n))
    return Fraction(largest, n * m)


def exact_two_sample_p(gap: Fraction | float, n: int, m: int) -> float:
    """P(D >= `gap`) for samples of `n` and `m` values without ties, two-sided, exact.

    `gap`: D itself, or its nearest float. Every possible D is a multiple of 1 / (n·m), so a float
    is taken for the nearest of them.
    """
    if n < 1 or m < 1:
        raise ValueError("a sample without values has no distribution")
    steps = round(gap * n * m)  # D·n·m, a whole number
    if steps <= 0:
        return 1.0
    outside = _outside_equal(n, -(-steps // n)) if n == m else _outside(n, m, steps)
    return float(Fraction(outside, comb(n + m, n)))


def _outside_equal(n: int, k: int) -> int:
    """Paths of n = m that reach the distance k: reflected once, twice, ... (alternating signs)."""
    total, sign = 0, 2
    for reach in range(k, n + 1, k):
        total += sign * comb(2 * n, n - reach)
        sign = -sign
    return total


def _outside(n: int, m: int, steps: int) -> int:
    """All paths less those that stay within |i·m - j·n| < `steps`; n·m additions."""
    inside = [0] * (m + 1)
    for i in range(n + 1):
        for j in range(m + 1):
            if abs(i * m - j * n) >= steps:
                inside[j] = 0
            elif i == j == 0:
                inside[j] = 1
            else:
                inside[j] = (inside[j] if i else 0) + (inside[j - 1] if j else 0)
    return comb(n + m, n) - inside[m]
