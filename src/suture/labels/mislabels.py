"""Self-reports against the annotators: which are probably wrong, and how many.

MBTIBench finds 29.58% of self-reported labels wrong, without saying whether that counts labels or
users, and the released rows hold no self-reports: both rates are given here (inferred).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.ledger import Row, derive

if TYPE_CHECKING:
    from suture.labels.estimate import Labels

_DIFFERS = "differs"  # the column of cells: 1 where self-report and annotators differ


@dataclass(frozen=True)
class MislabelRate:
    """`rate`: of all stated labels, the share that differs; `user_rate`: of all users, the share
    with at least one that differs; both with 95% intervals over users, by the ledger's rule:
    Wilson's where every user has one label or all are alike, else BCa's, and then none of fewer
    than 5 users."""

    labels: int
    wrong: int
    rate: float
    interval: tuple[float, float] | None
    users: int
    users_wrong: int
    user_rate: float
    user_interval: tuple[float, float] | None

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def mislabel_rate(
    self_report: Sequence[Mapping[str, str]],
    majority: Sequence[Mapping[str, str | None]],
    *,
    seed: int = 0,
) -> MislabelRate:
    """How often what users state differs from what annotators see, over (user, dimension).

    Both: one mapping of dimension to pole per user, in the same order. Cells that either leaves
    open are not counted. Error: E393 where no cell is left.
    """
    cells = [
        Row(f"{user}/{name}", {_DIFFERS: float(own[name] != seen[name])}, cluster=str(user))
        for user, (own, seen) in enumerate(zip(self_report, majority, strict=True))
        for name in own
        if seen.get(name) is not None
    ]
    if not cells:
        raise SutureError(
            "E393",
            "no label is stated for anything that has a hard label",
            fix="check that ids and dimensions of both files are the same",
        )
    any_wrong: dict[str, float] = {}
    for cell in cells:
        user = str(cell.cluster)
        any_wrong[user] = max(any_wrong.get(user, 0.0), cell.scores[_DIFFERS])
    users = [Row(user, {_DIFFERS: differs}) for user, differs in any_wrong.items()]
    rate, interval = _share(cells, "share of stated labels that differ", seed)
    user_rate, user_interval = _share(users, "share of users with a label that differs", seed)
    return MislabelRate(
        labels=len(cells),
        wrong=int(sum(cell.scores[_DIFFERS] for cell in cells)),
        rate=rate,
        interval=interval,
        users=len(users),
        users_wrong=int(sum(any_wrong.values())),
        user_rate=user_rate,
        user_interval=user_interval,
    )


def rate_by_dimension(
    self_report: Sequence[Mapping[str, str]],
    majority: Sequence[Mapping[str, str | None]],
    dimensions: Sequence[str],
) -> dict[str, MislabelRate]:
    """`mislabel_rate` of each dimension by itself; left out: those without a cell that counts."""
    rates = {}
    for name in dimensions:
        alone = [{name: own[name]} if name in own else {} for own in self_report]
        if any(
            own and seen.get(name) is not None for own, seen in zip(alone, majority, strict=True)
        ):
            rates[name] = mislabel_rate(alone, majority)
    return rates


def _share(
    rows: Sequence[Row], definition: str, seed: int
) -> tuple[float, tuple[float, float] | None]:
    """The share of rows that differ, and its interval where there is one."""
    found = derive(rows, "mean", [_DIFFERS], definition=definition, better="lower", seed=seed)
    ends = found.get("interval")
    return found["value"], (ends[0], ends[1]) if ends else None


def confidence(
    self_report: Sequence[Mapping[str, str]], labels: Mapping[str, Labels]
) -> list[dict[str, float]]:
    """Per user and dimension, the posterior of the stated pole: small where annotators rule it out.

    One minus its mean is the share of wrong labels that the estimator expects.
    """
    out = []
    for place, own in enumerate(self_report):
        row = {}
        for name, pole in own.items():
            if name in labels and labels[name].fit.patterns.of_item[place] >= 0:
                at = labels[name].ballot.scale.names.index(pole)
                row[name] = float(labels[name].posterior[place, at])
        out.append(row)
    return out
