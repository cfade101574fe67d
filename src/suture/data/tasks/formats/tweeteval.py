"""TweetEval (Barbieri et al. 2020): tweets in one file, the number of their label in another.

test_text.txt      one tweet per line
test_labels.txt    its label, a number        mapping.txt    0 <tab> non_irony
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import cells, finished, label, lines, refuse
from suture.data.tasks.record import Record


def read(files: Sequence[Path], *, mapping: Path) -> list[Record]:
    """Records with the line number as id; label names with blanks for underscores. `files`: texts,
    then labels, of each split.

    Errors: E352 files that are no pair or of different length, E353 a label without a name.
    """
    names = {number: name.strip().replace("_", " ") for _, (number, name) in cells(mapping, 2)}
    if len(files) % 2:
        refuse("E352", "texts without their labels", files[-1], fix="give both files")
    records = []
    for texts, labels in zip(files[::2], files[1::2], strict=True):
        said, given = list(lines(texts)), list(lines(labels))
        if len(said) != len(given):
            refuse(
                "E352",
                f"{len(given)} labels for {len(said)} texts",
                labels,
                fix="fetch both files again",
            )
        for (n, text), (line, number) in zip(said, given, strict=True):
            gold = names[label(number.strip(), names, labels, line)]
            records.append(Record(id=f"{texts.stem}-{n}", text=text.strip(), gold=gold))
    return finished(records, files)
