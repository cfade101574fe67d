"""Solved examples before a question, from the training records.

    random     by lot, the same for all questions
    balanced   the labels in turns, by lot within a label, the same for all questions; answers
               without labels: as random
    nearest    for each question those whose words are most like its own (cosine of TF-IDF), the
               nearest last

The same examples for all questions are read by a model once. A record is never its own example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from suture.data import same_text
from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.rng import generator
from suture.suites.tasks.features import most_similar
from suture.suites.tasks.gold import gold_of
from suture.suites.tasks.spec import LabelAnswer, LabelsAnswer, TaskSpec

Sampler = Literal["balanced", "random", "nearest"]


def choose(
    spec: TaskSpec,
    train: Sequence[Record],
    asked: Sequence[Record],
    count: int,
    sampler: Sampler,
    seed: int,
) -> list[list[Record]]:
    """`count` examples for each record asked (E585: there are not so many)."""
    copies = Counter(_text(one) for one in train)  # a record may stand in both
    spare = max((copies[_text(record)] for record in asked), default=0)
    if len(train) - spare < count:
        raise SutureError(
            "E585",
            f"{count} examples are asked for, {spec.name} has {len(train) - spare} to take",
            where="shots",
            fix="give more training records with --set train=FILE.jsonl, or fewer shots",
        )
    if sampler == "nearest":
        ranked = most_similar(spec, train, asked, count + spare)
        return [
            _others([train[k] for k in near], record, count)[::-1]
            for near, record in zip(ranked, asked, strict=True)
        ]
    draws = generator(seed, f"shots/{spec.name}")
    shuffled = [train[k] for k in draws.permutation(len(train))]
    if sampler == "balanced":
        shuffled = _in_turns(spec, shuffled)
    return [_others(shuffled, record, count) for record in asked]


def _in_turns(spec: TaskSpec, records: Sequence[Record]) -> list[Record]:
    """One of each label, one of each again, ...; of several labels the first counts."""
    if not isinstance(spec.answer, LabelAnswer | LabelsAnswer):
        return list(records)
    groups: dict[Any, list[Record]] = {}
    for record in records:
        gold = gold_of(spec, record)
        key = gold if isinstance(gold, str) else (gold[0] if gold else None)
        groups.setdefault(key, []).append(record)
    rounds = max(map(len, groups.values()), default=0)
    return [group[k] for k in range(rounds) for group in groups.values() if k < len(group)]


def _others(pool: Sequence[Record], record: Record, count: int) -> list[Record]:
    found: list[Record] = []
    for one in pool:
        if len(found) == count:
            break
        if _text(one) != _text(record):
            found.append(one)
    return found


def _text(record: Record) -> tuple[str, str | None]:
    return same_text(record.text), record.aspect
