"""IEMOCAP (Busso et al. 2008), from the restricted release's own folders.

    SessionN/dialog/EmoEvaluation/X.txt     [1.00 - 2.50] <tab> Ses01F_impro01_F000 <tab> neu ...
    SessionN/dialog/transcriptions/X.txt    Ses01F_impro01_F000 [001.00-002.50]: The bus is late.

The usual six classes; utterances on which annotators did not agree (xxx) and the rare ones are left
out but stay in the context. Sessions 1 to 4 train, session 5 tests (`inferred`, the usual split).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import finished, label, lines, refuse
from suture.data.tasks.record import Record, Turn

EMOTIONS = {
    "hap": "happiness", "sad": "sadness", "neu": "neutral",
    "ang": "anger", "exc": "excitement", "fru": "frustration",
}  # fmt: skip
_OTHERS = ("xxx", "fea", "sur", "dis", "oth")
_JUDGED = re.compile(r"^\[[\d. -]+\]\t(\S+)\t(\w+)\t")
_SAID = re.compile(r"^(Ses\w+) \[[\d. -]+\]: ?(.*)$")
_SPEAKERS = {"F": "Woman", "M": "Man"}


def read(files: Sequence[Path]) -> list[Record]:
    """Records in the order of the conversation, cluster: the conversation.

    `files`: the EmoEvaluation files; transcriptions lie beside their folder. Errors: E301 no
    transcription, E352 an utterance without its words, E353 label.
    """
    records = []
    for file in files:
        judged: dict[str, str] = {}
        for n, line in lines(file):
            if found := _JUDGED.match(line):
                judged[found[1]] = label(found[2], (*EMOTIONS, *_OTHERS), file, n)
        talk = file.parent.parent / "transcriptions" / file.name
        before: list[Turn] = []
        seen: set[str] = set()
        for _, line in lines(talk):
            found = _SAID.match(line)
            if not found:
                continue
            identity, text = found[1], found[2].strip()
            seen.add(identity)
            who = re.search(r"_([FM])\w*$", identity)
            turn = Turn(speaker=_SPEAKERS[who[1]] if who else None, text=text)
            emotion = EMOTIONS.get(judged.get(identity, ""))
            if emotion:
                records.append(
                    Record(
                        id=identity,
                        text=text,
                        context=list(before),
                        speaker=turn.speaker,
                        gold=emotion,
                        cluster=file.stem,
                    )
                )
            before.append(turn)
        if lost := [name for name in judged if name not in seen]:
            refuse(
                "E352",
                f"{len(lost)} judged utterances have no words, '{lost[0]}' first",
                talk,
                fix="fetch the release again",
            )
    return finished(records, files)
