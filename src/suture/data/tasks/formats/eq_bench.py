"""EQ-Bench v2 (Paech 2023): how strongly a character feels four given emotions, 0 to 10 each.

{"1": {"prompt": ..., "reference_answer": {...}, "reference_answer_fullscale":
  {"emotion1": "Proud", ..., "emotion1_score": 5, ...}}}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import field, finished, identity, json_file, number, refuse
from suture.data.tasks.record import Record

# the dialogue, the character, the four emotions; the instructions around them are left out
_PROMPT = re.compile(
    r"^\s*[^\n]+:\s*\n(?P<dialogue>.*?)\s*\n\[[^\]\n]*\]\s*\n"
    r"(?P<question>[^\n]+)\n(?:[^\n]+\n){4}\n",
    re.DOTALL,
)


def read(files: Sequence[Path]) -> list[Record]:
    """Records with the dialogue as text, the question about the character and the four emotions as
    aspect, the published prompt in `meta.prompt`; gold: a line "emotion: intensity" for
    each, on the full scale, which v2 scores against.

    Errors: E352 a prompt of another form, E354 keys, E358 an intensity outside 0 to 10.
    """
    records = []
    for file in files:
        for name, row in json_file(file, dict).items():
            prompt = field(row, "prompt", str, file, name)
            found = _PROMPT.match(prompt)
            if not found:
                refuse("E352", f"question {name} is of another form", file, fix="fetch it again")
            answer = field(row, "reference_answer_fullscale", dict, file, name)
            gold = {
                field(answer, f"emotion{k}", str, file, name): number(
                    str(answer.get(f"emotion{k}_score")), file, None, low=0, high=10
                )
                for k in range(1, 5)
            }
            records.append(
                Record(
                    id=identity(name, file),
                    text=found["dialogue"].strip(),
                    aspect="\n".join((found["question"].strip(), *gold)),
                    gold="\n".join(f"{emotion}: {value:g}" for emotion, value in gold.items()),
                    meta={"prompt": prompt},
                )
            )
    return finished(records, files)
