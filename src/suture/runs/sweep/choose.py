"""Which setting a sweep's constraints choose, by its scores on the selection split alone.

    safety >= 0.9, task >= 0.55          levels; `safety` stands for the suite's metric in the roles
    task.accuracy >= before - 0.03       relative to the model that is edited, or the reference

Of the settings that meet every constraint those count that no other of them matches in every
metric of the roles and beats in one. One left: it is chosen. Several: the metric `best` decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from suture.errors import SutureError, nearest
from suture.ledger import Better, front

Sign = Literal[">=", "<=", ">", "<"]
Side = Literal["before", "reference"]
Scores = Mapping[str, float]  # metric -> level

_CLAUSE = re.compile(r"\s*([^\s<>=≤≥]+)\s*(>=|<=|=>|=<|≥|≤|>|<)\s*(\S.*?)\s*")
_LEVEL = re.compile(
    r"(?:(before|reference)\s*)?(?:([+-])?\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(%)?)?"
)
_SPELT = {"≥": ">=", "≤": "<=", "=>": ">=", "=<": "<="}
_MISSES = 3  # shown when nothing fits
_TIGHT = 1e-12  # of levels: means of the same rows may differ in the last bit


@dataclass(frozen=True)
class Bound:
    """One constraint: `metric` `sign` `level`; with `side` the level is added to that model's."""

    metric: str
    sign: Sign
    level: float
    side: Side | None = None

    def __str__(self) -> str:
        number = f"{self.level:.10g}"
        if self.side is None:
            return f"{self.metric} {self.sign} {number}"
        shift = (
            "" if self.level == 0 else f" {'-' if self.level < 0 else '+'} {abs(self.level):.10g}"
        )
        return f"{self.metric} {self.sign} {self.side}{shift}"

    def wanted(self, sides: Mapping[Side, Scores]) -> float:
        """The level to reach."""
        return self.level + (sides[self.side][self.metric] if self.side else 0.0)

    def shortfall(self, scores: Scores, sides: Mapping[Side, Scores]) -> float:
        """How far `scores` are from meeting it; 0 when they do."""
        gap = self.wanted(sides) - scores[self.metric]
        if self.sign in ("<=", "<"):
            gap = -gap
        if self.sign in (">", "<") and abs(gap) <= _TIGHT:
            return _TIGHT
        return gap if gap > _TIGHT else 0.0


def parse_where(
    text: str,
    metrics: Collection[str],
    named: Collection[str] = (),
    sides: Collection[str] = get_args(Side),
) -> tuple[Bound, ...]:
    """The constraints in `text`, parted by commas, semicolons or `and`.

    `metrics`: SUITE.METRIC that were measured. `named`: those that a suite's name alone may stand
    for, the metrics of the roles. `sides`: what levels may be relative to. Raises SutureError E739.
    """
    found = []
    for clause in re.split(r"[,;]|\s+and\s+", text):
        if not clause.strip():
            continue
        match = _CLAUSE.fullmatch(clause)
        level = match and _LEVEL.fullmatch(match[3])
        if match is None or level is None:
            raise _unreadable(clause)
        side, plus, number, percent = level.groups()
        if not (side or number) or (side and number and not plus):
            raise _unreadable(clause)
        if side is not None and side not in sides:
            raise SutureError(
                "E739", f"there is no {side} model", where=clause.strip(), fix="give a number"
            )
        value = float(number or 0) / (100 if percent else 1) * (-1 if plus == "-" else 1)
        sign = _SPELT.get(match[2], match[2])
        metric = full_name(match[1], metrics, named)
        found.append(Bound(metric, sign, value + 0.0, side))  # type: ignore[arg-type]
    return tuple(found)


def full_name(word: str, metrics: Collection[str], named: Collection[str] = ()) -> str:
    """The SUITE.METRIC that `word` means; E739 where it means none, or several."""
    if word in metrics:
        return word
    for pool in (named, metrics):
        own = sorted({metric for metric in pool if metric.split(".", 1)[0] == word})
        if len(own) == 1:
            return own[0]
        if own:
            raise SutureError(
                "E739",
                f"'{word}' may mean {' or '.join(own)}",
                fix=f"write {own[0]}",
            )
    close = nearest(word, [*metrics, *(metric.split(".", 1)[0] for metric in metrics)])
    raise SutureError(
        "E739",
        f"no metric is called '{word}'",
        fix=f"did you mean '{close}'?" if close else f"one of: {', '.join(sorted(metrics))}",
    )


