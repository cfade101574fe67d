"""ECF / MECPE (Xia, Ding et al.): emotion-cause pairs in conversations of Friends.

    7 2                                   id, number of utterances
    (2,1),(5,5)                            pairs (emotion utterance, cause utterance), from 1
    1 | Ada | joy | The parcel came . | SHOW_S9E9: 00:00:01.000 - 00:00:02.000
    ...

MELD has the same conversations: what learns from one must not be tested on the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from suture.data.tasks.reading import finished, label, lines, refuse
from suture.data.tasks.record import Record, Turn

EMOTIONS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
_PAIR = re.compile(r"\((\d+),(\d+)\)")
_PAIRS = re.compile(r"^\s*(\(\d+,\d+\)(,\(\d+,\d+\))*)?\s*$")


def read(
    files: Sequence[Path], *, unit: Literal["conversation", "utterance"] = "conversation"
) -> list[Record]:
    """Of a conversation: its utterances numbered in the text; gold: `pairs` of [emotion utterance,
    cause utterance] and `triples` with the emotion. Of an utterance: the turns before it as
    context; gold: its emotion. Cluster: the conversation.

    Errors: E352 a line of another form or a block cut off, E353 emotion, E356 a pair that points
    outside the conversation.
    """
    records: list[Record] = []
    for file in files:
        for name, turns, emotions, pairs in _conversations(file):
            if unit == "utterance":
                records += [
                    Record(
                        id=f"{name}_{place}",
                        text=turn.text,
                        context=turns[: place - 1],
                        speaker=turn.speaker,
                        gold=emotions[place - 1],
                        cluster=name,
                    )
                    for place, turn in enumerate(turns, 1)
                ]
                continue
            text = "\n".join(
                f"{place}. {turn.speaker}: {turn.text}" for place, turn in enumerate(turns, 1)
            )
            records.append(
                Record(
                    id=name,
                    text=text,
                    gold={
                        "pairs": [list(pair) for pair in pairs],
                        "triples": [[one, cause, emotions[one - 1]] for one, cause in pairs],
                    },
                    cluster=name,
                )
            )
    return finished(records, files)


def _conversations(
    file: Path,
) -> Iterator[tuple[str, list[Turn], list[str], list[tuple[int, int]]]]:
    rows = iter(_all_lines(file))
    for n, head in rows:
        found = re.fullmatch(r"\s*(\S+) (\d+)\s*", head)
        if not found:
            refuse("E352", "not 'id number-of-utterances'", file, n, fix="fetch the file again")
        count = int(found[2])
        _, listed = next(rows, (n, "?"))
        if not _PAIRS.match(listed):
            refuse("E352", "not a list of pairs (a,b),(c,d)", file, n + 1, fix="correct this line")
        pairs = [(int(one), int(cause)) for one, cause in _PAIR.findall(listed)]
        if wild := [pair for pair in pairs if not all(1 <= side <= count for side in pair)]:
            refuse(
                "E356",
                f"the pair {wild[0]} points outside the conversation of {count} utterances",
                file,
                n + 1,
                fix="correct this line",
            )
        turns, emotions = [], []
        for place in range(1, count + 1):
            at, line = next(rows, (n, ""))
            cells = line.split(" | ")
            if len(cells) != 5 or cells[0].strip() != str(place):
                refuse(
                    "E352",
                    f"not utterance {place} of {count} with number, speaker, emotion, text, time",
                    file,
                    at,
                    why="a conversation that is cut off would pass for a shorter one",
                    fix="fetch the file again",
                )
            turns.append(Turn(speaker=cells[1].strip(), text=cells[3].strip()))
            emotions.append(label(cells[2].strip().lower(), EMOTIONS, file, at))
        yield found[1], turns, emotions, pairs


def _all_lines(file: Path) -> list[tuple[int, str]]:
    """Lines with the empty ones between two conversations kept out and those in place of pairs kept
    in: a conversation without pairs has an empty second line."""
    numbered = {number: line for number, line in lines(file)}
    kept = []
    for number in sorted(numbered):
        kept.append((number, numbered[number]))
        heads = re.fullmatch(r"\s*\S+ \d+\s*", numbered[number])
        if heads and number + 1 not in numbered:
            kept.append((number + 1, ""))
    return kept
