"""What a suite asks, as a file for engines elsewhere (vLLM and the like).

One JSON object per line: `item` and `prompt`, and `messages` where solved examples stand before a
question. Their replies, `item` and `reply` per line, come back with `suture measure --replies`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.checkpoint.jsonfile import write_atomic
from suture.errors import SutureError
from suture.suites.assembling import spoken_items
from suture.suites.finding import load_suite


def prompts(
    name: str,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The rows that suite `name` wants replies to; arguments as in `suture.suites.measure`.

    Error E570: the suite is not scored from replies, or its questions hang on answers.
    """
    suite = load_suite(name, options)
    if getattr(suite, "needs_model", False):
        raise SutureError(
            "E570",
            f"{suite.name} is not scored from replies",
            why="it looks at distributions or times, which texts do not hold",
            fix=f"measure the model here: suture measure {suite.name} --model DIR",
        )
    as_asked = getattr(suite, "as_asked", None)
    rows = []
    for item in spoken_items(suite, data, limit):
        if as_asked is not None:
            rows.append({"item": item.id, **as_asked(item)})
        else:
            rows.append({"item": item.id, "prompt": item.prompt})
    return rows


def write_prompts(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object per line, mode 600: requests may be harmful."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode("utf-8"), mode=0o600)
