"""GoEmotions (Demszky et al. 2020): 27 emotions and neutral, several to a comment.

text <tab> 3,10 <tab> comment id        and labels.txt, one label per line, counted from 0
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import cells, finished, identity, label, lines
from suture.data.tasks.record import Record


def read(files: Sequence[Path], *, labels: Path) -> list[Record]:
    """Records with a list of labels as gold, in the order of `labels`.

    Errors: E352 cells, E353 a label id that is none.
    """
    names = {str(place): name.strip() for place, (_, name) in enumerate(lines(labels))}
    records = []
    for file in files:
        for n, (text, given, name) in cells(file, 3):
            ids = {int(label(one, names, file, n, what="label id")) for one in given.split(",")}
            gold = [names[str(one)] for one in sorted(ids)]
            records.append(Record(id=identity(name, file, n), text=text.strip(), gold=gold))
    return finished(records, files)
