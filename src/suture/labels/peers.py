"""Other estimators on the same votes: majority vote, Dawid-Skene, GLAD and MACE from crowd-kit.

They see poles, not grades, and give each pole's probability. Where the truth is known for some
items, every estimator is also held against it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.labels.em import vote_shares
from suture.labels.estimate import decided, estimate
from suture.labels.extras import need
from suture.labels.patterns import patterns
from suture.labels.votes import Votes
from suture.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PEERS = {"majority": "MajorityVote", "dawid-skene": "DawidSkene", "glad": "GLAD", "mace": "MACE"}
OURS = ("released", "converged")


def compare_estimators(
    votes: Votes,
    dimension: str,
    methods: Sequence[str] = (*OURS, *PEERS),
    *,
    truth: Sequence[Mapping[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """One row per estimator, on one dimension.

    Where poles are exactly as probable no label is made, and wherever labels are counted each of
    these poles counts as a part of an item: a half of two, as a lot would on average.

    `hard_as_majority`: share of items with a majority whose label is the majority's (None: no item
    has one); `ties`: items without a label;
    `hard_as_first` and `moved`: share of items with the hard label of the first estimator, and the
    mean change of posteriors from it; `log_likelihood` where the estimator has one of the votes;
    `accuracy` and `brier` (mean squared error of the probabilities, 0 to 2) on items whose `truth`
    is known; `seconds`. `released` is left out where a dimension has more than two poles.

    Errors: E391 without crowd-kit, E394 an estimator that is none.
    """
    unknown = [name for name in methods if name not in (*OURS, *PEERS)]
    if unknown:
        raise SutureError(
            "E394",
            f"there is no estimator '{unknown[0]}'",
            fix=f"use some of: {', '.join((*OURS, *PEERS))}",
        )
    ballot = votes.ballots[dimension]
    poles = ballot.scale.names
    rows: list[dict[str, Any]] = []
    majority = _shares(votes, dimension)
    top = majority.max(axis=1, keepdims=True)
    clear: NDArray[np.bool_] = np.sum(majority == top, axis=1) == 1
    majority_picks = _picks(majority, decided(majority))
    first: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    for name in methods:
        if name == "released" and len(poles) > 2:
            continue
        if name in PEERS:
            need("crowdkit.aggregation")
        began = time.perf_counter()
        posterior, hard, log_likelihood = _estimate(votes, dimension, name)
        seconds = time.perf_counter() - began
        picks = _picks(posterior, hard)
        first = (posterior, picks) if first is None else first
        voted: NDArray[np.bool_] = np.isfinite(posterior.sum(axis=1))
        row: dict[str, Any] = {
            "estimator": name,
            "items": int(voted.sum()),
            "ties": int((hard < 0)[voted].sum()),
            "hard_as_majority": _share(_same(picks, majority_picks), voted & clear),
            "hard_as_first": _share(_same(picks, first[1]), voted),
            "moved": float(np.abs(posterior - first[0]).max(axis=1)[voted].mean()),
            "log_likelihood": log_likelihood,
            "seconds": seconds,
        }
        if truth is not None:
            known = [own.get(dimension) for own in truth]
            row |= _held_against(posterior, picks, known, poles)
        rows.append(row)
    return rows


def _estimate(
    votes: Votes, dimension: str, name: str
) -> tuple[NDArray[np.float64], NDArray[np.int64], float | None]:
    """Posterior (items, poles), hard label (-1: a tie) and log-likelihood of one estimator."""
    if name in PEERS:
        posterior = _peer(votes, dimension, name)
        return posterior, decided(posterior), None
    mode: Any = name
    labels = estimate(votes, mode=mode, dimensions=[dimension])[dimension]
    return labels.posterior, labels.hard, labels.fit.log_likelihood


def _picks(posterior: NDArray[np.float64], hard: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much of each pole a hard label is (items, poles): all of one, or equal parts of those
    that tie."""
    poles = posterior.shape[1]
    tied = (posterior == posterior.max(axis=1, keepdims=True)).astype(np.float64)
    parts = tied / np.maximum(tied.sum(axis=1, keepdims=True), 1)
    return np.where((hard >= 0)[:, None], np.eye(poles)[hard], parts)


def _same(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of two labels is the same, by item."""
    both: NDArray[np.float64] = np.minimum(one, other).sum(axis=1)
    return both


def _share(same: NDArray[np.float64], among: NDArray[np.bool_]) -> float | None:
    """The share that is the same; None where there is nothing to share."""
    return float(same[among].mean()) if among.any() else None


def _shares(votes: Votes, dimension: str) -> NDArray[np.float64]:
    """Each pole's share of an item's votes (items, poles); NaN without votes."""
    ballot = votes.ballots[dimension]
    distinct = patterns(ballot, len(votes.items), len(votes.annotators))
    return distinct.spread(vote_shares(distinct, ballot.scale))


def _peer(votes: Votes, dimension: str, name: str) -> NDArray[np.float64]:
    """crowd-kit's probabilities as (items, poles); NaN for items without votes."""
    kit, pandas = need("crowdkit.aggregation"), need("pandas")  # loaded already, not timed
    ballot = votes.ballots[dimension]
    pole = np.array(ballot.scale.pole_of)[ballot.symbol]
    frame = pandas.DataFrame({"task": ballot.item, "worker": ballot.annotator, "label": pole})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        chances = getattr(kit, PEERS[name])().fit_predict_proba(frame)
    out = np.full((len(votes.items), len(ballot.scale.poles)), np.nan)
    rows = chances.index.to_numpy()
    out[rows] = 0.0
    for label in chances.columns:
        out[rows, int(label)] = chances[label].to_numpy()
    return out


def _held_against(
    posterior: NDArray[np.float64],
    picks: NDArray[np.float64],
    truth: Sequence[str | None],
    poles: list[str],
) -> dict[str, Any]:
    voted: NDArray[np.bool_] = np.isfinite(posterior.sum(axis=1))
    known = [place for place, pole in enumerate(truth) if pole is not None and voted[place]]
    if not known:
        return {"known": 0, "accuracy": None, "brier": None}
    right = np.array([poles.index(str(truth[place])) for place in known])
    wanted = np.eye(len(poles))[right]
    return {
        "known": len(known),
        "accuracy": float(_same(picks[known], wanted).mean()),
        "brier": float(((posterior[known] - wanted) ** 2).sum(axis=1).mean()),
    }
