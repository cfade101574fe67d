"""MUStARD (Castro et al. 2019): sarcasm in television dialogues, with the turns before.

    {"2_9": {"utterance", "speaker", "context": [...], "context_speakers": [...], "show",
      "sarcasm": true}}

There is no official split. The paper's speaker-independent one tests on Friends and learns from the
other shows (`secondary`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import field, finished, identity, json_file, refuse, texts
from suture.data.tasks.record import Record, Turn


def read(
    files: Sequence[Path], *, shows: Sequence[str] = (), other_shows: Sequence[str] = ()
) -> list[Record]:
    """Records with context and speaker. `shows`: only these; `other_shows`: all but these.

    Errors: E354 keys, E352 another number of speakers than of turns.
    """
    records = []
    for file in files:
        for name, row in json_file(file, dict).items():
            said = texts(row, "context", file, name)
            speakers = texts(row, "context_speakers", file, name)
            if len(said) != len(speakers):
                refuse(
                    "E352",
                    f"'{name}' has {len(said)} turns of context but {len(speakers)} speakers",
                    file,
                    fix="fetch the file again",
                )
            show = field(row, "show", str, file, name)
            if (shows and show not in shows) or show in other_shows:
                continue
            sarcastic = field(row, "sarcasm", bool, file, name)
            records.append(
                Record(
                    id=identity(name, file),
                    text=field(row, "utterance", str, file, name),
                    context=[
                        Turn(speaker=who, text=text)
                        for who, text in zip(speakers, said, strict=True)
                    ],
                    speaker=field(row, "speaker", str, file, name),
                    gold="sarcastic" if sarcastic else "not sarcastic",
                    meta={"show": show},
                )
            )
    return finished(records, files)
