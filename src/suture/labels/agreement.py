"""How far annotators agree: Cohen, Fleiss and Krippendorff, from libraries, with intervals.

Two levels: `pole`, whether they name the same pole, and `symbol`, whether they write the same
symbol. Values come from scikit-learn, statsmodels and krippendorff; the 95% intervals resample
items (percentiles of 1,000 draws), from closed forms that the tests hold against the libraries.
By the ledger's rule there is none of fewer than 5 items or of what never varies; the share of
unanimous items has Wilson's.

K: how many values a vote may have: poles, or symbols. `distinct`: the distinct rows of votes.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

from suture.labels.extras import need
from suture.labels.patterns import Patterns, patterns
from suture.labels.votes import Votes
from suture.lazy import np
from suture.ledger.intervals import wilson
from suture.ledger.statistics import FEWEST
from suture.rng import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 30  # annotators whose pairs are listed; beyond, only what counts all of them at once
DRAWS = 1_000
MANY = 20_000  # patterns; with more, items are so many that an interval says nothing


def agreement(votes: Votes, dimension: str, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Of one dimension, by level (`pole`, `symbol`): values with n items and interval.

    `unanimous`: share of items on which all who voted agree, of those with two votes or more.
    `fleiss` needs the same number of votes per item, whoever cast them, and takes the items that
    have the most frequent number;
    `krippendorff` takes all with two votes or more; `krippendorff_ordinal` (symbols only) weighs
    how far apart they are, without an interval. A value of None: not defined, because all votes
    are the same or no item has them. No intervals of what is resampled where votes hardly repeat
    (MANY patterns).
    Error: E391 without the libraries.
    """
    ballot = votes.ballots[dimension]
    distinct = patterns(ballot, len(votes.items), len(votes.annotators))
    draws = _draws(distinct, seed, dimension)
    symbol = distinct.code % distinct.symbols
    pole = np.array(ballot.scale.pole_of)[symbol]
    by_pole = _level(pole, distinct, draws, votes.annotators, len(ballot.scale.poles))
    by_symbol = _level(symbol, distinct, draws, votes.annotators, distinct.symbols)
    by_symbol["krippendorff_ordinal"] = {
        **_value(
            np.array([_alpha(distinct.tally(symbol, distinct.symbols), distinct, "ordinal")]), 0
        ),
        "n": by_symbol["krippendorff"]["n"],
    }
    return {"pole": by_pole, "symbol": by_symbol}


def _draws(distinct: Patterns, seed: int, name: str) -> NDArray[np.float64]:
    """How often each pattern comes up when items are resampled: (DRAWS, patterns)."""
    if len(distinct) > MANY:
        return np.zeros((0, len(distinct)))
    items = int(distinct.count.sum())
    draw = generator(seed, f"agreement.{name}")
    return draw.multinomial(items, distinct.count / items, size=DRAWS).astype(np.float64)


