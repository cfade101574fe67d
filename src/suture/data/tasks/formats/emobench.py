"""EmoBench (Sabour et al. 2024): what somebody feels and why (EU), what helps them best (EA).

    {"qid", "language", "scenario", "subject", "emotion_choices", "emotion_label",
     "cause_choices", "cause_label"}                                              EU.jsonl
    {"qid", "language", "question type", "scenario", "subject", "choices", "label"}    EA.jsonl

The label is one of the choices, word for word. The paper counts EU as right where emotion and cause
both are; here each is a task of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from suture.data.tasks.reading import field, finished, lines, refuse, texts
from suture.data.tasks.record import Record

LETTERS = "ABCDEF"
_KEYS = {
    "emotion": ("emotion_choices", "emotion_label"),
    "cause": ("cause_choices", "cause_label"),
    "application": ("choices", "label"),
}


def read(
    files: Sequence[Path],
    *,
    asks: Literal["emotion", "cause", "application"],
    language: str = "en",
) -> list[Record]:
    """Records with the scenario and the lettered choices as text, the subject as aspect; gold: the
    letter. `asks`: which of the questions; `language`: en or zh.

    Errors: E354 keys, E353 a label that is none of the choices.
    """
    choices, label = _KEYS[asks]
    records = []
    for file in files:
        for n, line in lines(file):
            row = _row(line, file, n)
            name = field(row, "qid", str, file, f"line {n}")
            if field(row, "language", str, file, name) != language:
                continue
            options = texts(row, choices, file, name)
            right = field(row, label, str, file, name)
            if right not in options or len(options) > len(LETTERS):
                refuse("E353", "the label is none of the choices", file, n, fix="fetch it again")
            listed = [f"{letter}. {one}" for letter, one in zip(LETTERS, options, strict=False)]
            scenario = field(row, "scenario", str, file, name).strip()
            records.append(
                Record(
                    id=f"{language}-{name}",
                    text="\n".join((scenario, *listed)),
                    aspect=field(row, "subject", str, file, name),
                    gold=LETTERS[options.index(right)],
                    meta={"kind": str(row.get("question type", row.get("category", "")))},
                )
            )
    return finished(records, files)


def _row(line: str, file: Path, n: int) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        refuse("E354", "not a JSON object", file, n, fix="fetch the file again")
    return row
