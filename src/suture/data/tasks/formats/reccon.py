"""RECCON-DD (Poria et al. 2021): what caused an emotion, in DailyDialog conversations.

    {"tr_12": [[{"turn": 1, "speaker": "A", "utterance": ..., "emotion": "happiness",
      "expanded emotion cause evidence": [1, "b"], "expanded emotion cause span": [...]}]]}

Evidence is the number of an utterance, or "b" for a cause that nobody says (left out of both
tasks). A few emotions are misspelt in the release and read as meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from suture.data.tasks.reading import field, finished, json_file, label, refuse
from suture.data.tasks.record import Record, Turn

EMOTIONS = ("neutral", "happiness", "surprise", "anger", "sadness", "disgust", "fear")
_MEANT = {
    "happy": "happiness", "happines": "happiness", "excited": "happiness",
    "sad": "sadness", "surprised": "surprise", "angry": "anger",
}  # fmt: skip


def read(files: Sequence[Path], *, unit: Literal["cause", "candidate"] = "cause") -> list[Record]:
    """Records on an emotional utterance (`aspect`: speaker, emotion, words) and one utterance up to
    it (`text`), with the conversation up to the emotional one as context.

    A `cause` is an utterance that holds one; gold: the words that say it, a list of the spans that
    each say one. A `candidate` is any utterance up to the emotional one; gold: yes where it holds a
    cause, else no. Cluster: the conversation. Errors: E353 emotion, E354 keys, E356 evidence
    outside the conversation.
    """
    records: list[Record] = []
    for file in files:
        for name, talks in json_file(file, dict).items():
            turns = talks[0] if isinstance(talks, list) and talks else None
            if not isinstance(turns, list):
                refuse("E354", f"'{name}' is no list of a conversation", file, fix="fetch it again")
            said = [
                Turn(
                    speaker=field(turn, "speaker", str, file, name),
                    text=field(turn, "utterance", str, file, name).strip(),
                )
                for turn in turns
            ]
            for place, turn in enumerate(turns, 1):
                emotion = field(turn, "emotion", str, file, name).strip()
                emotion = label(_MEANT.get(emotion, emotion), EMOTIONS, file, None, what="emotion")
                if emotion == "neutral":
                    continue
                causes = _causes(turn, len(turns), file, name)
                for other, answer in _asked(causes, place, unit):
                    records.append(
                        Record(
                            id=f"{name}_{place}_{other}",
                            text=said[other - 1].text,
                            context=said[:place],
                            speaker=said[other - 1].speaker,
                            aspect=f"{said[place - 1].speaker} ({emotion}): {said[place - 1].text}",
                            gold=answer,
                            cluster=name,
                            meta={"emotion": emotion},
                        )
                    )
    return finished(records, files)


def _asked(
    causes: dict[int, list[str]], place: int, unit: str
) -> Iterator[tuple[int, str | list[str]]]:
    for other in range(1, place + 1):
        if unit == "candidate":
            yield other, "yes" if other in causes else "no"
        elif other in causes:
            yield other, causes[other]


def _causes(turn: dict[str, Any], count: int, file: Path, name: str) -> dict[int, list[str]]:
    """Utterance -> the spans in it that caused the emotion of `turn`."""
    evidence = turn.get("expanded emotion cause evidence", [])
    spans = turn.get("expanded emotion cause span", [])
    if not isinstance(evidence, list) or not isinstance(spans, list) or len(evidence) != len(spans):
        refuse(
            "E354", f"'{name}' has other numbers of causes and spans", file, fix="fetch it again"
        )
    found: dict[int, list[str]] = {}
    for other, span in zip(evidence, spans, strict=True):
        if other == "b":
            continue
        if not isinstance(other, int) or not 1 <= other <= count:
            refuse(
                "E356",
                f"'{name}' names the cause {other!r} in a conversation of {count} utterances",
                file,
                fix="correct this conversation",
            )
        found.setdefault(other, []).append(str(span).strip())
    return found
