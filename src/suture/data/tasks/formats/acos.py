"""ACOS (Cai, Xia & Yu 2021): aspect, category, opinion and sentiment of review sentences.

    sentence <tab> 1,2 FOOD#QUALITY 2 5,6 <tab> -1,-1 SERVICE#GENERAL 0 -1,-1

Each quadruple: aspect words, category, sentiment (0 negative, 1 neutral, 2 positive), opinion
words; -1,-1 is an implicit one, here NULL. Spans count the words between blanks, end excluded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import finished, lines, refuse
from suture.data.tasks.record import Record

LABELS = ("negative", "neutral", "positive")
_QUAD = re.compile(r"(-?\d+),(-?\d+) (\S+#\S+) ([012]) (-?\d+),(-?\d+)")
NULL = "NULL"


def read(files: Sequence[Path]) -> list[Record]:
    """Records with `quads` of [aspect, category, polarity, opinion] and `triples` of [aspect,
    opinion, polarity] as gold.

    Errors: E352 a quadruple of another form, E355 a span outside the sentence.
    """
    records = []
    for file in files:
        for n, line in lines(file):
            text, *parts = line.split("\t")
            words = text.split(" ")
            quads = []
            for part in (part for part in parts if part.strip()):
                found = _QUAD.fullmatch(part.strip())
                if not found:
                    refuse(
                        "E352", "not 'from,to CATEGORY 0|1|2 from,to'", file, n, fix="correct it"
                    )
                aspect = _words(words, int(found[1]), int(found[2]), file, n)
                opinion = _words(words, int(found[5]), int(found[6]), file, n)
                quads.append([aspect, found[3], LABELS[int(found[4])], opinion])
            gold = {"quads": quads, "triples": [[a, o, p] for a, _, p, o in quads]}
            records.append(Record(id=f"{file.stem}-{n}", text=text.strip(), gold=gold))
    return finished(records, files)


def _words(words: list[str], start: int, end: int, file: Path, n: int) -> str:
    if (start, end) == (-1, -1):
        return NULL
    if not 0 <= start < end <= len(words):
        refuse("E355", f"words {start} to {end} of {len(words)}", file, n, fix="correct this row")
    return " ".join(words[start:end])
