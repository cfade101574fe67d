"""Twitter-2015 and Twitter-2017: one row per aspect of a tweet (TomBERT's TSV).

    index <tab> label 0/1/2 <tab> image file <tab> tweet with $T$ <tab> aspect

The header is skipped whatever its width: the published test files name four columns over five
(`confirmed`). TomBERT's folder `twitter` is Twitter-2017. The text is the tweet with the aspect put
back; the one with the placeholder is `meta.masked`, since an aspect may occur twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.images import in_words, picture
from suture.data.tasks.reading import cells, finished, identity, label, refuse
from suture.data.tasks.record import Record

LABELS = {"0": "negative", "1": "neutral", "2": "positive"}
PLACE = "$T$"


def read(
    files: Sequence[Path], *, captions: Path | None = None, images: Path | None = None
) -> list[Record]:
    """Records with text, aspect, caption and gold polarity; cluster: the tweet (its image).

    `captions`: words for the images, as in `suture.data.tasks.images`; `images`: their folder.
    Errors: E352 cells, E353 label, E355 a tweet without $T$.
    """
    rows = [(file, n, row) for file in files for n, row in cells(file, 5, header=True)]
    words = in_words(captions, {row[2] for _, _, row in rows})
    records = []
    for file, n, (index, polarity, image, tweet, aspect) in rows:
        label(polarity, LABELS, file, n)
        if PLACE not in tweet:
            refuse(
                "E355",
                f"the tweet has no {PLACE} in the place of the aspect",
                file,
                n,
                fix="correct this row",
            )
        records.append(
            Record(
                id=identity(index, file, n),
                text=tweet.replace(PLACE, aspect).strip(),
                aspect=aspect.strip(),
                image=picture(images, image),
                caption=words.get(image),
                gold=LABELS[polarity],
                cluster=image,
                meta={"masked": tweet.strip()},
            )
        )
    return finished(records, files)
