"""Content hashes, remembered between runs.

Hashing a model reads all its bytes, so each file's tensor hashes are kept in the user's cache
folder (`SUTURE_CACHE`, else the platform's own), keyed by (path, inode, size, mtime); with
`SUTURE_CACHE` empty or `off` nothing is remembered. A file
changed within the last two seconds is not remembered: a later write in the same clock tick would
go unseen. The cache is a convenience: unreadable or unwritable, it is ignored, and `verify` never
uses it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from suture.checkpoint import dtypes
from suture.checkpoint.jsonfile import write_atomic
from suture.checkpoint.lanes import Coming
from suture.checkpoint.source import content_hash
from suture.lazy import np

_FORMAT = 2  # 1 remembered BLAKE2b
_SETTLED_NS = 2_000_000_000
_LONG = 8 << 20  # bytes of a file that is worth several threads
_EVERY_SECONDS = 5.0  # a killed run keeps what it has hashed but for the last few seconds


@dataclass(frozen=True)
class Content:
    """What one pass over a tensor's bytes tells: hash, NaN/Inf count, all elements equal."""

    hash: str
    nonfinite: int
    constant: bool


class Scanner:
    """`Content` of a tensor whose raw bytes pass in pieces of whole elements.

    `finite`: the caller has seen that there is no NaN or Inf, so they are not looked for.
    """

    def __init__(self, dtype: str, *, finite: bool = False) -> None:
        self._dtype, self._width, self._finite = dtype, dtypes.word(dtype), finite
        self._state = blake3()
        self._first: bytes | None = None
        self._constant = True
        self.nonfinite = 0

    def update(self, piece: memoryview) -> None:
        """Take the next bytes; they are not kept."""
        self._state.update(piece)
        if not self._finite:
            self.nonfinite += dtypes.count_nonfinite(self._dtype, piece)
        if self._constant and len(piece):
            width = self._width
            if self._first is None:
                self._first = bytes(piece[:width])
            if piece[-width:] == self._first == piece[:width]:
                words = np.frombuffer(piece, dtype=f"<u{width}")
                self._constant = bool((words == words[0]).all())
            else:
                self._constant = False

    def content(self) -> Content:
        """What was seen so far."""
        return Content(self._state.hexdigest(), self.nonfinite, self._constant)


def cache_folder() -> Path | None:
    """`SUTURE_CACHE`, else the platform's cache folder for this user; None where `SUTURE_CACHE` is
    empty or `off`."""
    chosen = os.environ.get("SUTURE_CACHE")
    if chosen is not None:
        return None if chosen.strip().lower() in ("", "off") else Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "suture"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "suture" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "suture"


class HashCache:
    """Remembered `Content` of the tensors of one file, as it was when `stat` was taken."""

    def __init__(self, path: Path, stat: os.stat_result) -> None:
        self._key = [os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns]
        self._settled = time.time_ns() - stat.st_mtime_ns > _SETTLED_NS
        name = content_hash(json.dumps(self._key).encode())[:32]
        folder = cache_folder()
        self._file = None if folder is None else folder / "hashes" / f"{name}.json"
        self._known: dict[str, Content] | None = None
        self._coming: dict[str, Coming] = {}
        self._new = 0
        self._saved = time.monotonic()

    def get(self, tensor: str) -> Content | None:
        """What is known of a tensor, None when nothing is; waits for what is being hashed."""
        if self._known is None:
            self._known = self._load()
        coming = self._coming.pop(tensor, None) if self._coming else None
        if coming is not None:
            self.set(tensor, coming.result())
        return self._known.get(tensor)

    def has(self, tensor: str) -> bool:
        """Whether `get` would know, now or when a lane is done."""
        return tensor in self._coming or self.get(tensor) is not None

    def set(self, tensor: str, content: Content) -> None:
        """Remember, in memory until `save`."""
        if self._known is None:
            self._known = self._load()
        self._known[tensor] = content
        self._new += 1
        if time.monotonic() - self._saved > _EVERY_SECONDS:
            self._write()

    def promise(self, tensor: str, coming: Coming) -> None:
        """Remember what a lane is still hashing."""
        for earlier in [name for name, content in self._coming.items() if content.done()]:
            self.get(earlier)
        self._coming[tensor] = coming

    def save(self) -> None:
        """Write what is new, silently giving up where the cache cannot be written."""
        for tensor in list(self._coming):
            self.get(tensor)
        self._write()

    def _write(self) -> None:
        self._saved = time.monotonic()
        if self._file is None or not self._new or not self._settled or self._known is None:
            return
        values = {name: [c.hash, c.nonfinite, c.constant] for name, c in self._known.items()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"format": _FORMAT, "key": self._key, "tensors": values})
            write_atomic(self._file, text.encode(), durable=False)
            self._new = 0
        except OSError:
            pass

    def _load(self) -> dict[str, Content]:
        if self._file is None:
            return {}
        try:
            stored = json.loads(self._file.read_bytes())
            if not self._settled or stored["format"] != _FORMAT or stored["key"] != self._key:
                return {}
            return {
                name: Content(str(hash_), int(nonfinite), bool(constant))
                for name, (hash_, nonfinite, constant) in stored["tensors"].items()
            }
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def old_hash(pieces: Iterable[Any]) -> str:
    """BLAKE2b-256 of a stream of bytes, in hex: the hash of patches and manifests of format 1."""
    state = hashlib.blake2b(digest_size=32)
    for piece in pieces:
        state.update(piece)
    return state.hexdigest()


def old_hash_file(path: Path | str) -> str:
    """The same of a whole file."""
    with open(path, "rb") as file:
        return old_hash(iter(lambda: file.read(1 << 20), b""))


def hash_file(path: Path | str) -> str:
    """BLAKE3 of a whole file, in hex, streamed; of a long one on all cores."""
    with open(path, "rb") as file:
        long = os.fstat(file.fileno()).st_size > _LONG
        state = blake3(max_threads=blake3.AUTO if long else 1)
        while piece := file.read(_LONG if long else 1 << 20):
            state.update(piece)
        return state.hexdigest()
