"""Data of one's own: JSONL with the fields of a `Record`, one object per line.

    {"id": "1", "text": "Lovely service.", "aspect": "service", "gold": "positive"}

Only `text` must be there. `image` is a path, relative to the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suture.data.reader import read_jsonl
from suture.data.tasks.reading import finished
from suture.data.tasks.record import Record


def read(files: Sequence[Path]) -> list[Record]:
    """The records as they stand. Errors as in `read_jsonl`, all with file, line and column."""
    records = []
    for file in files:
        for row in read_jsonl(file, Record):
            image = file.parent / row.image if row.image is not None else None
            records.append(row.model_copy(update={"image": image}))
    return finished(records, files)
