"""ESConv (Liu et al. 2021) as its repository flattens it: a history and the supporter's next turn.

    0.0 0 0 Evening . EOS 0.0 1 1 [Questions] What broke ? EOS ... EOS 1.0 1 6 [Information] Bus ...

Each turn: a flag, 0 for the seeker or 1 for the supporter, its place in the dialogue, and for the
supporter the strategy in brackets. A dialogue stands in many lines with a growing history: they are
one cluster, and splits must keep it whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import finished, label, lines, refuse
from suture.data.tasks.record import Record, Turn

STRATEGIES = (
    "Questions", "Restatement or Paraphrasing", "Reflection of feelings", "Self-disclosure",
    "Affirmation and Reassurance", "Providing Suggestions", "Information", "Other",
)  # fmt: skip
_TURN = re.compile(r"\s*[\d.]+ ([01]) (\d+) (.*)", re.DOTALL)
_STRATEGY = re.compile(r"\[([^\]]+)\] ?(.*)", re.DOTALL)
_SPEAKERS = ("Seeker", "Supporter")


def read(files: Sequence[Path]) -> list[Record]:
    """The last turn of the history is the text (the seeker's, save where the supporter goes on);
    the context: the turns before. Gold: the supporter's `reply` and its `strategy`.

    Errors: E352 a turn of another form, E353 strategy.
    """
    records = []
    for file in files:
        dialogue, last = 0, -1
        for n, line in lines(file):
            turns = [_turn(part, file, n) for part in line.split(" EOS ")]
            if len(turns) < 2 or turns[-1][0] != 1:
                refuse(
                    "E352",
                    "the line does not end with a reply of the supporter",
                    file,
                    n,
                    fix="fetch the file again",
                )
            _, place, strategy, reply = turns[-1]
            dialogue += place <= last  # places grow within a dialogue
            last = place
            history = [Turn(speaker=_SPEAKERS[who], text=text) for who, _, _, text in turns[:-1]]
            strategy = label(strategy, STRATEGIES, file, n, what="strategy")
            records.append(
                Record(
                    id=f"{dialogue}-{place}" if len(files) == 1 else f"{file.stem}-{n}",
                    text=history[-1].text,
                    context=history[:-1],
                    speaker=history[-1].speaker,
                    gold={"reply": reply, "strategy": strategy},
                    cluster=f"{file.name.partition('.')[0]}-{dialogue}",
                )
            )
    return finished(records, files)


def _turn(part: str, file: Path, n: int) -> tuple[int, int, str, str]:
    """(speaker, place, strategy, text)"""
    found = _TURN.fullmatch(part)
    if not found:
        refuse("E352", "a turn is not 'flag speaker place text'", file, n, fix="fetch it again")
    who, place, text = int(found[1]), int(found[2]), found[3]
    named = _STRATEGY.fullmatch(text) if who else None
    return who, place, named[1] if named else "", (named[2] if named else text).strip()
