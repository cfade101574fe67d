"""What the table of unlearning compares: methods, equal numbers of settings each, the protocol.

Everything here was fixed before the test rows were looked at. The knob of every objective is the
learning rate, that of the two methods without a training of their own is their strength; all else
stands at the papers' values. Settings are chosen on family 0's `remembering-tuning`, which knows
other people than those of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EPOCHS = 10  # of every unlearning; RKLD's paper looks for the first peak among as many
FIXED = 10  # the epoch reported for every method, whatever its curve does: the last
BATCH_ROWS = 8  # a small model needs many small steps: 250 in all
RATES = (1e-5, 3e-5, 1e-4, 2.5e-4, 5e-4, 1e-3)
AUGMENT_RATE = 2.5e-4  # of RKLD's augmented model: one teacher for every rate of the student
STRENGTHS = {
    "WHP teacher": (0.5, 1.0, 2.0, 4.0, 8.0, 12.0),
    "task vector": (0.25, 0.5, 1.0, 1.75, 2.5, 4.0),
}
PEAK = "tofu.forget_quality"

OBJECTIVES: dict[str, dict[str, Any]] = {
    "RKLD": {"name": "rkld", "augment_rate": AUGMENT_RATE},
    "RKLD+RT": {"name": "rkld", "augment_rate": AUGMENT_RATE, "retain": "RT"},
    "RKLD+KL": {"name": "rkld", "augment_rate": AUGMENT_RATE, "retain": "KL"},
    "forward KL": {"name": "rkld", "augment_rate": AUGMENT_RATE, "direction": "forward"},
    "GA": {"name": "gradient-ascent"},
    "GradDiff": {"name": "grad-diff"},
    "KL-min": {"name": "kl-min"},
    "NPO": {"name": "npo"},
    "NPO+RT": {"name": "npo", "retain": "RT"},
    "SimNPO": {"name": "simnpo"},
    "DPO": {"name": "dpo"},
    "IDK": {"name": "idk"},
    "RMU": {"name": "rmu", "layer": 2},
    "UNDIAL": {"name": "undial"},
    "CE-U": {"name": "ce-u"},
    "WGA": {"name": "wga"},
    "SatImp": {"name": "satimp"},
}
WITH_RETAIN = {  # sees the rows that are kept, which the others do not
    "RKLD+RT", "RKLD+KL", "GradDiff", "KL-min", "NPO+RT", "SimNPO", "RMU",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One method at one setting."""

    method: str
    label: str
    objective: dict[str, Any] = field(default_factory=dict, hash=False)
    rate: float = 0.0
    strength: float = 0.0
    epochs: int = EPOCHS

    @property
    def folder(self) -> str:
        return f"{self.method} {self.label}".replace(" ", "_").replace("+", "_")


def points() -> list[Point]:
    """All settings of all methods, in the order of the table."""
    found = [
        Point(method, f"{rate:g}", objective, rate=rate)
        for method, objective in OBJECTIVES.items()
        for rate in RATES
    ]
    for method, strengths in STRENGTHS.items():
        found += [Point(method, f"{value:g}", strength=value) for value in strengths]
    return found
