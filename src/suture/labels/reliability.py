"""How far each annotator's votes can be trusted, from the table T that the estimator found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from suture.lazy import np

if TYPE_CHECKING:
    from suture.labels.em import Fit
    from suture.labels.scale import Scale


def reliability(found: Fit, scale: Scale, annotators: list[str]) -> list[dict[str, Any]]:
    """One row per annotator who voted, in the order given.

    `accuracy`: probability that the vote is on the true pole, over the prior; `recall`: the same
    where each pole is true; `informedness`: mean recall over that of guessing, 0 for votes that
    say nothing, 1 for votes that are always right, below 0 for votes that point the wrong way;
    `symbols`: share of each symbol among the votes.
    """
    K = len(scale.poles)
    on_pole = np.eye(K)[scale.pole_of]  # (S, K)
    recall = np.einsum("ask,sk->ak", found.table, on_pole)
    used = np.bincount(
        found.patterns.code,
        np.repeat(found.patterns.count, np.diff(found.patterns.starts)),
        minlength=found.patterns.annotators * found.patterns.symbols,
    ).reshape(found.patterns.annotators, -1)
    rows = []
    for place, name in enumerate(annotators):
        votes = found.votes[place]
        if not votes:
            continue
        rows.append(
            {
                "annotator": name,
                "votes": int(votes),
                "accuracy": float(recall[place] @ found.prior),
                "recall": dict(zip(scale.names, map(float, recall[place]), strict=True)),
                "informedness": float((recall[place].mean() - 1 / K) / (1 - 1 / K)),
                "symbols": dict(zip(scale.symbols, map(float, used[place] / votes), strict=True)),
            }
        )
    return rows
