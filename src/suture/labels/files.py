"""What the verbs write: rows as JSONL, and beside labels a record of how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from suture.checkpoint.jsonfile import write_atomic
from suture.errors import SutureError

PRIVATE = 0o600  # types of people by id, and what quotes them, stay with their user


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows about people as JSONL, private, whole or not at all."""
    dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    write_bytes(path, b"".join(dump(row).encode() + b"\n" for row in rows), mode=PRIVATE)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """A file, whole or not at all; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data, mode=mode)


def record_path(labels: Path) -> Path:
    """Where the record of a label file lies: `labels.jsonl` has `labels.estimate.json`."""
    return labels.with_name(f"{labels.name.removesuffix('.jsonl')}.estimate.json")


def refuse_ending(path: Path | None, ending: str) -> None:
    """E702 for an output of another ending than what is written there."""
    if path is not None and path.suffix != ending:
        raise SutureError(
            "E702",
            f"'{path.name}' does not end in {ending}",
            where="-o",
            why=f"{'a drawing' if ending == '.svg' else 'one JSON object per line'} is written",
            fix=f"-o {path.with_suffix(ending)}",
        )


def refuse_inputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """E398 where an output is one of the inputs, or two outputs are one file."""
    taken = {one.resolve() for one in inputs if one is not None}
    for one in outputs:
        if one is None:
            continue
        if one.resolve() in taken:
            raise SutureError(
                "E398",
                "the output is also an input, or another output",
                where=str(one),
                why="inputs are never touched",
                fix="give it another name with -o",
            )
        taken.add(one.resolve())
