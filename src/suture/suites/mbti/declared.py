"""The measurement of a log: replies that somebody else's model is said to have given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.ledger import Measurement, ReplyRow, Row, replies_sha256
from suture.suites.assembling import declared
from suture.versions import versions


def of_log(
    suite: str,
    file: Path,
    rows: Sequence[Row],
    replies: Sequence[ReplyRow],
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    data: Mapping[str, Any],
    scorer: Mapping[str, Any] | None = None,
) -> Measurement:
    """`metrics`: entries of `derived`; one without a direction is told, but nothing is better for
    it. `data`: sha256 of what was asked, and what else is known of it."""
    return Measurement(
        suite=suite,
        model=declared(file.name),
        n=len(rows),
        metrics={name: one["value"] for name, one in metrics.items()},
        better={name: one["direction"] for name, one in metrics.items() if "direction" in one},
        derived={name: dict(one) for name, one in metrics.items()},
        rows=list(rows),
        data={"name": file.name, "n": len(rows), "private": True, **data},
        scorer=dict(scorer or {}),
        decoding={"declared": True},
        versions=versions(),
        replies_sha256=replies_sha256(replies),
        replies=replies,
    )
