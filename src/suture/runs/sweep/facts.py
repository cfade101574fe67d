"""The shape of sweep.json: what a sweep found, setting by setting."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from suture.ledger import Better
from suture.runs.sweep.choose import Side

Scores = dict[str, float]  # SUITE.METRIC to mean
Ends = dict[str, list[float] | None]  # SUITE.METRIC to the 95% interval of the level


class Difference(TypedDict):
    """One metric's paired difference, + being better; `metric` without its suite."""

    metric: str
    before: float
    after: float
    difference: float
    ci95: list[float]


class Selected(TypedDict):
    """A setting on the rows that settings are chosen by."""

    scores: Scores
    ci95: Ends
    verdict: str


class Reported(TypedDict):
    """A setting on the rows of the report; `reference` where there is such a model."""

    scores: Scores
    before: Scores
    reference: NotRequired[Scores]
    n: dict[str, int]
    ci95: Ends
    verdict: str
    exit_code: int


class Named(TypedDict):
    """Which setting: its place in the grid, its folder's name, its method and knobs."""

    number: int
    key: str
    method: str
    label: str
    knobs: dict[str, Any]


class SettingFacts(Named):
    """One setting. `failed`: why it could not be derived; `junk`: what is wrong with its replies.
    Either keeps it from being chosen. `against`: paired differences from the chosen one."""

    patch: dict[str, Any] | None
    seconds: dict[str, float]
    selection: Selected | None
    junk: str | None
    failed: str | None
    front: bool
    report: Reported | None
    against: dict[str, Difference]


class Facts(TypedDict):
    """The whole file. `axes`: the roles' metrics; `sides`: the models as they are.

    `where`, `best`: what the sweep's recipe asks for. `limits`: the constraints of the choice that
    `picked` and `why` tell, drawn in the plots: `where`, until `pick` chooses by others or by hand.
    """

    format: str
    name: str
    title: str
    command: str | None
    seed: int
    models: dict[Side, str | None]
    axes: list[str]
    better: dict[str, Better]
    n: dict[str, int]
    sides: dict[Side, Scores]
    where: str | None
    best: str | None
    limits: str | None
    picked: str | None
    why: str | None
    settings: list[SettingFacts]
