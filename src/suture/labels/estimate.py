"""Votes to labels: soft, hard and posterior per item, with what the estimate rests on.

`released` is MBTIBench's procedure and needs two poles. `converged` takes any number of poles; with
two its soft labels are spread by frequency as well, with more they are the posteriors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from suture.errors import SutureError
from suture.labels.em import EM, Fit, fit
from suture.labels.patterns import patterns
from suture.labels.spreading import spread
from suture.labels.votes import Ballot, Votes, check_dimensions
from suture.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from suture.labels.stability import Stability

Mode = Literal["released", "converged"]
Soft = Literal["spread", "posterior"]
SAME = 1e-12  # stored soft labels this near are the same


@dataclass(frozen=True)
class Labels:
    """The labels of one dimension; n items, K poles, NaN and -1 for items nobody voted on.

    `soft` (n,): 0 = all of the first pole, 1 = all of the second; with more poles (n, K), each
    pole's share. `hard` (n,): place of the pole, -1 also for an exact tie. `posterior` (n, K).
    `tied`: items whose votes have no majority, and that the posterior decided; `overturned`: items
    whose posterior is on another side than their majority; `unvoted`: items whose hard label none
    of their votes is for.
    """

    ballot: Ballot
    fit: Fit
    soft: NDArray[np.float64]
    hard: NDArray[np.int64]
    posterior: NDArray[np.float64]
    tied: int
    overturned: int
    unvoted: int

    @property
    def names(self) -> list[str | None]:
        """The hard labels as poles; None: nobody voted, or an exact tie."""
        poles = [*self.ballot.scale.names, None]
        return [poles[place] for place in self.hard.tolist()]

    @property
    def missing(self) -> int:
        """Items without a vote on this dimension."""
        return int((self.fit.patterns.of_item < 0).sum())

    @property
    def collapsed_to(self) -> str | None:
        """The only pole that is left where the prior leaves the others less than half an item in
        all, though votes of some item say otherwise: they are too few or too contrary.
        """
        others = (1 - self.fit.prior.max()) * self.fit.patterns.count.sum()
        otherwise = self.tied + self.overturned > 0
        names = self.ballot.scale.names
        return names[int(self.fit.prior.argmax())] if otherwise and others < 0.5 else None

    def facts(self) -> dict[str, Any]:
        """What the estimate rests on, for reports."""
        found = self.fit
        return {
            "items": len(self.soft),
            "votes": len(self.ballot),
            "items_without_votes": self.missing,
            "patterns": len(found.patterns),
            "rounds": found.rounds,
            "m_steps": found.m_steps,
            "converged": found.converged,
            "moved": found.moved,
            "log_likelihood": found.log_likelihood,
            "prior": dict(zip(self.ballot.scale.names, map(float, found.prior), strict=True)),
            "no_majority": self.tied,
            "majority_overturned": self.overturned,
            "hard_without_vote": self.unvoted,
            "collapsed_to": self.collapsed_to,
            "without_hard_label": int((self.hard < 0).sum()) - self.missing,
        }


def estimate(
    votes: Votes,
    *,
    mode: Mode = "released",
    em: EM | None = None,
    soft: Soft | None = None,
    dimensions: Sequence[str] = (),
) -> dict[str, Labels]:
    """Labels by dimension, each estimated by itself.

    `em`: other knobs than those of the mode. `soft`: spread by frequency (two poles only) or the
    posterior as it is; default: spread where there are two poles.

    Errors: E388 an unknown dimension, E389 no possible pole, E390 spread or `released` with more
    than two poles.
    """
    return {
        name: _labels(votes, votes.ballots[name], mode, em or EM.of(mode), soft)
        for name in check_dimensions(dimensions, votes.ballots)
    }


def _labels(votes: Votes, ballot: Ballot, mode: Mode, em: EM, soft: Soft | None) -> Labels:
    scale, K = ballot.scale, len(ballot.scale.poles)
    if K > 2 and (mode == "released" or soft == "spread"):
        what = "the released procedure" if mode == "released" else "frequency spreading"
        raise SutureError(
            "E390",
            f"'{scale.name}' has {K} poles, {what} needs two",
            why="it lays patterns out between one end and the other",
            fix="--mode converged gives each pole's share"
            if mode == "released"
            else "--soft posterior gives each pole's share",
        )
    distinct = patterns(ballot, len(votes.items), len(votes.annotators))
    result = fit(distinct, scale, em)
    tally = distinct.by_pole(scale)
    majority = _majority(tally)
    certain = decided(result.posterior)
    by_votes = mode == "released"
    hard = np.where(majority >= 0, majority, certain) if by_votes else certain
    unvoted = (hard >= 0) & (tally[np.arange(len(distinct)), hard] == 0)
    disagree = (majority >= 0) & (certain >= 0) & (majority != certain)
    if K == 2 and soft != "posterior":
        values = spread(result.posterior[:, 0], distinct, scale.symbols)
    else:
        values = result.posterior[:, 1] if K == 2 else result.posterior
    of_item = distinct.of_item
    return Labels(
        ballot=ballot,
        fit=result,
        soft=distinct.spread(values),
        hard=np.append(hard, -1)[of_item],
        posterior=distinct.spread(result.posterior),
        tied=int(distinct.count[majority < 0].sum()),
        overturned=int(distinct.count[disagree].sum()),
        unvoted=int(distinct.count[unvoted].sum()),
    )


def _majority(
    tally: NDArray[np.float64],
) -> NDArray[np.int64]:
    """The pole with most votes of each pattern; -1 where several have as many."""
    best = tally.max(axis=1, keepdims=True)
    alone = (tally == best).sum(axis=1) == 1
    return np.where(alone, tally.argmax(axis=1), -1)


def decided(posterior: NDArray[np.float64]) -> NDArray[np.int64]:
    """The most probable pole; -1 where two are exactly as probable."""
    best = posterior.max(axis=1, keepdims=True)
    alone = (posterior == best).sum(axis=1) == 1
    return np.where(alone, posterior.argmax(axis=1), -1)


def label_rows(
    votes: Votes, labels: dict[str, Labels], sure: Mapping[str, Stability] | None = None
) -> Iterator[dict[str, Any]]:
    """One row per item, as they come: id, softlabels, hardlabels and posterior by dimension.

    The posterior of two poles is that of the second, so that it points the way of the soft label;
    of more poles, each one's. Null: nobody voted on it; a null hard label alone: an exact tie.
    `sure`: adds the soft label's `interval`, and `kept`, in how many draws the posterior is on the
    side of the hard label.
    """
    columns = {name: _columns(found) for name, found in labels.items()}
    for place, item in enumerate(votes.ids):
        row: dict[str, Any] = {"id": item}
        for at, key in enumerate(("softlabels", "hardlabels", "posterior")):
            row[key] = {name: column[at][place] for name, column in columns.items()}
        for key in ("interval", "kept") if sure else ():
            row[key] = {}
        for name, found in (sure or {}).items():
            ends, kept = [float(found.low[place]), float(found.high[place])], found.kept[place]
            row["interval"][name] = None if ends[0] != ends[0] else ends
            row["kept"][name] = None if kept != kept else float(kept)
        yield row


def _columns(found: Labels) -> tuple[list[Any], list[Any], list[Any]]:
    names = [*found.ballot.scale.names, None]
    posterior = found.posterior[:, 1] if len(names) == 3 else found.posterior
    return _cells(found.soft, names), found.names, _cells(posterior, names)


def _cells(values: NDArray[np.float64], names: list[Any]) -> list[Any]:
    if values.ndim == 1:
        return [None if value != value else value for value in values.tolist()]
    return [
        None if row[0] != row[0] else dict(zip(names, row, strict=False)) for row in values.tolist()
    ]


def against_stored(votes: Votes, labels: dict[str, Labels]) -> dict[str, Any] | None:
    """How the estimate compares with labels that the votes' file holds already (MBTIBench's does).

    Counts of cells with the same soft label (to 1e-12) and the same hard label, and the largest
    difference of soft labels. None where no row holds any.
    """
    soft = hard = same_soft = same_hard = 0
    worst = 0.0
    for name, found in labels.items():
        names = [*found.ballot.scale.names, None]
        for place, row in enumerate(votes.rows):
            stored = _under(row, "softlabels", name)
            if isinstance(stored, int | float) and found.soft.ndim == 1:
                difference = abs(float(found.soft[place]) - stored)
                soft, same_soft = soft + 1, same_soft + (difference <= SAME)
                worst = max(worst, difference)
            stored = _under(row, "hardlabels", name)
            if isinstance(stored, str):
                hard, same_hard = hard + 1, same_hard + (names[found.hard[place]] == stored)
    if not soft + hard:
        return None
    return {
        "soft": soft,
        "soft_equal": same_soft,
        "largest_difference": worst,
        "hard": hard,
        "hard_equal": same_hard,
    }


def _under(row: dict[str, Any], key: str, name: str) -> Any:
    of_dimension = row.get(key)
    return of_dimension.get(name) if isinstance(of_dimension, dict) else None