def _level(
    values: NDArray[np.int64],
    distinct: Patterns,
    draws: NDArray[np.float64],
    names: list[str],
    K: int,
) -> dict[str, Any]:
    tally = distinct.tally(values, K)
    enough = tally.sum(axis=1) >= 2
    same = (tally.max(axis=1) == tally.sum(axis=1)) & enough
    n = int(distinct.count @ enough)
    share = float(distinct.count @ same) / n if n else None
    interval = None if share is None else list(wilson(share, n))
    out: dict[str, Any] = {"unanimous": {"value": share, "interval": interval, "n": n}}
    voted = np.bincount(distinct.code // distinct.symbols, minlength=len(names)) > 0
    if voted.sum() <= MOST:
        table = np.full((len(distinct), distinct.annotators), -1, dtype=np.int64)
        table[distinct.of_vote, distinct.code // distinct.symbols] = values
        out["cohen"] = _cohen(table, distinct, draws, names, K)
    given = np.bincount(tally.sum(axis=1).astype(int), distinct.count)
    given[:2] = 0
    whole = tally.sum(axis=1) == (given.argmax() if given.any() else -1)
    if whole.any():
        library = need("statsmodels.stats.inter_rater").fleiss_kappa
        point = _quietly(
            library, np.repeat(tally[whole], distinct.count[whole].astype(int), axis=0)
        )
        spread = fleiss(tally[whole], draws[:, whole])
        out["fleiss"] = _value(np.append(point, spread), distinct.count[whole].sum())
    else:
        out["fleiss"] = _value(np.array([np.nan]), 0)
    point = _alpha(tally, distinct, "nominal")
    spread = krippendorff(tally[enough], draws[:, enough])
    out["krippendorff"] = _value(np.append(point, spread), n)
    return out


def _cohen(
    table: NDArray[np.int64],
    distinct: Patterns,
    draws: NDArray[np.float64],
    names: list[str],
    K: int,
) -> list[dict[str, Any]]:
    """Every pair that has items in common, in order of the names."""
    library = need("sklearn.metrics").cohen_kappa_score
    pairs = []
    for a, b in combinations(range(len(names)), 2):
        both = (table[:, a] >= 0) & (table[:, b] >= 0)
        if not both.any():
            continue
        first, second = table[both, a], table[both, b]
        count = distinct.count[both]
        point = _quietly(library, first, second, labels=list(range(K)), sample_weight=count)
        spread = cohen(first, second, draws[:, both], K)
        value = _value(np.append(point, spread), count.sum())
        pairs.append({"annotators": [names[a], names[b]], **value})
    return pairs


def cohen(
    first: NDArray[np.int64], second: NDArray[np.int64], weights: NDArray[np.float64], K: int
) -> NDArray[np.float64]:
    """Cohen's kappa per row of `weights` (draws, items): (p_o - p_e) / (1 - p_e)."""
    total = weights.sum(axis=1)
    total[total == 0] = np.nan  # a draw without any of the items
    observed = weights @ (first == second) / total
    one, other = (weights @ np.eye(K)[votes] for votes in (first, second))
    expected = (one * other).sum(axis=1) / total**2
    return _ratio(observed - expected, 1 - expected)


def fleiss(tally: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fleiss' kappa per row of `weights`; `tally` (items, values), equally many votes each."""
    votes = tally[0].sum()
    per_item = ((tally**2).sum(axis=1) - votes) / (votes * (votes - 1))
    total = weights.sum(axis=1)
    total[total == 0] = np.nan
    observed = weights @ per_item / total
    expected = ((weights @ tally / (total * votes)[:, None]) ** 2).sum(axis=1)
    return _ratio(observed - expected, 1 - expected)


def krippendorff(tally: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Krippendorff's alpha for names per row of `weights`; `tally` (items, values), two votes or
    more each: 1 - observed over expected disagreement."""
    votes = tally.sum(axis=1)
    differ = weights @ ((votes**2 - (tally**2).sum(axis=1)) / (votes - 1))
    of_value = weights @ tally
    total = of_value.sum(axis=1)
    return _ratio(total**2 - (of_value**2).sum(axis=1) - (total - 1) * differ,
                  total**2 - (of_value**2).sum(axis=1))  # fmt: skip


def _alpha(tally: NDArray[np.float64], distinct: Patterns, level: str) -> float:
    counts = np.repeat(tally, distinct.count.astype(int), axis=0)
    library = need("krippendorff").alpha
    return _quietly(library, value_counts=counts, level_of_measurement=level)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _quietly(library: Any, *args: Any, **options: Any) -> float:
    """A library's value; NaN where it is not defined, which each says in its own way."""
    import warnings

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return float(library(*args, **options))
        except ValueError:
            return float("nan")


def _value(values: NDArray[np.float64], n: float) -> dict[str, Any]:
    """The value (first) and the percentiles of the draws (the rest, where there are any)."""
    point, rest = float(values[0]), values[1:]
    rest = rest[np.isfinite(rest)]
    interval = None
    if point == point and n >= FEWEST and len(rest) >= DRAWS / 2:
        low, high = np.quantile(rest, [0.025, 0.975]).tolist()
        interval = [low, high] if low < high else None  # nothing varies: that says nothing
    return {"value": point if point == point else None, "interval": interval, "n": int(n)}
