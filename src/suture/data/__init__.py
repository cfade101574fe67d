"""Data in: strict JSONL rows, their record types, and the chat template that wraps a prompt."""

from __future__ import annotations

from suture.data.chat import ChatTemplate, Encoded, beginning, encode
from suture.data.reader import read_jsonl, sha256_file
from suture.data.records import AnsweredPair, Choice, Pair, Passage, Prompt
from suture.data.rows import (
    read_answered,
    read_answered_numbered,
    rows_sha256,
    same_text,
)

__all__ = [
    "AnsweredPair",
    "ChatTemplate",
    "Choice",
    "Encoded",
    "Pair",
    "Passage",
    "Prompt",
    "beginning",
    "encode",
    "read_answered",
    "read_answered_numbered",
    "read_jsonl",
    "rows_sha256",
    "same_text",
    "sha256_file",
]
