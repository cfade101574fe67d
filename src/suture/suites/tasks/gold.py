"""What is right for a task, and whether it has the form of the task's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from suture.data.tasks.record import Record
from suture.errors import SutureError, nearest
from suture.progress import note
from suture.suites.tasks.spec import (
    LabelAnswer,
    LabelsAnswer,
    PairsAnswer,
    Part,
    ScoreAnswer,
    SpansAnswer,
    TaskSpec,
)


def gold_of(spec: TaskSpec, record: Record) -> Any:
    """What is right, of the several things a record may know; None: it is not known."""
    gold = record.gold
    if spec.gold is not None:
        return gold.get(spec.gold) if isinstance(gold, Mapping) else None
    return gold


def check_gold(spec: TaskSpec, records: Sequence[Record]) -> None:
    """Refuse (E587) a record whose right answer the task's answers cannot express: it could only
    ever count as wrong."""
    for record in records:
        gold = gold_of(spec, record)
        strange = None if gold is None else _strange(spec, gold)
        if strange is not None:
            raise SutureError(
                "E587",
                f"what is right is no answer of the task {spec.name}: {strange}",
                where=f"record '{record.id}'",
                why="whatever a model says would count as wrong",
                fix="correct the row, or the task's `answer` (`gold` names one of several)",
            )


def tell_unknown(spec: TaskSpec, records: Sequence[Record]) -> None:
    """One line where some records say what is right and others do not: these do not count."""
    unknown = [record for record in records if gold_of(spec, record) is None]
    if not unknown or len(unknown) == len(records):
        return
    note(f"{spec.name}: {len(unknown)} of {len(records)} records say nothing of what is right, in "
         f"`gold`, and do not count; the first is '{unknown[0].id}'")  # fmt: skip


def _strange(spec: TaskSpec, gold: Any) -> str | None:
    answer = spec.answer
    if isinstance(answer, LabelAnswer):
        return _outside([gold], answer.labels)
    if isinstance(answer, LabelsAnswer):
        return _outside(gold, answer.labels) if isinstance(gold, list) else "no list of labels"
    if isinstance(answer, ScoreAnswer):
        number = isinstance(gold, int | float) and not isinstance(gold, bool)
        within = number and answer.low <= gold <= answer.high
        return None if within else f"no score from {answer.low:g} to {answer.high:g}"
    if isinstance(answer, SpansAnswer):
        return None if _texts(gold) else "no list of texts"
    if isinstance(answer, PairsAnswer):
        return _strange_pairs(answer, gold)
    texts = [gold] if isinstance(gold, str) else gold
    if not _texts(texts) or not texts:
        return "no text"
    return None if all(one.strip() for one in texts) else "a text without a word"


def _strange_pairs(answer: PairsAnswer, gold: Any) -> str | None:
    if not isinstance(gold, list):
        return "no list of tuples"
    for row in gold:
        if not isinstance(row, list) or len(row) != len(answer.parts):
            return f"a tuple without {len(answer.parts)} places"
        for part, value in zip(answer.parts, row, strict=True):
            if (strange := _strange_place(part, value)) is not None:
                return strange
    return None


def _strange_place(part: Part, value: Any) -> str | None:
    if part.kind == "number":
        return None if isinstance(value, int) else f"{part.name} is no whole number"
    if part.kind == "span":
        return None if isinstance(value, str) else f"{part.name} is no text"
    return _outside([value], part.labels)


def _outside(labels: Sequence[Any], known: Sequence[str]) -> str | None:
    odd = next((label for label in labels if label not in known), None)
    if odd is None:
        return None
    close = nearest(str(odd), known)
    return f"'{odd}' is no label" + (f" ('{close}' is)" if close else "")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
