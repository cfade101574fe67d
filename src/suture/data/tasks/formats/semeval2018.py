"""SemEval-2018 Task 1: emotions of a tweet (E-c), their intensity (EI-oc), valence (V-oc).

    ID <tab> Tweet <tab> anger ... trust (0/1)                      E-c, 11 emotions
    ID <tab> Tweet <tab> Affect Dimension <tab> Intensity Class     EI-oc 0 to 3, V-oc -3 to 3

A class begins with its number: "1: low amount of joy can be inferred".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import cells, finished, identity, label, lines, number, refuse
from suture.data.tasks.record import Record

_ID, _TWEET = "ID", "Tweet"


def read(files: Sequence[Path], *, low: float = 0, high: float = 3) -> list[Record]:
    """E-c: a list of emotions as gold; EI-oc and V-oc: a score from `low` to `high`, the dimension
    as aspect. Which one it is stands in the header.

    Errors: E352 columns, E353 a cell that is not 0 or 1, E358 a class out of range.
    """
    records = []
    for file in files:
        header = _header(file)
        for n, row in cells(file, len(header), header=True):
            aspect = None
            gold: list[str] | float
            if header[2] == "Affect Dimension":
                aspect = row[2].strip()
                gold = number(row[3].partition(":")[0], file, n, low=low, high=high)
            else:
                marks = [label(cell.strip(), ("0", "1"), file, n) for cell in row[2:]]
                gold = [name for name, mark in zip(header[2:], marks, strict=True) if mark == "1"]
            records.append(
                Record(id=identity(row[0], file, n), text=row[1].strip(), aspect=aspect, gold=gold)
            )
    return finished(records, files)


def _header(file: Path) -> list[str]:
    _, first = next(lines(file))
    header = [name.strip() for name in first.split("\t")]
    if header[:2] != [_ID, _TWEET] or len(header) < 4:
        refuse("E352", f"the header does not begin with {_ID}, {_TWEET}", file, 1, fix="check it")
    return header
