"""The map of tasks in the documentation is the one that the command prints."""

from __future__ import annotations

from pathlib import Path

from suture.suites.tasks.listing import listing, page

REPO = Path(__file__).parents[2]


def test_the_generated_map_is_current() -> None:
    written = (REPO / "docs" / "generated" / "tasks.md").read_text(encoding="utf-8")
    assert written == page(listing()), "python -m suture.suites.tasks.listing writes it"
