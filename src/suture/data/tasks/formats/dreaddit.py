"""Dreaddit's test posts as MBTIBench keeps them: does the poster suffer from stress?

{"id": 1, "posts": "Post: ...", "label": "no"}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from suture.config import FrozenConfig
from suture.data.reader import read_jsonl
from suture.data.tasks.reading import finished
from suture.data.tasks.record import Record


class _Row(FrozenConfig):
    id: str
    posts: str
    label: Literal["yes", "no"]


def read(files: Sequence[Path]) -> list[Record]:
    """Records with the post, without the word before it; gold: yes or no. Errors as in
    `read_jsonl`, all with file, line and column."""
    return finished(
        [
            Record(id=row.id, text=row.posts.removeprefix("Post:").strip(), gold=row.label)
            for file in files
            for row in read_jsonl(file, _Row)
        ],
        files,
    )
