"""Where a task's records come from: a folder of data sets, a file of one, a file of records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suture.data import same_text
from suture.data.tasks.datasets import read_split
from suture.data.tasks.formats import records
from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.progress import note
from suture.suites.tasks.spec import ScoreAnswer, TaskSpec

# ends of the names of files of records
FILES = tuple(f"{kind}{packed}" for kind in (".jsonl", ".csv", ".tsv") for packed in ("", ".gz"))


def read_records(spec: TaskSpec, place: Path, split: str) -> list[Record]:
    """Of a JSONL file of records, or a table of them where the task has no data set; else of the
    task's data set in a folder, or in a file of its format."""
    if place.name.endswith((".jsonl", ".jsonl.gz")):
        return records.read([place])
    if spec.dataset is None and place.name.endswith(FILES):
        found = records.read([place])
        scores = isinstance(spec.answer, ScoreAnswer)
        return [_with_number(one) for one in found] if scores else found
    if spec.dataset is None:
        raise SutureError(
            "E582",
            f"the task {spec.name} names no data set",
            where=str(place),
            fix="give --data FILE (.jsonl, .csv or .tsv) with records, or `dataset:` in the task",
        )
    return read_split(spec.dataset, place, split)


def _with_number(record: Record) -> Record:
    """A score as a number: the cells of a table are texts."""
    try:
        return record.model_copy(update={"gold": float(record.gold)})
    except (TypeError, ValueError):
        return record  # no gold, or one that `check_gold` refuses by name


def unseen(spec: TaskSpec, asked: Sequence[Record], train: Sequence[Record]) -> list[Record]:
    """The training records but those that are asked, by text, aspect and what was said before;
    whatever their ids. E583: all that is asked is among them, or nothing else is."""
    shown, known = ({_seen(record) for record in side} for side in (asked, train))
    kept = [record for record in train if _seen(record) not in shown]
    if train and shown and (shown <= known or not kept):
        raise SutureError(
            "E583",
            f"{spec.name}: the baseline would learn from the very records that are asked",
            where="train",
            why="what learns from the records that are asked answers them by heart",
            fix="give --set train=FILE.jsonl with other records, or another split",
        )
    if gone := len(train) - len(kept):
        note(f"{spec.name}: {gone} of {len(train)} training records are asked too: left out")
    return kept


def _seen(record: Record) -> tuple[Any, ...]:
    before = [(turn.speaker, same_text(turn.text)) for turn in record.context]
    return same_text(record.text), record.aspect, *before
