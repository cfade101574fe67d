"""Records to prompts, and right answers to the form in which they are given.

Prompts are filled in one pass, so braces inside a text are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from suture.data.tasks.record import Record
from suture.rng import generator
from suture.suites.tasks.spec import (
    Answer,
    LabelAnswer,
    LabelsAnswer,
    PairsAnswer,
    ScoreAnswer,
    SpansAnswer,
    TaskSpec,
)

_HOLE = re.compile(r"\{([a-z_]+)\}")
# names of fields as a reader sees them
_CALLED = {
    "context": "Conversation so far",
    "speaker": "Speaker",
    "text": "Text",
    "aspect": "Aspect",
    "caption": "Image",
    "audio_desc": "Sound",
    "video_desc": "Video",
}
_GAP = {"context": "\n"}


def render(
    spec: TaskSpec, record: Record, turns: Sequence[str], labels: Sequence[str]
) -> list[str]:
    """The user turns of one paraphrase, filled in. `labels`: in the order to be shown."""
    values = {field: shown(spec, record, field) for field in _CALLED}
    values["input"] = shown_input(spec, record)
    values["labels"] = listed(labels)
    values["answer_form"] = answer_form(spec.answer, labels)
    if isinstance(spec.answer, ScoreAnswer):
        values["low"], values["high"] = f"{spec.answer.low:g}", f"{spec.answer.high:g}"
    return [_HOLE.sub(lambda hole: values.get(hole[1], hole[0]), turn) for turn in turns]


def shown_input(spec: TaskSpec, record: Record) -> str:
    """All that is shown of a record, with its names: `{input}`."""
    fields = [(field, shown(spec, record, field)) for field in spec.shows]
    return "\n".join(
        f"{spec.named.get(field, _CALLED[field])}:{_GAP.get(field, ' ')}{value}"
        for field, value in fields
        if value
    )


def shown(spec: TaskSpec, record: Record, field: str) -> str:
    """A field of a record in words; nothing where the record lacks it."""
    if field != "context":
        return str(getattr(record, field) or "")
    lines = [f"{one.speaker}: {one.text}" if one.speaker else one.text for one in record.context]
    if spec.numbered:
        lines = [f"{number}. {line}" for number, line in enumerate(lines, 1)]
    return "\n".join(lines)


def listed(words: Sequence[str]) -> str:
    """a, b or c."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"


def shown_labels(answer: Answer) -> list[str]:
    """The labels that are shown and may be shuffled."""
    if isinstance(answer, LabelAnswer | LabelsAnswer):
        return answer.labels
    if isinstance(answer, PairsAnswer):
        return next((part.labels for part in answer.parts if part.kind == "label"), [])
    return []


def ordered(labels: Sequence[str], order: int, seed: int) -> list[str]:
    """The labels in order number `order`: 0 as they stand, then seeded shuffles, each another one
    as long as there are any."""
    found = [list(labels)]
    draws = generator(seed, "label orders")
    for _ in range(100 * order):
        if len(found) > order:
            break
        shuffled = [labels[i] for i in draws.permutation(len(labels))]
        if shuffled not in found:
            found.append(shuffled)
    return found[order % len(found)]


def answer_form(answer: Answer, labels: Sequence[str]) -> str:
    """The sentence that says how to answer, for prompts that leave it to us."""
    if isinstance(answer, LabelAnswer):
        return f"Answer with one of these and nothing else: {listed(labels)}."
    if isinstance(answer, LabelsAnswer):
        return (
            f"Answer with all that apply, separated by commas, or with {answer.none}: "
            f"{', '.join(labels)}."
        )
    if isinstance(answer, ScoreAnswer):
        return f"Answer with one number from {answer.low:g} to {answer.high:g} and nothing else."
    if isinstance(answer, SpansAnswer):
        return (
            "Answer with a JSON list of pieces copied from the text word for word, "
            'such as ["one", "another one"], or [] if there are none.'
        )
    if isinstance(answer, PairsAnswer):
        names = ", ".join(part.name for part in answer.parts)
        shuffled = shown_labels(answer)
        told = [
            f"{part.name} is one of {listed(labels if part.labels == shuffled else part.labels)}"
            for part in answer.parts
            if part.labels
        ]
        told += [
            f"{part.name} is copied from the text word for word"
            + (f", or {part.implicit}" if part.implicit else "")
            for part in answer.parts
            if part.kind == "span"
        ]
        told += [f"{part.name} is its number" for part in answer.parts if part.kind == "number"]
        return f"Answer with a JSON list of [{names}] lists, or [] if there are none; " + (
            ", ".join(told) + "."
        )
    return "Answer with the text alone."


def canonical(answer: Answer, value: Any) -> str:
    """A right answer in the form that is read strictly: of examples, training rows, baselines."""
    if isinstance(answer, LabelsAnswer):
        return ", ".join(value) if value else answer.none
    if isinstance(answer, ScoreAnswer):  # to six places; no exponent, which no reader expects
        text = f"{value:.6f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text
    if isinstance(answer, SpansAnswer | PairsAnswer):
        return json.dumps(value, ensure_ascii=False)
    return str(value[0] if isinstance(value, list) else value)  # of several texts the first
