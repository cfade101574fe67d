"""Sarcastic tweets with images (Cai, Cai & Wan 2019): Python lists, one per line.

    train.txt           ['12', 'text', 1]
    valid2.txt, test2   ['13', 'text', 1, 1]

The second label of valid and test is the one that published counts use (959 sarcastic of 2,410 and
959 of 2,409; counted here). Tweets that give themselves away by a word are left out of the training
set by most papers: 29,040 become 19,816. Tokens and emoji are as released.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from suture.data.tasks.images import in_words, picture, python_list
from suture.data.tasks.reading import finished, identity, label, lines, refuse
from suture.data.tasks.record import Record

LABELS = {"0": "not sarcastic", "1": "sarcastic"}
# Words that the released loaders of this data set leave out (`secondary`: the count agrees).
GIVEAWAYS = frozenset(
    "sarcasm sarcastic reposting <url> joke humour humor jokes irony ironic exgag".split()
)


def read(
    files: Sequence[Path],
    *,
    label_column: Literal["first", "last"] = "last",
    giveaways: Literal["keep", "drop"] = "keep",
    captions: Path | None = None,
    images: Path | None = None,
) -> list[Record]:
    """Records with text, image attributes as caption and gold.

    `giveaways`: `drop` leaves out tweets that hold one of `GIVEAWAYS` as a word.
    Errors: E352 length of a row, E353 label, E354 not a list.
    """
    rows = [(file, n, python_list(file, n, line)) for file in files for n, line in lines(file)]
    words = in_words(captions, {str(row[0]) for _, _, row in rows})
    records = []
    for file, n, row in rows:
        if len(row) not in (3, 4) or not isinstance(row[1], str):
            refuse(
                "E352", "the row is not [id, text, label(s)]", file, n, fix="fetch the file again"
            )
        text = row[1].strip()
        if giveaways == "drop" and GIVEAWAYS & set(text.split()):
            continue
        image = identity(str(row[0]), file, n)
        given = label(str(row[2] if label_column == "first" else row[-1]), LABELS, file, n)
        records.append(
            Record(
                id=image,
                text=text,
                image=picture(images, image),
                caption=words.get(image),
                gold=LABELS[given],
            )
        )
    return finished(records, files)
