"""Replies to answers: strictly, else leniently, else not at all; which of the three is counted.

Strict: the reply is the answer and nothing else, up to case, quotes, brackets and a full stop.
Lenient: the answer is found in what is said around it. A label counts where it is said, not where
it is denied ("not positive") or a part of another word ("non-negative"); two labels in one reply
are none, unless one of them is called the answer. JSON may be followed by text. Pieces of the text
are moved to how they stand there. What is found nowhere in the text stays as it was said, and
counts as wrong. Straight and typographic apostrophes are one; thoughts (`suites.thinking`) are no
part of a reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from suture.data.tasks.record import Record
from suture.suites.tasks.spec import (
    Answer,
    LabelAnswer,
    LabelsAnswer,
    PairsAnswer,
    Part,
    ScoreAnswer,
    SpansAnswer,
)
from suture.suites.thinking import answer_of

How = Literal["strict", "lenient", "failed"]
_AROUND = " \t\r\n\"'`*_.,;:!()[]{}<>“”‘’«»"
_NUMBER = r"[-+−]?\d+(?:\.\d+)?|[-+−]?\.\d+"
_WITHIN = re.compile(rf"(?<![\w.])(?:(?:{_NUMBER})(?:[eE][-+]?\d+)?)(?!\w|\s*%)")
_MINUS = re.compile(r"\b(?:minus|negative)\s+(?=\.?\d)", re.IGNORECASE)
_MARK = re.compile(
    r"\b(?:final answer|answer|label|sentiment|emotion|polarity|category|score|rating|verdict)"
    r"\b[^\w\n]*?(?:\bis\b|:|=|->|→|\bwould be\b)[^\w\n+.−-]*",
    re.IGNORECASE,
)
_CLAUSE_LENGTH = 200  # characters in which a denial is looked for
_CLAUSE = re.compile(r"[.;:!?,\n]|(?<!anything )\bbut\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"(?:\b(?:not|never|no|non|none|neither|nor|cannot|without|hardly|lack(?:s|ing)?|far from|"
    r"anything but|rather than|instead of|(?:is|are|was|were|do|does|did|would|could)nt)\b|n't\b)"
    r"(?!\s+(?:only|just|merely|simply|(?:(?:a|any)\s+)?doubt)\b)(?:\s+[\w'-]+){0,3}\s*[\"'`*“‘]*$",
    re.IGNORECASE,
)
_DENIED = re.compile(r"[\"'`*]*\s*[:=]\s*[\"'`*]*(?:no|none|false|0)(?![\w.]|\s+doubt\b)")
_TRIES = 100  # brackets that open nothing, before the rest is taken for noise
_OPENING = re.compile(r"[\[{]")
_FENCE = re.compile(r"```(?:json)?")


@dataclass(frozen=True)
class Parsed:
    """An answer and how it was read; None where it could not be. `unaligned`: pieces that do not
    occur in the text."""

    value: Any
    how: How
    unaligned: int = 0


FAILED = Parsed(None, "failed")


def parse(answer: Answer, reply: str, record: Record) -> Parsed:
    """What `reply` answers. The value: a label; a list of labels; a number; a list of texts; a list
    of tuples as lists; a text."""
    reply = answer_of(reply).strip()
    if isinstance(answer, LabelAnswer):
        return _label(answer, straight(reply))
    if isinstance(answer, LabelsAnswer):
        return _labels(answer, straight(reply))
    if isinstance(answer, ScoreAnswer):
        return _score(answer, straight(reply))
    if isinstance(answer, SpansAnswer):
        return _tuples([Part(name="piece", kind="span")], reply, record, bare=True)
    if isinstance(answer, PairsAnswer):
        return _tuples(answer.parts, reply, record, bare=False)
    return Parsed(reply, "strict") if reply else FAILED


def words_for(labels: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What may be said, in lower case and with straight apostrophes, to the label it means."""
    found = {_small(label): label for label in labels}
    for label, words in synonyms.items():
        found |= {_small(word): label for word in words}
    return found


def straight(text: str) -> str:
    """With straight apostrophes, as keyboards have them."""
    return text.replace("’", "'")


def _small(text: str) -> str:
    return straight(text).casefold()


