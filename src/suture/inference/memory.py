"""What a model has answered before, kept in a file and found again by what decided the answer.

The key of an answer is the SHA-256 of the weights' fingerprint, the precision and device they ran
in, the versions of the libraries, and the question in token ids with its decoding: two checkpoints
at one path never share an answer, and a question asked again costs a look-up. Answers may be a
harmful model's, so the file is its owner's alone (mode 600).
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.errors import SutureError

_AT_ONCE = 512  # answers per transaction
FILE = "answers.sqlite"


class AnswerCache:
    """The answers of one model in `folder`; several models and processes may share a folder.

    `identity`: all that decides an answer besides the question. Raises SutureError E530 for a
    folder or file that cannot be used.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        import sqlite3

        self.path = Path(folder) / FILE
        self._failed = sqlite3.Error
        self._model = json.dumps(identity, sort_keys=True).encode()
        self._waiting: dict[bytes, str] = {}
        self.hits = self.misses = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            # One thread asks, but the collector closes what nobody closed in whichever thread it
            # happens to run.
            self._file = sqlite3.connect(
                self.path, timeout=60.0, isolation_level=None, check_same_thread=False
            )
            weakref.finalize(self, self._file.close)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL)"
                " WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def get(self, question: Any) -> Any:
        """The answer to `question` (anything JSON can hold), or None."""
        key = self._key(question)
        text = self._waiting.get(key)
        if text is None:
            try:
                row = self._file.execute(
                    "SELECT answer FROM answers WHERE key = ?", (key,)
                ).fetchone()
            except self._failed as error:
                raise self._unusable(error) from None
            text = row[0] if row else None
        self.hits, self.misses = self.hits + (text is not None), self.misses + (text is None)
        return None if text is None else json.loads(text)

    def put(self, question: Any, answer: Any) -> None:
        """Keep `answer`; it is on disk after the next `flush`."""
        self._waiting[self._key(question)] = json.dumps(answer, ensure_ascii=False)
        if len(self._waiting) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what waits, in one transaction."""
        if not self._waiting:
            return
        try:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?)", list(self._waiting.items())
            )
            self._file.execute("COMMIT")
        except self._failed as error:
            raise self._unusable(error) from None
        self._waiting.clear()

    def close(self) -> None:
        """Write what waits and let the file go."""
        self.flush()
        self._file.close()

    def _key(self, question: Any) -> bytes:
        text = json.dumps(question, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(self._model + b"\0" + text.encode("utf-8", "surrogatepass")).digest()

    def _unusable(self, error: Exception) -> SutureError:
        return SutureError(
            "E530",
            f"the cache cannot be used: {error}",
            where=str(self.path),
            fix="give another folder with --cache, or remove this file",
        )
