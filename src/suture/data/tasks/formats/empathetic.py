"""EmpatheticDialogues (Rashkin et al. 2019): as released, and in a cleaned public copy.

    original   conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags
    cleaned    conv_id,prompt,utterance,context

In the original, commas inside a text are written _comma_, and every second utterance is the
listener's reply. The cleaned one has a row per conversation with stemmed words and without stop
words: fit for classification, unfit for generation. `context` is the emotion in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from suture.data.tasks.reading import finished, identity, label, lines, refuse, table
from suture.data.tasks.record import Record, Turn

EMOTIONS = tuple(
    "afraid angry annoyed anticipating anxious apprehensive ashamed caring confident content "
    "devastated disappointed disgusted embarrassed excited faithful furious grateful guilty "
    "hopeful impressed jealous joyful lonely nostalgic prepared proud sad sentimental surprised "
    "terrified trusting".split()
)


_COLUMNS = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags"
_SPEAKERS = ("Listener", "Speaker")  # by the parity of the utterance, from 1


def read(
    files: Sequence[Path], *, form: Literal["cleaned", "original"] = "cleaned"
) -> list[Record]:
    """Cleaned: one record per conversation, gold: one of 32 emotions. Original: one per reply
    of the listener, what is answered as text; gold: `reply` and `emotion`;
    cluster: the conversation.

    Errors: E352 columns, E353 emotion.
    """
    reader = _original if form == "original" else _cleaned
    return finished([record for file in files for record in reader(file)], files)


def _cleaned(file: Path) -> Iterator[Record]:
    for n, row in table(file, ("conv_id", "prompt", "utterance", "context")):
        yield Record(
            id=identity(row["conv_id"], file, n),
            text=row["utterance"],
            gold=label(row["context"].strip(), EMOTIONS, file, n, what="emotion"),
            meta={"situation": row["prompt"]},
        )


def _original(file: Path) -> Iterator[Record]:
    before: list[Turn] = []
    talk = None
    for n, line in lines(file):
        row = line.split(",")
        if n == 1 and row[0] == "conv_id":
            continue
        if len(row) < 6 or not row[1].isdigit():  # some rows lack the last columns
            refuse("E352", f"not {_COLUMNS}", file, n, fix="fetch the file again")
        if row[0] != talk:
            talk, before = row[0], []
        emotion = label(row[2].strip(), EMOTIONS, file, n, what="emotion")
        said = row[5].replace("_comma_", ",").strip()
        if int(row[1]) % 2 == 0 and before:
            yield Record(
                id=f"{talk}_{row[1]}",
                text=before[-1].text,
                context=before[:-1],
                speaker=before[-1].speaker,
                gold={"reply": said, "emotion": emotion},
                cluster=talk,
                meta={"situation": row[3].replace("_comma_", ",")},
            )
        before = [*before, Turn(speaker=_SPEAKERS[int(row[1]) % 2], text=said)]
