"""What report.json must hold, from the issue, checked by hand so that no library decides."""

from __future__ import annotations

from numbers import Real
from typing import Any

LEDGER = {
    "suite": str,
    "metric": str,
    "role": ("target", "kept"),
    "better": ("lower", "higher"),
    "n": int,
    "before": Real,
    "after": Real,
    "reference": (Real, None),
    "difference": Real,
    "ci95": [Real, Real],
    "margin": (Real, None),
    "verdict": ("improved", "held", "broken", "not proven"),
    "test": str,
}
REPORT = {
    "verdict": ("proven", "broken", "not proven"),
    "ledger": [...],
    "patch": {"tensors": int, "elements": int, "bytes": int, "fingerprint": str},
    "before": {"fingerprint": str},
    "after": {"fingerprint": str},
    "versions": dict,
    "seconds": Real,
}


def violations(report: Any) -> list[str]:
    """Every way in which `report` misses the schema; more keys are welcome."""
    found = _check(report, {k: v for k, v in REPORT.items() if k != "ledger"}, "report")
    rows = report.get("ledger")
    if not isinstance(rows, list):
        return [*found, "report.ledger is not a list"]
    for place, row in enumerate(rows):
        found += _check(row, LEDGER, f"ledger[{place}]")
    return found


def _check(value: Any, wanted: Any, where: str) -> list[str]:
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return [f"{where} is not an object"]
        return [
            problem
            for key, inner in wanted.items()
            for problem in (
                _check(value[key], inner, f"{where}.{key}")
                if key in value
                else [f"{where}.{key} is missing"]
            )
        ]
    if isinstance(wanted, list):
        good = isinstance(value, list) and len(value) == len(wanted)
        good = good and all(isinstance(v, w) for v, w in zip(value, wanted, strict=True))
    elif isinstance(wanted, tuple):
        good = any(_matches(value, option) for option in wanted)
    else:
        good = isinstance(value, wanted) and not isinstance(value, bool)
    return [] if good else [f"{where} is {value!r}"]


def _matches(value: Any, option: Any) -> bool:
    return isinstance(value, option) if isinstance(option, type) else value == option
