"""What a suite asks, as a file for engines elsewhere (vLLM and the like).

One JSON object per line: `item` and `prompt`, and `messages` where anything stands before the
question. Their replies, `item` and `reply` per line, come back with `suture measure --replies`.

Questions of several turns go out turn by turn: given the replies so far, the next turn of every
item that has one left (`suture.suites.turns`), until there is none. `then` holds the turns that
follow, for engines that go through them by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.checkpoint.jsonfile import write_atomic
from suture.errors import SutureError
from suture.ledger import load_replies
from suture.suites.assembling import spoken_items
from suture.suites.finding import load_suite
from suture.suites.turns import check_names, check_replies, open_turn


def prompts(
    name: str,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    replies: str | Path | None = None,
) -> list[dict[str, Any]]:
    """The rows that suite `name` wants replies to; arguments as in `suture.suites.measure`.

    `replies`: those that there are; what they answer is left out, and the next turns hold them.
    Errors: E570 the suite is not scored from replies; E592 a turn answered before an earlier one;
    E594 replies to other questions; E595 names of items that clash with those of turns; E603 a file
    that holds no replies.
    """
    suite = load_suite(name, options)
    if getattr(suite, "needs_model", False):
        raise SutureError(
            "E570",
            f"{suite.name} is not scored from replies",
            why=getattr(
                suite, "why", "it looks at distributions or times, which texts do not hold"
            ),
            fix=f"measure the model here: suture measure {suite.name} --model DIR",
        )
    items = spoken_items(suite, data, limit)
    check_names(suite, items)
    found = [] if replies is None else load_replies(replies)
    if replies is not None:
        check_replies(suite, items, found, Path(replies))
    said = {one.item: one for one in found}
    rows = (open_turn(suite, item, said) for item in items)
    return [row for row in rows if row is not None]


def write_prompts(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object per line, mode 600: requests may be harmful."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode("utf-8"), mode=0o600)
