"""JSON that is read strictly and written atomically.

Python's own parser accepts NaN, 1e999, duplicate keys and any depth; two parsers could then see two
different models. Here a file has none of these, and a cap on its size, on disk and in memory.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

from suture.checkpoint.lock import gone, owner
from suture.checkpoint.staging import crash_point
from suture.errors import SutureError

CONFIG_CAP = 1 << 20
INDEX_CAP = 64 << 20
DEPTH_CAP = 64
MARKS_CAP = 8_000_000  # commas, colons and brackets; each may become some 100 bytes of objects
_INTEGER_CAP = 1 << 63
_NO_LIMIT = str(
    int(1e30)
)  # what transformers writes as `model_max_length` of tokenizers without one


def parse_json(raw: bytes, *, where: str, code: str = "E103") -> dict[str, Any]:
    """Parse one JSON object strictly; SutureError `code` says what is wrong and where."""

    def refuse(what: str) -> SutureError:
        return SutureError(
            code,
            what,
            where=where,
            why="two programs could read this file as two different models",
            fix="re-copy the file from where the checkpoint came from, or correct it by hand",
        )

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            times = Counter(key for key, _value in items)
            raise refuse(f"duplicate key {times.most_common(1)[0][0]!r}")
        return found

    def constant(text: str) -> Any:
        raise refuse(f"{text} is not JSON")

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise refuse(f"the number {text[:24]} is out of range")
        return value

    def integer(text: str) -> int:
        if text == _NO_LIMIT:
            return int(text)
        if len(text) > 20 or abs(int(text)) > _INTEGER_CAP:
            raise refuse(f"the number {text[:24]}… is out of range")
        return int(text)

    if sum(raw.count(mark) for mark in (b",", b":", b"[", b"{")) > MARKS_CAP:
        raise refuse(f"more than {MARKS_CAP:,} values")
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=number,
            parse_int=integer,
        )
    except UnicodeDecodeError as error:
        raise refuse(f"not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise refuse(f"not JSON: {error.msg} at line {error.lineno}") from None
    except RecursionError:
        raise refuse("nested too deeply") from None
    if not isinstance(value, dict):
        raise refuse("not a JSON object")
    if _is_deep(value):
        raise refuse(f"nested more than {DEPTH_CAP} deep")
    return value


def _is_deep(value: dict[str, Any]) -> bool:
    """Whether anything lies more than DEPTH_CAP levels down."""
    level: list[Any] = [value]
    for _depth in range(DEPTH_CAP):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def read_json(
    path: Path, *, cap: int = CONFIG_CAP, code: str = "E103", where: str | None = None
) -> dict[str, Any]:
    """Read one strict JSON object of at most `cap` bytes."""
    where = where or str(path)
    size = path.stat().st_size
    if size > cap:
        raise SutureError(code, f"{size:,} bytes, more than the {cap:,} allowed", where=where)
    return parse_json(path.read_bytes(), where=where, code=code)


def write_json(path: Path, obj: Any, *, mode: int = 0o666) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part; `mode` as in
    `write_atomic`."""
    text = json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, text.encode(), mode=mode)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o666, durable: bool = True) -> None:
    """Write bytes to a sibling that has `mode` from the start, fsync, and rename over `path`.

    Not `durable`: without the fsync, where a power cut may take the file. What killed writers of
    the same file have left is removed.
    """
    draft = path.with_name(f".{path.name}.{owner()}-{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(draft, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        crash_point(f"before-file:{path.name}")
        os.replace(draft, path)
        crash_point(f"after-file:{path.name}")
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        _remove_drafts(path)


def _remove_drafts(path: Path) -> None:
    prefix = f".{path.name}."
    for entry in os.scandir(path.parent):
        parts = entry.name.removeprefix(prefix).split("-")
        if entry.name.startswith(prefix) and len(parts) == 4 and gone(*parts[:3]):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