def _exact(words: Mapping[str, str], said: str) -> str | None:
    """The label that `said` is, whatever marks stand around it or around the label ("N/A.")."""
    bare = _bare(said)
    for key in (said.strip().casefold(), bare):
        if key in words:
            return words[key]
    meant = {label for word, label in words.items() if bare and _bare(word) == bare}
    return meant.pop() if len(meant) == 1 else None


def _label(answer: LabelAnswer, reply: str) -> Parsed:
    words = words_for(answer.labels, answer.synonyms)
    if (label := _exact(words, reply)) is not None:
        return Parsed(label, "strict")
    for text in _answers(reply):
        said = set(_mentions(words, text))
        if len(said) == 1:
            return Parsed(said.pop(), "lenient")
    return FAILED


def _labels(answer: LabelsAnswer, reply: str) -> Parsed:
    words = words_for(answer.labels, answer.synonyms)
    none = _small(answer.none)
    listed = [one for one in re.split(r"[,;\n]", reply.strip("[] \n")) if _bare(one)]
    if len(listed) == 1 and _exact({none: none}, listed[0]):
        return Parsed([], "strict")
    labels = [_exact(words, one) for one in listed]
    if labels and None not in labels:
        return Parsed(_in_order(set(filter(None, labels)), answer.labels), "strict")
    for text in _answers(reply):
        said = set(_mentions(words, text))
        if said:
            return Parsed(_in_order(said, answer.labels), "lenient")
        if set(_mentions({none: none}, text)):
            return Parsed([], "lenient")
    return FAILED


def _score(answer: ScoreAnswer, reply: str) -> Parsed:
    bare = reply.strip(_AROUND.replace(".", "")).rstrip(".")
    if re.fullmatch(_NUMBER, bare):
        value = _number(bare)
        within = answer.low <= value <= answer.high
        return Parsed(_moved(answer, value), "strict" if within else "lenient")
    for text in _answers(_MINUS.sub("-", reply)):
        found = {_number(one) for one in _WITHIN.findall(text)}
        if len(found) == 1:
            return Parsed(_moved(answer, found.pop()), "lenient")
    return FAILED


def _moved(answer: ScoreAnswer, value: float) -> float:
    return min(max(value, answer.low), answer.high)


def _number(text: str) -> float:
    return float(text.replace("−", "-"))


def _answers(reply: str) -> Iterator[str]:
    """Where a lenient reader looks: what follows the last "the answer is", then all of it."""
    marks = list(_MARK.finditer(reply))
    if marks:
        yield reply[marks[-1].end() :].split("\n")[0]
    yield reply


def _mentions(words: Mapping[str, str], text: str) -> Iterator[str]:
    """Labels that `text` says and does not deny; the longest word first where they overlap. A part
    of a compound (non-negative, negative-free) is not said, nor is the no of "no doubt"."""
    text = text.casefold()
    ordered = sorted(words, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w)(?<!\w-){re.escape(word)}(?!-?\w|\s+doubt\b)" for word in ordered)
    for found in re.finditer(pattern, text):
        before = _CLAUSE.split(text[max(0, found.start() - _CLAUSE_LENGTH) : found.start()])[-1]
        if not _NEGATION.search(before) and not _DENIED.match(text, found.end()):
            yield words[found[0]]


def _bare(text: str) -> str:
    return text.strip(_AROUND).casefold()


def _in_order(said: set[str], labels: Sequence[str]) -> list[str]:
    return [label for label in labels if label in said]


def _tuples(parts: Sequence[Part], reply: str, record: Record, *, bare: bool) -> Parsed:
    """A JSON list, of texts where `bare`, else of lists."""
    try:
        whole = json.loads(reply)
    except (ValueError, RecursionError):
        whole = None
    strict = _read(parts, whole, record, bare=bare, lenient=False)
    if strict is not None:
        return Parsed(strict[0], "strict", strict[1])
    candidates: list[Any] = [_folded(whole, parts)] if isinstance(whole, list | dict) else []
    candidates += [_folded(found, parts) for found in _json_lists(_FENCE.sub(" ", reply))]
    for content in candidates:
        found = _read(parts, content, record, bare=bare, lenient=True)
        if found is not None:
            return Parsed(found[0], "lenient", found[1])
    if bare and "[" not in reply and (lines := _lines(reply)):  # a list cut off is none
        pieces = [_aligned(line, record.text, True) for line in lines]
        if all(ok for _, ok in pieces):  # prose is no list
            return Parsed(_once([piece for piece, _ in pieces]), "lenient")
    return FAILED


