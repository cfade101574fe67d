"""EmoryNLP (Zahiri & Choi 2018): seven emotions of utterances in Friends, by scene.

    csv   Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,...   (MELD's repository)
    JSON  {"episodes": [{"scenes": [{"scene_id", "utterances": [{...}]}]}]}    (the original)

A scene is (season, episode, scene): its number alone starts again in every episode.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from suture.data.tasks.reading import field, finished, json_file, label, number, table, texts
from suture.data.tasks.record import Record, Turn

EMOTIONS = ("neutral", "joyful", "scared", "mad", "peaceful", "powerful", "sad")
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode")
# file, line, scene, id, speaker, text, emotion
_Row = tuple[Path, int | None, str, str, str, str, str]


def read(files: Sequence[Path]) -> list[Record]:
    """Records in file order with the turns before them, cluster: the scene.

    Errors: E352 columns, E354 keys of the JSON form, E353 labels.
    """
    records: list[Record] = []
    before: list[Turn] = []
    scene = None
    for file in files:
        rows = _json(file) if ".json" in file.suffixes else _csv(file)
        for path, n, its, identity, speaker, text, emotion in rows:
            if its != scene:
                scene, before = its, []
            turn = Turn(speaker=speaker, text=text)
            records.append(
                Record(
                    id=identity,
                    text=text,
                    context=list(before),
                    speaker=speaker,
                    gold=label(emotion.strip().lower(), EMOTIONS, path, n),
                    cluster=scene,
                )
            )
            before.append(turn)
    return finished(records, files)


def _csv(file: Path) -> Iterator[_Row]:
    for n, row in table(file, _COLUMNS):
        season, episode, place, utterance = (
            int(number(row[key], file, n, low=0, high=10_000))
            for key in ("Season", "Episode", "Scene_ID", "Utterance_ID")
        )
        scene = f"s{season:02}_e{episode:02}_c{place:02}"
        identity = f"{scene}_u{utterance:03}"
        text = row["Utterance"].strip()
        yield file, n, scene, identity, _names(row["Speaker"]), text, row["Emotion"]


def _json(file: Path) -> Iterator[_Row]:
    for episode in field(json_file(file, dict), "episodes", list, file, "the file"):
        for scene in field(episode, "scenes", list, file, "an episode"):
            name = field(scene, "scene_id", str, file, "a scene")
            for row in field(scene, "utterances", list, file, name):
                identity = field(row, "utterance_id", str, file, name)
                speakers = texts(row, "speakers", file, identity)
                text = field(row, "transcript", str, file, identity).strip()
                emotion = field(row, "emotion", str, file, identity)
                yield file, None, name, identity, " and ".join(speakers), text, emotion


def _names(cell: str) -> str:
    """`['Rachel Green', 'Ross Geller']` as a name."""
    try:
        names = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return cell.strip()
    return " and ".join(map(str, names)) if isinstance(names, list) else cell.strip()
