"""MVSA-Single and MVSA-Multiple: tweets with images, labelled apart for text and for image.

    labelResultAll.txt      ID <tab> text,image [<tab> text,image <tab> text,image]
    data/ID.txt, ID.jpg     the tweet and its image

One label follows as in the literature (`inferred`; it gives 4,511 and 17,024): text and image each
by majority of their annotators, without one the post is left out; equal labels stand, a neutral one
gives way to the other, positive against negative is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.images import in_words, picture
from suture.data.tasks.reading import finished, identity, label, lines, refuse
from suture.data.tasks.record import Record

LABELS = ("negative", "neutral", "positive")


def read(
    files: Sequence[Path],
    *,
    encoding: str = "utf-8",
    captions: Path | None = None,
) -> list[Record]:
    """Records of every post on whose label text and image agree. `files`: labelResultAll.txt.

    `encoding`: that of the tweets; the published ones are not UTF-8 throughout (latin-1 reads all).
    Errors: E352 columns, E353 label, E301 a missing tweet, E303 encoding.
    """
    records = []
    words = in_words(captions, ())
    for file in files:
        folder = file.parent / "data"
        for n, line in lines(file):
            name, *votes = line.split("\t")
            if n == 1 and name.strip().upper() == "ID":
                continue
            pairs = [vote.split(",") for vote in votes]
            if not pairs or any(len(pair) != 2 for pair in pairs):
                refuse(
                    "E352",
                    "the row is not ID, then text,image labels",
                    file,
                    n,
                    fix="fetch the file again",
                )
            sides = [
                _majority([label(pair[side].strip(), LABELS, file, n) for pair in pairs])
                for side in (0, 1)
            ]
            gold = agreed(*sides)
            if gold is None:
                continue
            text = " ".join(line for _, line in lines(folder / f"{name}.txt", encoding=encoding))
            records.append(
                Record(
                    id=identity(name, file, n),
                    text=text.strip(),
                    image=picture(folder, name),
                    caption=words.get(name),
                    gold=gold,
                    meta={"text_label": sides[0], "image_label": sides[1]},
                )
            )
    return finished(records, files)


def agreed(text: str | None, image: str | None) -> str | None:
    """One label of a post, None where there is none."""
    if text is None or image is None:
        return None
    if text == image or image == "neutral":
        return text
    return image if text == "neutral" else None


def _majority(votes: list[str]) -> str | None:
    (first, count), *_ = Counter(votes).most_common(1)
    return first if 2 * count > len(votes) else None
