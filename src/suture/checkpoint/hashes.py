"""Content hashes, remembered between runs.

Hashing a model reads all its bytes, so each file's tensor hashes are kept in the user's cache
folder (`SUTURE_CACHE`, else the platform's own), keyed by (path, inode, size, mtime). A file
changed within the last two seconds is not remembered: a later write in the same clock tick would
go unseen. The cache is a convenience: unreadable or unwritable, it is ignored, and `verify` never
uses it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from suture.checkpoint.jsonfile import write_json
from suture.checkpoint.source import blake2b, hash_tiles

_FORMAT = 1
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Content:
    """What one pass over a tensor's bytes tells: hash, NaN/Inf count, all elements equal."""

    hash: str
    nonfinite: int
    constant: bool


def cache_folder() -> Path:
    """`SUTURE_CACHE`, else the platform's cache folder for this user."""
    chosen = os.environ.get("SUTURE_CACHE")
    if chosen:
        return Path(chosen)
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
        name = blake2b(json.dumps(self._key).encode())[:32]
        self._file = cache_folder() / "hashes" / f"{name}.json"
        self._known: dict[str, Content] | None = None
        self._new = 0

    def get(self, tensor: str) -> Content | None:
        """What is known of a tensor, None when nothing is."""
        if self._known is None:
            self._known = self._load()
        return self._known.get(tensor)

    def set(self, tensor: str, content: Content) -> None:
        """Remember, in memory until `save`."""
        self.get(tensor)
        assert self._known is not None
        self._known[tensor] = content
        self._new += 1

    def save(self) -> None:
        """Write what is new, silently giving up where the cache cannot be written."""
        if not self._new or not self._settled or self._known is None:
            return
        values = {name: [c.hash, c.nonfinite, c.constant] for name, c in self._known.items()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, {"format": _FORMAT, "key": self._key, "tensors": values})
            self._new = 0
        except OSError:
            pass

    def _load(self) -> dict[str, Content]:
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


def blake2b_file(path: Path | str) -> str:
    """BLAKE2b-256 of a whole file, in hex, streamed."""
    with open(path, "rb") as file:
        return hash_tiles(iter(lambda: file.read(1 << 20), b""))
