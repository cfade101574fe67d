"""Items with the same votes have the same label, so estimates run on the distinct patterns.

A million items of five annotators and four symbols hold at most 3,125 of them. Where annotators
are too many for patterns to repeat, every item is a pattern of its own; nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from suture.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from suture.labels.scale import Scale
    from suture.labels.votes import Ballot

_TABLE = 2**22  # patterns that are counted in a table rather than sorted
_DENSE = 4  # cells of the dense table that one vote may cost


@dataclass(frozen=True)
class Patterns:
    """The distinct rows of votes of one dimension, each with the number of items that have it.

    Votes lie one behind another: pattern p has those from `starts[p]` to `starts[p + 1]`, each as
    `code` = annotator · symbols + symbol. `of_item`: the pattern of each item, -1 without votes.
    """

    code: NDArray[np.int64]
    starts: NDArray[np.int64]
    count: NDArray[np.float64]
    of_item: NDArray[np.int64]
    annotators: int
    symbols: int

    def __len__(self) -> int:
        return len(self.count)

    @property
    def of_vote(self) -> NDArray[np.int64]:
        """The pattern of each vote."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def tally(self, values: NDArray[np.int64], K: int) -> NDArray[np.float64]:
        """How many votes of each pattern have each of K `values` (one per vote): (patterns, K)."""
        cells = np.bincount(self.of_vote * K + values, minlength=len(self) * K)
        return cells.reshape(-1, K).astype(np.float64)

    def by_pole(self, scale: Scale) -> NDArray[np.float64]:
        """How many votes of each pattern are for each pole: (patterns, K)."""
        pole = np.array(scale.pole_of)[self.code % self.symbols]
        return self.tally(pole, len(scale.poles))

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of the patterns, laid out by item; NaN for items without votes."""
        padded = np.concatenate([values, np.full((1, *values.shape[1:]), np.nan)])
        return padded[self.of_item]

    def strings(self, symbols: list[str]) -> list[tuple[tuple[int, str], ...]]:
        """Each pattern as (annotator, symbol) pairs, whose order puts ties in place."""
        found = []
        for a, b in zip(self.starts[:-1], self.starts[1:], strict=True):
            votes = self.code[a:b]
            pairs = zip(votes // self.symbols, votes % self.symbols, strict=True)
            found.append(tuple((int(k), symbols[int(c)]) for k, c in pairs))
        return found


def patterns(ballot: Ballot, items: int, annotators: int) -> Patterns:
    """The distinct patterns of a ballot; `items` and `annotators`: how many there are."""
    symbols = len(ballot.scale.symbols)
    voted = np.zeros(items, dtype=bool)
    voted[ballot.item] = True
    present = np.flatnonzero(voted)
    of_item = np.full(items, -1, dtype=np.int64)
    word = (symbols + 1) ** annotators  # a digit per annotator, 0 for no vote
    if word >= 2**62 or len(present) * annotators > _DENSE * len(ballot):
        of_item[present] = np.arange(len(present))
        starts = np.append(np.flatnonzero(np.diff(ballot.item, prepend=-1)), len(ballot))
        code = ballot.annotator * symbols + ballot.symbol
        return Patterns(code, starts, np.ones(len(present)), of_item, annotators, symbols)
    weight = (symbols + 1) ** np.arange(annotators - 1, -1, -1, dtype=np.int64)
    key = _sums(ballot, weight, items)[present]
    if word <= _TABLE:
        table = np.bincount(key, minlength=word)
        distinct = np.flatnonzero(table)
        count = table[distinct].astype(np.float64)
        place = np.empty(word, dtype=np.int64)
        place[distinct] = np.arange(len(distinct))
        of_item[present] = place[key]
    else:
        distinct, inverse, counted = np.unique(key, return_inverse=True, return_counts=True)
        count = counted.astype(np.float64)
        of_item[present] = inverse
    digits = distinct[:, None] // weight % (symbols + 1) - 1
    at, who = np.nonzero(digits >= 0)
    code = who * symbols + digits[at, who]
    starts = np.append(np.flatnonzero(np.diff(at, prepend=-1)), len(at))
    return Patterns(code, starts, count, of_item, annotators, symbols)


def _sums(ballot: Ballot, weight: NDArray[np.int64], items: int) -> NDArray[np.int64]:
    """Every item's votes as digits of one number, exact in whole numbers."""
    value = weight[ballot.annotator] * (ballot.symbol + 1)
    ends = np.flatnonzero(np.diff(ballot.item, append=items))
    running = np.cumsum(value)  # may wrap around; differences are right all the same
    total = np.diff(running[ends], prepend=0)
    key = np.zeros(items, dtype=np.int64)
    key[ballot.item[ends]] = total
    return key