@dataclass(frozen=True)
class Candidate:
    """A setting that may be chosen: its number, what it is called, its selection scores."""

    number: int
    label: str
    scores: Scores


def best_of(
    candidates: Sequence[Candidate], axes: Sequence[str], better: Mapping[str, Better]
) -> list[Candidate]:
    """The Pareto front over the metrics `axes`, in order."""
    return [candidates[place] for place in front([_row(c, axes, better) for c in candidates])]


def choose(
    candidates: Sequence[Candidate],
    bounds: Sequence[Bound],
    axes: Sequence[str],
    better: Mapping[str, Better],
    sides: Mapping[Side, Scores],
    best: str | None = None,
) -> Candidate:
    """The one setting that the constraints leave.

    `axes`: the metrics of the roles. `better`: directions. `best`: the metric that decides between
    several; equal ones go by the other axes, in their order, then by the order of the candidates.
    Raises SutureError E737 when none fits, E738 when several do.
    """
    fit = [c for c in candidates if not any(b.shortfall(c.scores, sides) for b in bounds)]
    if not fit:
        raise _none_fits(candidates, bounds, sides)
    left = best_of(fit, axes, better)
    if best is not None:
        order = [best, *(metric for metric in axes if metric != best)]
        return max(left, key=lambda c: _row(c, order, better))
    if any(_row(c, axes, better) != _row(left[0], axes, better) for c in left):
        raise _several_fit(left, fit, bounds, axes)
    return left[0]


def _row(candidate: Candidate, axes: Sequence[str], better: Mapping[str, Better]) -> list[float]:
    return [candidate.scores[m] * (1 if better[m] == "higher" else -1) for m in axes]


def _none_fits(
    candidates: Sequence[Candidate], bounds: Sequence[Bound], sides: Mapping[Side, Scores]
) -> SutureError:
    def missed(candidate: Candidate) -> float:
        return sum(bound.shortfall(candidate.scores, sides) for bound in bounds)

    near = []
    for candidate in sorted(candidates, key=missed)[:_MISSES]:
        short = [
            f"{bound.metric} {candidate.scores[bound.metric]:.3f}, not {_asked(bound, sides)}"
            for bound in bounds
            if bound.shortfall(candidate.scores, sides)
        ]
        near.append(f"setting {candidate.number} ({candidate.label}): {'; '.join(short)}")
    never = [
        str(bound)
        for bound in bounds
        if all(bound.shortfall(candidate.scores, sides) for candidate in candidates)
    ]
    why = (
        "no setting meets " + " or ".join(never) if never else "each is met, but never all at once"
    )
    return SutureError(
        "E737",
        f"no setting meets {', '.join(map(str, bounds))}",
        where="nearest:\n    " + "\n    ".join(near),
        why=why,
        fix="loosen a constraint with --where, or widen the grid: what is there is kept",
    )


def _asked(bound: Bound, sides: Mapping[Side, Scores]) -> str:
    return f"{bound.sign} {bound.wanted(sides):.3f}"


def _several_fit(
    left: Sequence[Candidate],
    fit: Sequence[Candidate],
    bounds: Sequence[Bound],
    axes: Sequence[str],
) -> SutureError:
    shown = [
        f"setting {c.number} ({c.label}): " + ", ".join(f"{m} {c.scores[m]:.3f}" for m in axes)
        for c in left[:6]
    ]
    if len(left) > 6:
        shown.append(f"and {len(left) - 6} more")
    asked = ", ".join(map(str, bounds))
    return SutureError(
        "E738",
        f"{len(fit)} settings meet {asked}" if asked else f"there are {len(fit)} settings",
        where="\n    " + "\n    ".join(shown),
        why=f"of these {len(left)} each are better at one thing and worse at another",
        fix=f"say what decides with --best {axes[0]}, tighten --where, or take one with "
        f"--setting {left[0].number}",
    )


def _unreadable(clause: str) -> SutureError:
    return SutureError(
        "E739",
        f"cannot read the constraint '{clause.strip()}'",
        fix="write it as: safety >= 0.9, task.accuracy >= before - 0.03",
    )
