"""Invented people for the tests: nothing here was ever posted by anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
SHARED = next((p for p in (ROOT / "shared", ROOT.parent / "shared") if p.is_dir()), ROOT) / "data"

PEOPLE: list[dict[str, Any]] = [
    {
        "id": number,
        "source": "made",
        "posts": [f"the quick brown fox {number}", "short", "jump over the {lazy} dog, again"],
        "softlabels": {"E/I": soft, "S/N": 0.5, "T/F": 1 - soft, "J/P": 1.0},
        "hardlabels": {"E/I": "EI"[soft > 0.5], "S/N": "S", "T/F": "FT"[soft > 0.5], "J/P": "P"},
    }
    for number, soft in enumerate((0.0, 0.1, 0.3, 0.7, 0.9, 1.0), 1)
]