def _read(
    parts: Sequence[Part], content: Any, record: Record, *, bare: bool, lenient: bool
) -> tuple[list[Any], int] | None:
    """(tuples, pieces that are not in the text); None where it has another form."""
    if not isinstance(content, list):
        return None
    found, strange = [], 0
    for row in content:
        row = [row] if bare and not isinstance(row, list) else row
        if not isinstance(row, list) or len(row) != len(parts):
            return None
        values = []
        for part, value in zip(parts, row, strict=True):
            read = _place(part, value, record, lenient)
            if read is None:
                return None
            values.append(read[0])
            strange += not read[1]
        found.append(values[0] if bare else values)
    return _once(found), strange


def _place(part: Part, value: Any, record: Record, lenient: bool) -> tuple[Any, bool] | None:
    """(value, whether it stands in the text) of one place of a tuple."""
    if part.kind == "number":
        if lenient and isinstance(value, str) and re.fullmatch(r"\D{0,12}\d+", value.strip()):
            value = int(re.sub(r"\D", "", value))
        return (value, True) if isinstance(value, int) and not isinstance(value, bool) else None
    if not isinstance(value, str):
        return None
    if part.kind == "label":
        words = words_for(part.labels, part.synonyms)
        said = _exact(words, straight(value)) if lenient else words.get(_small(value))
        return None if said is None else (said, True)
    if part.implicit is not None and _small(value) == _small(part.implicit):
        return part.implicit, True
    return _aligned(value, record.text, lenient)


def _aligned(piece: str, text: str, lenient: bool) -> tuple[str, bool]:
    """A piece as it stands in the text, whatever its blanks; leniently, whatever its case and the
    marks around it."""
    tries: list[tuple[str, int]] = [(piece, 0)]
    if lenient:
        tries += [(piece, re.IGNORECASE), (piece.strip(_AROUND), re.IGNORECASE)]
    for said, flags in tries:
        words = said.split()
        pattern = (r"\s*" if lenient else r"\s+").join(re.escape(word) for word in words)
        pattern = re.sub("['’]", "['’]", pattern)
        if words and (found := re.search(rf"(?<!\w){pattern}(?!\w)", text, flags)):
            return " ".join(found[0].split()), True
    return " ".join(piece.split()), False


def _once(values: list[Any]) -> list[Any]:
    """Without repetitions, in order."""
    seen = {json.dumps(value): value for value in reversed(values)}
    return [seen[key] for key in dict.fromkeys(json.dumps(value) for value in values)]


def _json_lists(text: str) -> Iterator[Any]:
    """Every JSON list or object in `text`, from the left, not inside another."""
    decoder, at, tries = json.JSONDecoder(), 0, 0
    while tries < _TRIES and (found := _OPENING.search(text, at)):
        try:
            value, at = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            at, tries = found.end(), tries + 1
            continue
        yield value


def _folded(value: Any, parts: Sequence[Part]) -> Any:
    """Objects keyed by the names of the parts as lists; {"answer": [...]} opened."""
    if isinstance(value, dict):
        if all(part.name in value for part in parts):
            return [[value[part.name] for part in parts]]
        lists = [one for one in value.values() if isinstance(one, list)]
        return _folded(lists[0], parts) if len(value) == 1 and lists else None
    if isinstance(value, list):
        rows = [
            [row[part.name] for part in parts]
            if isinstance(row, dict) and all(part.name in row for part in parts)
            else row
            for row in value
        ]
        single = (
            len(parts) > 1
            and len(rows) == len(parts)
            and not any(isinstance(row, list) for row in rows)
        )
        return [rows] if single else rows
    return None


def _lines(reply: str) -> list[str]:
    """A list that somebody wrote as lines or with commas; "none" is an empty one in words, which is
    no list."""
    lines = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line) for line in reply.splitlines()]
    lines = [line for line in lines if line.strip(_AROUND)]
    return lines if len(lines) > 1 else [one for one in reply.split(",") if one.strip(_AROUND)]
