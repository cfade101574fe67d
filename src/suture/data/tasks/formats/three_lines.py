"""Aspect sentiment in three lines per aspect, as PyABSA and ABSA-PyTorch keep SemEval (`.seg`).

The $T$ on the train was warm .
tea
1                     or Negative, Neutral, Positive
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import finished, label, lines, refuse
from suture.data.tasks.record import Record

LABELS = {
    "-1": "negative", "0": "neutral", "1": "positive",
    "negative": "negative", "neutral": "neutral", "positive": "positive",
}  # fmt: skip


def read(files: Sequence[Path]) -> list[Record]:
    """Records with text, aspect and gold polarity; cluster: the sentence with its aspects put back.

    Errors: E352 lines that are no multiple of three, E353 label, E355 a sentence without $T$.
    """
    records: list[Record] = []
    for file in files:
        rows = list(lines(file))
        if len(rows) % 3:
            refuse("E352", f"{len(rows)} lines are not three for each aspect", file, fix="check it")
        for start in range(0, len(rows), 3):
            (n, masked), (_, aspect), (last, polarity) = rows[start : start + 3]
            if "$T$" not in masked:
                refuse("E355", "the sentence has no $T$", file, n, fix="correct this line")
            text = masked.replace("$T$", aspect.strip()).strip()
            records.append(
                Record(
                    id=str(len(records) + 1),
                    text=text,
                    aspect=aspect.strip(),
                    gold=LABELS[label(polarity.strip().lower(), LABELS, file, last)],
                    cluster=text,
                    meta={"masked": masked.strip()},
                )
            )
    return finished(records, files)
