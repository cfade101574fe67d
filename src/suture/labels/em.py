"""The estimator: what each item's pole is, and how each annotator votes, from the votes alone.

Latent are the poles, observed the graded symbols; T_k[p][c] is how often annotator k writes
symbol c where pole p is true. Dawid and Skene (1979) with one symbol per pole; MBTIBench (Li et
al., COLING 2025) with two poles of two grades. Two procedures share the steps:

`released`: MBTIBench's, to the digit. It starts from the median vote, with counts that are not
normalised; the prior is the share of items beyond .5; nothing is smoothed; it stops when no
posterior moves by .1 or more, tested before the M step. It is an early stop: with 1e-6 the same
iteration moves posteriors by up to .51.

`converged`: starts from the share of votes, adds one vote to every cell, takes the mean posterior
as prior, and runs until nothing moves by 1e-6 (inferred: the paper has no such version; one vote
was chosen among .01 to 5 for its Brier score on made-up crowds).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.labels.patterns import Patterns
from suture.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from suture.labels.scale import Scale

_TILE = 2**17  # votes worked on at once: their terms stay in the cache


class EM(FrozenConfig):
    """The knobs of the iteration. `EM.of("released")` and `EM.of("converged")` set them all."""

    start: Literal["median", "share"] = Field(
        "share", description="first labels: the median vote's pole, or each pole's share of votes"
    )
    prior: Literal["soft", "hard"] = Field(
        "soft", description="of the poles: the mean posterior, or the share of items beyond .5"
    )
    smoothing: Annotated[float, Field(ge=0)] = Field(
        1.0, description="votes added to every cell of T; 0 lets a posterior become 0 or 1"
    )
    tolerance: Annotated[float, Field(ge=0)] = Field(
        1e-6, description="stop when no posterior moves by this much"
    )
    max_rounds: Annotated[int, Field(ge=1)] = Field(10_000, description="rounds at most")
    last_e_step: bool = Field(
        False, description="posteriors once more with the last prior, as `released` ends"
    )

    @classmethod
    def of(cls, mode: Literal["released", "converged"]) -> EM:
        """The knobs of a mode."""
        if mode == "released":
            return cls(start="median", prior="hard", smoothing=0.0, tolerance=0.1, last_e_step=True)
        return cls()


@dataclass(frozen=True)
class Fit:
    """What EM found for one dimension; K poles, A annotators, S symbols.

    `posterior` (patterns, K); `prior` (K,); `table` (A, S, K): T, each annotator's symbols summing
    to one per pole; `votes` (A,): how many each cast; `rounds`: posteriors computed until the stop;
    `m_steps`; `moved`: the largest change of the last round; `log_likelihood`: of the votes.
    """

    patterns: Patterns
    posterior: NDArray[np.float64]
    prior: NDArray[np.float64]
    table: NDArray[np.float64]
    votes: NDArray[np.float64]
    rounds: int
    m_steps: int
    moved: float
    converged: bool
    log_likelihood: float


def fit(patterns: Patterns, scale: Scale, em: EM) -> Fit:
    """Run EM on the patterns of one dimension.

    Patterns that no item has (count 0, as in a resampling) decide nothing; their posterior is what
    the tables give, NaN where that is no pole.

    Error: E389 where a pattern has no probability under any pole.
    """
    held = patterns.count > 0
    if em.start == "median":
        last, table, prior = _median_start(patterns, scale)
    else:
        last = vote_shares(patterns, scale)
        prior, table = (
            _prior(last, patterns, em),
            _m_step(patterns, _counts(patterns, last), em.smoothing),
        )
    rounds = m_steps = 0
    moved = np.inf
    while True:
        posterior, counts, log_likelihood = _round(patterns, table, prior)
        _check(posterior[held], scale)
        rounds += 1
        prior = _prior(posterior, patterns, em)
        moved = float(np.abs(posterior - last)[held].max())
        if moved < em.tolerance or rounds >= em.max_rounds:
            break
        last = posterior
        table = _m_step(patterns, counts, em.smoothing)
        m_steps += 1
    if em.last_e_step:
        posterior, _, log_likelihood = _round(patterns, table, prior)
        _check(posterior[held], scale)
    totals = table.sum(axis=1, keepdims=True)
    table = np.divide(table, totals, out=np.zeros_like(table), where=totals > 0)
    if not m_steps:  # the first table may be raw counts, which give no likelihood
        log_likelihood = _round(patterns, table, prior)[2]
    who = patterns.code // patterns.symbols
    votes = np.bincount(who, _by_vote(patterns), minlength=patterns.annotators).astype(np.float64)
    return Fit(
        patterns=patterns,
        posterior=posterior,
        prior=prior,
        table=table,
        votes=votes,
        rounds=rounds,
        m_steps=m_steps,
        moved=moved,
        converged=moved < em.tolerance,
        log_likelihood=log_likelihood,
    )


def _median_start(
    patterns: Patterns, scale: Scale
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """First labels, T and prior from each item's median vote z.

    C_k[z][c] = 1 + count(z_i = z and a_ik = c), and T of a pole is the mean of C over its symbols,
    weighted by how often they are the median: raw counts. Between two middle votes (an even number
    of them) an item counts half for each (inferred).
    """
    S, A = patterns.symbols, patterns.annotators
    middle = _medians(patterns)  # (patterns, S)
    per = _by_vote(patterns, middle)  # (votes, S): what each vote adds to C[z]
    C = np.ones((A * S, S))
    for z in range(S):
        C[:, z] += np.bincount(patterns.code, per[:, z], minlength=A * S)
    p = C.sum(axis=0) / C.sum()
    pole = np.eye(len(scale.poles))[scale.pole_of]  # (S, K)
    prior = p @ pole
    table = (C * p) @ pole / prior
    return middle @ pole, table.reshape(A, S, -1), prior


def _medians(patterns: Patterns) -> NDArray[np.float64]:
    """Each pattern's median symbol as weights (patterns, S): 1, or a half on each of two."""
    pattern = patterns.of_vote
    symbol = patterns.code % patterns.symbols
    ordered = symbol[np.lexsort((symbol, pattern))]
    first, votes = patterns.starts[:-1], np.diff(patterns.starts)
    out = np.zeros((len(patterns), patterns.symbols))
    every = np.arange(len(patterns))
    out[every, ordered[first + (votes - 1) // 2]] += 0.5
    out[every, ordered[first + votes // 2]] += 0.5
    return out


def vote_shares(patterns: Patterns, scale: Scale) -> NDArray[np.float64]:
    """Each pole's share of a pattern's votes (patterns, K)."""
    tally = patterns.by_pole(scale)
    part: NDArray[np.float64] = tally / tally.sum(axis=1, keepdims=True)
    return part


def _round(
    patterns: Patterns, table: NDArray[np.float64], prior: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """E step: posteriors (patterns, K) from log prior + sum of log T; and, in the same pass over
    the votes, the counts (A·S, K) that the M step needs."""
    K = len(prior)
    with np.errstate(divide="ignore"):
        log_table = np.ascontiguousarray(np.log(table).reshape(-1, K).T)
        log_prior = np.log(prior)
    posterior = np.empty((len(patterns), K))
    counts = np.zeros((patterns.annotators * patterns.symbols, K))
    log_likelihood = 0.0
    for a, b in _tiles(patterns.starts):
        votes = slice(int(patterns.starts[a]), int(patterns.starts[b]))
        code, starts = patterns.code[votes], patterns.starts[a:b] - patterns.starts[a]
        count, held = patterns.count[a:b], patterns.count[a:b] > 0
        logs = np.empty((K, b - a))
        for pole in range(K):
            logs[pole] = np.add.reduceat(log_table[pole][code], starts)
        logs += log_prior[:, None]
        top = logs.max(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.exp(logs - top)
            total = shares.sum(axis=0)
            shares /= total
            log_likelihood += float((count * (top + np.log(total)))[held].sum())
        posterior[a:b] = shares.T
        lengths = np.diff(patterns.starts[a : b + 1])
        for pole in range(K):
            weight = np.repeat(np.where(held, shares[pole] * count, 0.0), lengths)
            counts[:, pole] += np.bincount(code, weight, minlength=len(counts))
    return posterior, counts, log_likelihood


def _tiles(starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of patterns with about _TILE votes each."""
    cuts = np.searchsorted(starts, np.arange(0, starts[-1], _TILE))
    ends = np.unique(np.append(cuts, len(starts) - 1))
    return list(pairwise(ends.tolist()))


def _counts(patterns: Patterns, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Votes by (annotator, symbol) and pole, each item weighing its share of the pole."""
    per, size = _by_vote(patterns, shares), patterns.annotators * patterns.symbols
    columns = [
        np.bincount(patterns.code, per[:, k], minlength=size) for k in range(shares.shape[1])
    ]
    return np.stack(columns, axis=1)


def _by_vote(patterns: Patterns, values: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Values of the patterns times their number of items, repeated for every vote."""
    weighed = patterns.count if values is None else values * patterns.count[:, None]
    repeated: NDArray[np.float64] = np.repeat(weighed, np.diff(patterns.starts), axis=0)
    return repeated


def _m_step(
    patterns: Patterns, counts: NDArray[np.float64], smoothing: float
) -> NDArray[np.float64]:
    """T (A, S, K): of each annotator's votes where the pole is true, the share of each symbol."""
    cells = counts.reshape(patterns.annotators, patterns.symbols, -1) + smoothing
    totals = cells.sum(axis=1, keepdims=True)
    table: NDArray[np.float64] = np.divide(
        cells, totals, out=np.zeros_like(cells), where=totals > 0
    )
    return table


def _prior(posterior: NDArray[np.float64], patterns: Patterns, em: EM) -> NDArray[np.float64]:
    items = patterns.count.sum()
    if em.prior == "soft":
        held = np.where(patterns.count[:, None] > 0, posterior, 0.0)
        prior: NDArray[np.float64] = patterns.count @ held / items
        return prior
    if posterior.shape[1] == 2:  # exactly .5 counts for the second pole
        first = float(patterns.count[posterior[:, 0] > 0.5].sum() / items)
        return np.array([first, 1 - first])
    best = posterior.argmax(axis=1)
    shares: NDArray[np.float64] = np.bincount(best, patterns.count, posterior.shape[1]) / items
    return shares


def _check(posterior: NDArray[np.float64], scale: Scale) -> None:
    if not np.isfinite(posterior).all():
        raise SutureError(
            "E389",
            f"the votes on '{scale.name}' leave an item without any possible pole",
            why="without smoothing, an annotator's symbol that was never seen with a pole rules it "
            "out; several such votes can rule out all of them",
            fix="use --mode converged, which smooths",
        )
