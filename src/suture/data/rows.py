"""Rows to train on, in whichever of the usual forms they come.

    {"prompt": ..., "response": ...}      a chat turn and the reply
    {"question": ..., "answer": ...}      the same under the names of question answering (TOFU)
    {"text": ...}                         plain text, read without the chat template
    a .txt or .md file                    one plain text

A JSONL file has one form, which its first row shows; other columns are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from suture.data.reader import first_row, read_numbered, read_text
from suture.data.records import AnsweredPair, Pair, Passage, PlainText, QuestionAnswer
from suture.errors import SutureError

TEXT_FILES = (".txt", ".md")


def read_answered(path: str | Path, *, limit: int | None = None) -> list[AnsweredPair]:
    """The rows of `path`, plain texts as `Passage`; at most the first `limit` of a JSONL file.

    Errors as in `read_jsonl`, all with file and line; E306 also for a first row of no known form,
    E302 for a text file without text.
    """
    return [row for _, row in read_answered_numbered(path, limit=limit)]


def read_answered_numbered(
    path: str | Path, *, limit: int | None = None
) -> list[tuple[int, AnsweredPair]]:
    """`read_answered`, each row with its line, from 1: what errors may call it by, where its id or
    its text could be a person's name."""
    path = Path(path)
    if path.suffix.lower() in TEXT_FILES:
        return [(1, Passage(id=path.name, response=read_text(path)))]
    keys = set(first_row(path))
    if keys & {"prompt", "response"}:
        return read_numbered(path, AnsweredPair, limit=limit)
    if keys & {"question", "answer"}:
        return [(n, row.pair()) for n, row in read_numbered(path, QuestionAnswer, limit=limit)]
    if "text" in keys:
        return [(n, row.pair()) for n, row in read_numbered(path, PlainText, limit=limit)]
    raise SutureError(
        "E306",
        "the first row has no form that can be trained on",
        where=str(path),
        why=f"it has: {', '.join(sorted(keys)) or 'nothing'}",
        fix="name the columns prompt and response, question and answer, or text",
    )


def rows_sha256(rows: Iterable[Pair]) -> str:
    """SHA-256 of prompts and responses, each pair once: repeats, ids and file layout aside."""
    texts = dict.fromkeys(json.dumps([row.prompt, row.response]) for row in rows)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def same_text(text: str) -> str:
    """`text` without differences of case and blanks: what makes two prompts or two answers one,
    wherever a row must not stand on two sides."""
    return " ".join(text.casefold().split())
