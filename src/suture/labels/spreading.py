"""Frequency spreading: posteriors of two poles to population-like soft labels (MBTIBench).

Posteriors of an EM crowd at 0 and 1. Here the *rank* of a pattern on its side of .5 decides, items
counted: the least certain pattern lies next to .5 and the outermost exactly at 0 or 1.

    right = patterns with r >= .5, ascending;  left = r < .5, from nearest .5 outward
    m = items before on that side + half the pattern's own;  M = the largest m on that side
    q = .5 + m / 2M on the right, .5 - m / 2M on the left;  soft label = 1 - q

with r the posterior of the first pole. Soft labels are therefore ranks, not probabilities, and
whatever is added to the data moves all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from suture.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from suture.labels.patterns import Patterns


def spread(first: NDArray[np.float64], found: Patterns, symbols: list[str]) -> NDArray[np.float64]:
    """Soft labels of the patterns, 0 = all of the first pole. `first`: its posterior.

    Equal posteriors are ordered by their votes as texts, annotator by annotator (inferred: in the
    original, hashing decides). NaN, a pattern without any possible pole, stays NaN.
    """
    names = found.strings(symbols)
    soft = np.full(len(found), np.nan)
    for side, sign in ((first >= 0.5, 1), (first < 0.5, -1)):
        places = np.flatnonzero(side)
        if not len(places):
            continue
        distance = sign * first[places]
        order = sorted(range(len(places)), key=lambda i: (distance[i], names[places[i]]))
        places = places[order]
        count = found.count[places]
        middle = np.cumsum(count) - count / 2
        largest = middle.max() or 1.0  # a side without any item: next to .5
        soft[places] = 1 - (0.5 + sign * middle / (2 * largest))
    return soft
