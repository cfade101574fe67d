"""A text and its label per line, without a header (SST-2 and its like).

the lift was warm and quick <tab> 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from suture.data.tasks.reading import cells, finished, label
from suture.data.tasks.record import Record


def read(files: Sequence[Path], *, labels: Mapping[str, str]) -> list[Record]:
    """Records with the line number as id. `labels`: what each symbol means.

    Errors: E352 cells, E353 another symbol.
    """
    records = []
    for file in files:
        for n, (text, given) in cells(file, 2):
            gold = labels[label(given.strip(), labels, file, n)]
            name = str(n) if len(files) == 1 else f"{file.stem}-{n}"
            records.append(Record(id=name, text=text.strip(), gold=gold))
    return finished(records, files)
