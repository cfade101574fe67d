"""What measuring and scoring again share: which files, which replies, which numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.ledger import Measurement, ReplyRow, Row, mean_scores, replies_sha256
from suture.suites.common import DATA, Suite
from suture.suites.turns import last_reply, turn_name
from suture.versions import versions

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.inference import LoadedModel
    from suture.inference.pictures import LookingModel
    from suture.inference.reading import Reader
    from suture.ledger import JudgedRow

_BUILTIN = "builtin:"


def measurement(
    suite: Suite,
    rows: list[Row],
    replies: Sequence[ReplyRow],
    words: Sequence[JudgedRow],
    about: dict[str, Any],
    began: float,
) -> Measurement:
    """A measurement of these rows."""
    metrics, derived = numbers(suite, rows)
    return Measurement(
        **about,
        n=len(rows),
        metrics=metrics,
        derived=derived,
        better={name: suite.metrics[name] for name in metrics},
        rows=rows,
        versions=versions(),
        seconds=round(time.monotonic() - began, 3),
        replies_sha256=replies_sha256(replies) if replies else None,
        replies=replies,
        judged=words,
    )


def numbers(suite: Suite, rows: list[Row]) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """The metrics, and what the suite derives from the rows.

    A suite that derives anything (`derived(rows)`) says so for all its metrics; columns it does not
    name are only what they follow from.
    """
    derive = getattr(suite, "derived", None)
    if derive is None:
        return _in_suites_order(suite, mean_scores(rows)), {}
    derived: dict[str, dict[str, Any]] = derive(rows)
    return {name: about["value"] for name, about in derived.items()}, derived


def _in_suites_order(suite: Suite, metrics: Mapping[str, float]) -> dict[str, float]:
    """What the suite names first comes first, whichever row has it first."""
    order = list(suite.metrics)
    places = {name: order.index(name) if name in order else len(order) for name in metrics}
    return {name: metrics[name] for name in sorted(metrics, key=lambda name: places[name])}


def others(suite: Suite, items: list[Any], said: Sequence[JudgedRow] = ()) -> Mapping[str, str]:
    """What another model replied, for suites that compare."""
    find = getattr(suite, "others", None)
    found: Mapping[str, str] = {} if find is None else find(items, said)
    return found


def spoken(suite: Suite, items: list[Any]) -> list[Any]:
    """The items that are replied to: all, unless the suite says which."""
    asked = getattr(suite, "replied_to", None)
    return items if asked is None else [item for item in items if asked(item)]


def spoken_items(
    suite: Suite, data: str | Path | Sequence[str | Path] | None, limit: int | None
) -> list[Any]:
    """The items of a suite that are replied to."""
    return spoken(suite, suite.read(data_files(suite, data), limit))


def in_order(
    suite: Suite, items: Sequence[Any], replies: Sequence[ReplyRow], path: Path
) -> list[ReplyRow]:
    """The replies in the items' order, their prompts filled in; of several turns the last."""
    by_item = {reply.item: reply for reply in replies}
    found = {item.id: last_reply(suite, item, by_item) for item in items}
    missing = [name for name, reply in found.items() if reply is None]
    begun = [name for name in missing if turn_name(name, 1) in by_item]
    if missing:
        raise SutureError(
            "E522",
            f"{len(missing)} of {len(items)} items have no reply, the first is '{missing[0]}'",
            where=str(path),
            why="an average over the items that were answered would be another metric",
            fix=f"turns are left: --prompts NEXT --replies {path} writes them, all else the same"
            if begun
            else "give one reply per item, with the item's id",
        )
    return [
        replace(reply, prompt=item.prompt)
        for item, reply in zip(items, found.values(), strict=True)
        if reply is not None
    ]


def data_files(suite: Suite, data: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """The files asked for, else the suite's own."""
    if data is None:
        return list(suite.default_data)
    return [Path(data)] if isinstance(data, str | Path) else [Path(file) for file in data]


def told(file: Path) -> str:
    """How a measurement names a file."""
    return f"{_BUILTIN}{file.name}" if file.parent == DATA else str(file.resolve())


def untold(files: Sequence[str] | None) -> list[Path] | None:
    """The files that a measurement names."""
    if not files:
        return None
    return [
        DATA / file.removeprefix(_BUILTIN) if file.startswith(_BUILTIN) else Path(file)
        for file in files
    ]


def traced(lm: LoadedModel | LookingModel | Reader) -> dict[str, Any]:
    """The model of a measurement whose weights are known."""
    return {
        "fingerprint": lm.fingerprint,
        "path": str(lm.source.path),
        "patches": [patch.info.fingerprint for patch in getattr(lm.source, "patches", ())],
        "identity": "fingerprint",
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
    }


def declared(source: TensorSource | LoadedModel | str) -> dict[str, Any]:
    """Replies cannot be traced to weights, so the model is what somebody says it is."""
    name = source if isinstance(source, str) else str(getattr(source, "path", "model"))
    return {"fingerprint": None, "path": name, "patches": [], "identity": "declared"}
