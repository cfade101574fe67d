"""MELD (Poria et al. 2019): emotion and sentiment of utterances in Friends.

    Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,...

An utterance is judged with the turns before it in its dialogue; never with those after.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import finished, label, table
from suture.data.tasks.record import Record, Turn

EMOTIONS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
SENTIMENTS = ("negative", "neutral", "positive")
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")


def read(files: Sequence[Path]) -> list[Record]:
    """Records in file order, gold: `emotion` and `sentiment`; cluster: the dialogue.

    Errors: E352 columns, E353 labels.
    """
    records = []
    for file in files:
        before: list[Turn] = []
        dialogue = None
        for n, row in table(file, _COLUMNS):
            if row["Dialogue_ID"] != dialogue:
                dialogue, before = row["Dialogue_ID"], []
            gold = {
                "emotion": label(row["Emotion"].strip().lower(), EMOTIONS, file, n),
                "sentiment": label(row["Sentiment"].strip().lower(), SENTIMENTS, file, n),
            }
            turn = Turn(speaker=row["Speaker"].strip(), text=row["Utterance"].strip())
            records.append(
                Record(
                    id=f"dia{dialogue}_utt{row['Utterance_ID']}",
                    text=turn.text,
                    context=list(before),
                    speaker=turn.speaker,
                    gold=gold,
                    cluster=f"dia{dialogue}",
                )
            )
            before.append(turn)
    return finished(records, files)
