"""What may be concluded from an interval, and how many items would settle what may not.

Target: `improved` when the whole interval lies above min_gain; `broken` when it lies below 0.
Kept: `held` when it lies above -margin (non-inferiority at one-sided 2.5%); `broken` when below.
Otherwise `not proven`. A run is proven when every row passes, which needs no correction
(intersection-union, Berger 1982); `broken` accuses, so it is declared only after Holm (1979).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

from pydantic import Field, model_validator

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.ledger.measurement import Better

Verdict = Literal["improved", "held", "broken", "not proven"]
RunVerdict = Literal["proven", "broken", "not proven"]
EXIT_CODES: dict[RunVerdict, int] = {"proven": 0, "broken": 2, "not proven": 3}
ALPHA = 0.025  # one-sided, the tail of a 95% interval
POWER = 0.80
_NORMAL = NormalDist()


class Role(FrozenConfig):
    """What a metric is for: a target must improve, a kept one must not fall by its margin."""

    metric: str = Field(description='suite and metric, "safety.refusal_rate"')
    role: Literal["target", "kept"]
    better: Better | None = Field(
        default=None, description="direction; None takes the measurement's own"
    )
    margin: float | None = Field(
        default=None, gt=0, description="kept only: the loss that would matter, 0.03 is 3 points"
    )
    against: Literal["before", "reference"] = Field(
        default="before", description="kept only: the model that sets the level"
    )
    min_gain: float = Field(default=0.0, ge=0, description="target only: the least gain to prove")

    @model_validator(mode="after")
    def _consistent(self) -> Role:
        if "." not in self.metric.strip(".") or self.metric.startswith("."):
            raise ValueError(f"'{self.metric}' must be SUITE.METRIC, like safety.refusal_rate")
        if self.role == "kept" and self.margin is None:
            raise ValueError(f"kept '{self.metric}' needs a margin, like {self.metric}:0.03")
        if self.role == "kept" and self.min_gain:
            raise ValueError("min_gain belongs to a target")
        if self.role == "target" and (self.margin is not None or self.against != "before"):
            raise ValueError("margin and against belong to a kept metric")
        return self

    @property
    def suite(self) -> str:
        """What stands before the first dot; metrics may have dots of their own."""
        return self.metric.split(".", 1)[0]

    @property
    def column(self) -> str:
        return self.metric.split(".", 1)[1]

    @classmethod
    def target(cls, text: str) -> Role:
        """Parse `SUITE.METRIC[:higher|lower][:MIN_GAIN]`."""
        metric, *rest = text.split(":")
        values: dict[str, object] = {"metric": metric, "role": "target"}
        if rest and rest[0] in ("higher", "lower"):
            values["better"] = rest.pop(0)
        if rest:
            values["min_gain"] = _number(rest.pop(0), text, "SUITE.METRIC:higher:MIN_GAIN")
        if rest:
            raise _unreadable(text, "SUITE.METRIC:higher:MIN_GAIN")
        return cls.load(values, where=f"--target {text}")

    @classmethod
    def kept(cls, text: str) -> Role:
        """Parse `SUITE.METRIC[:higher|lower]:MARGIN[@before|@reference]`."""
        shape = "SUITE.METRIC:MARGIN or SUITE.METRIC:MARGIN@reference"
        body, _, against = text.partition("@")
        metric, *rest = body.split(":")
        values: dict[str, object] = {"metric": metric, "role": "kept"}
        if against:
            values["against"] = against
        if rest and rest[0] in ("higher", "lower"):
            values["better"] = rest.pop(0)
        if len(rest) != 1:
            raise _unreadable(text, shape)
        values["margin"] = _number(rest[0], text, shape)
        return cls.load(values, where=f"--kept {text}")


def roles_hash(roles: Sequence[Role]) -> str:
    """SHA-256 of the roles and margins, to be recorded before anything is measured."""
    content = [role.model_dump(mode="json") for role in roles]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def judge(role: Role, low: float, high: float, *, broken_allowed: bool = True) -> Verdict:
    """The verdict on one row. `low`, `high`: oriented so that more is better.

    `broken_allowed`: whether Holm over all rows rejected this one.
    """
    floor = 0.0 if role.role == "target" else -(role.margin or 0.0)
    if role.role == "target" and low > role.min_gain:
        return "improved"
    if role.role == "kept" and low > floor:
        return "held"
    return "broken" if high < floor and broken_allowed else "not proven"


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Which hypotheses fall under Holm's step-down procedure, in the order given."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def run_verdict(verdicts: Sequence[Verdict]) -> RunVerdict:
    """Proven when every row passes; broken when one is; otherwise not proven."""
    if "broken" in verdicts:
        return "broken"
    return "proven" if verdicts and "not proven" not in verdicts else "not proven"


def needed_n(
    role: Role, difference: float, spread: float, *, binary: bool, units_per_item: float = 1.0
) -> int | None:
    """Items that would settle a row at 80% power; None when no sample would.

    Kept: assumes no true difference. Target: assumes the observed one, which must be above
    `min_gain`. `spread`: mean of the squared difference per item (for binary outcomes the share
    of discordant pairs; for clusters inflated by the design effect). Binary kept rows need
    at least the items at which Tango's interval without discordance fits the margin; others at
    least 100. `units_per_item`: clusters per item, which thins what the binary floor counts.
    Normal approximation (Connor 1987 for binary).
    """
    z_alpha, z_beta = _NORMAL.inv_cdf(1 - ALPHA), _NORMAL.inv_cdf(POWER)
    least = 1.0 if binary else 100.0
    if role.role == "kept":
        margin = role.margin or 0.0
        if binary:
            least = (math.floor(z_alpha**2 * (1 - margin) / margin) + 1) / units_per_item
        return math.ceil(max(least, (z_alpha + z_beta) ** 2 * spread / margin**2))
    gap = difference - role.min_gain
    if gap <= 0:
        return None
    variance = max(spread - difference**2, 0.0)
    null_variance = max(spread - role.min_gain**2, variance)
    needed = (z_alpha * math.sqrt(null_variance) + z_beta * math.sqrt(variance)) ** 2 / gap**2
    return math.ceil(max(least, needed))


def assumed(role: str) -> str:
    """What `needed_n` takes to be true."""
    return "nothing is truly lost" if role == "kept" else "the true gain is the one seen"


def _number(text: str, whole: str, shape: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _unreadable(whole, shape) from None


def _unreadable(text: str, shape: str) -> SutureError:
    return SutureError("E604", f"cannot read the role '{text}'", fix=f"write it as {shape}")
