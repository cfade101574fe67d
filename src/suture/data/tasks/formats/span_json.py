"""Twitter-2015 and Twitter-2017 as tweets with aspect spans (AoM, M2DF, VLP-MABSA).

    [{"words": [...], "image_id": "x.jpg", "aspects": [{"from": 1, "to": 3, "polarity": "POS",
      "term": ["night", "bus"]}], ...}]

`from` and `to` count words, `to` excluded. The text is the words joined by one blank each, so that
a span of words is a piece of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suture.data.tasks.images import in_words, picture
from suture.data.tasks.reading import field, finished, json_file, label, refuse, texts
from suture.data.tasks.record import Record

POLARITIES = {"NEG": "negative", "NEU": "neutral", "POS": "positive"}


def read(
    files: Sequence[Path],
    *,
    captions: Path | None = None,
    images: Path | None = None,
) -> list[Record]:
    """One record per tweet. Gold: `spans`, the aspect terms (extraction), and `pairs` of [term,
    polarity] (joint), in the order of the text; their character offsets are in `meta.offsets`.

    Errors: E353 polarity, E354 keys, E355 a span that is not its term.
    """
    tweets = [(file, tweet) for file in files for tweet in json_file(file, list)]
    words = in_words(captions, {str(t.get("image_id")) for _, t in tweets if isinstance(t, dict)})
    records = []
    for place, (file, tweet) in enumerate(tweets, 1):
        name = f"tweet {place}"
        tokens = texts(tweet, "words", file, name)
        image = field(tweet, "image_id", str, file, name)
        found = [
            _aspect(one, tokens, file, name) for one in field(tweet, "aspects", list, file, name)
        ]
        found.sort(key=lambda one: one[2])
        records.append(
            Record(
                id=str(place),
                text=" ".join(tokens),
                image=picture(images, image),
                caption=words.get(image),
                gold={
                    "spans": [term for term, _, _ in found],
                    "pairs": [[term, polarity] for term, polarity, _ in found],
                },
                cluster=image,
                meta={"offsets": [list(offsets) for _, _, offsets in found]},
            )
        )
    return finished(records, files)


def _aspect(one: Any, tokens: list[str], file: Path, name: str) -> tuple[str, str, tuple[int, int]]:
    start, end = (field(one, key, int, file, name) for key in ("from", "to"))
    term = texts(one, "term", file, name)
    if not 0 <= start < end <= len(tokens) or tokens[start:end] != term:
        refuse(
            "E355",
            f"in {name} the words {start} to {end} are not the aspect that the row names",
            file,
            fix="fetch the file again",
        )
    polarity = label(field(one, "polarity", str, file, name), POLARITIES, file, None)
    left = len("".join(f"{word} " for word in tokens[:start]))
    text = " ".join(term)
    return text, POLARITIES[polarity], (left, left + len(text))
