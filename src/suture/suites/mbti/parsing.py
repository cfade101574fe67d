"""From a reply to a number or a side, and how sure the reading is.

Every reply is read twice, strictly (the form asked for, as MBTIBench reads it) and leniently, and
both coverages are reported: an unreadable soft answer would count as 0.5, which is close to the
constant predictor, so that a model that never answers would look good.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from suture.suites.mbti.dimensions import Dimension
from suture.suites.thinking import answer_of

MIDDLE = 0.5  # what an unread soft answer counts as
THIRD = 2.0  # the class of an unread hard answer in the released code
_NUMBER = r"(10|\d)(\.\d{1,3})?"
_DOUBLE = re.compile(rf"\[\[{_NUMBER}\]\]")
_SINGLE = re.compile(rf"\[{_NUMBER}\]")
_NAMED = re.compile(
    rf"\b(?:score|rating|answer)\b\W{{0,6}}(?:is|of|:|=)?\W{{0,6}}{_NUMBER}(?![\d.]*\d)", re.I
)
_OF_NINE = re.compile(rf"(?<![\d.]){_NUMBER}\s*(?:/|out of)\s*9\b", re.I)
_ANY = re.compile(r"-?\d+(?:\.\d+)?")
_NOT = re.compile(r"\b(?:not|no|never|neither|nor|isn't|than|less)\b")
_SHORT = 8  # words of a reply in which naming a pole is an answer
EDGES = [k * (1 / 9) for k in range(9)] + [1.0]  # np.linspace(0, 1, 10)


def score(reply: str) -> float | None:
    """The score asked for: the only `[[x]]`, else the only `[x]`; x in 0 to 10 with at most three
    decimals, not clipped. None: there is none, or there are two that differ."""
    found = _bracketed(reply)
    return found[0] if len(set(found)) == 1 else None


def first_score(reply: str) -> float | None:
    """The same as the released code reads it: the first of several counts."""
    return next(iter(_bracketed(reply)), None)


def _bracketed(reply: str) -> list[float]:
    said = answer_of(reply)
    found = _DOUBLE.findall(said) or _SINGLE.findall(said)
    return [float(whole + part) for whole, part in found]


def lenient_score(reply: str) -> float | None:
    """`score`, else a number that is named as the score, is given "of 9", or stands alone in the
    reply; 1 to 9 only, and never two different ones (inferred)."""
    if _bracketed(reply):
        return score(reply)
    reply = answer_of(reply)
    for pattern in (_NAMED, _OF_NINE):
        found = {float(m[1] + (m[2] or "")) for m in pattern.finditer(reply)}
        if found:
            return _in_range(found)
    return _in_range({float(number) for number in _ANY.findall(reply)})


def _in_range(found: set[float]) -> float | None:
    if len(found) != 1:
        return None
    value = found.pop()
    return value if 1 <= value <= 9 else None


def soft_value(number: float, *, clip: bool = True) -> float:
    """(x - 1)/8; `clip`: into [0, 1], which the released code does not do."""
    value = (number - 1) / 8
    return min(max(value, 0.0), 1.0) if clip else value


def bin_of(value: float) -> int:
    """Ten edges from 0 to 1 make nine bins, 0 to 8, but exactly 1.0 falls into bin 9: the released
    binning, kept, since every published figure stands on it."""
    return bisect_right(EDGES, value) - 1


def side(reply: str, dimension: Dimension) -> int | None:
    """0 the first pole, 1 the second: the whole reply, lower-cased, is `choice: a`, `choice: <a>`,
    or the letter of the pole in the same form. None: anything else."""
    text = answer_of(reply).lower()
    for value, (option, pole) in enumerate((("a", dimension.first), ("b", dimension.second))):
        for word in (option, pole.letter.lower()):
            if text in (f"choice: {word}", f"choice: <{word}>"):
                return value
    return None


def lenient_side(reply: str, dimension: Dimension) -> int | None:
    """`side`, else the only choice named anywhere, a bare letter, or the only pole that a short
    reply without a negation names (inferred)."""
    strict = side(reply, dimension)
    if strict is not None:
        return strict
    a, b = dimension.first.letter.lower(), dimension.second.letter.lower()
    sides = {"a": 0, a: 0, "b": 1, b: 1}
    text = answer_of(reply).lower()
    named = {sides[m] for m in re.findall(rf"choice\W{{1,6}}([ab{a}{b}])\b", text)}
    if named:
        return named.pop() if len(named) == 1 else None
    bare = re.sub(r"[^a-z]", " ", text).split()
    if len(bare) == 1 and bare[0] in sides:
        return sides[bare[0]]
    poles = {
        value
        for value, pole in enumerate((dimension.first, dimension.second))
        for word in pole.words
        if re.search(rf"\b{word}\b", text)
    }
    short = len(text.split()) <= _SHORT and not _NOT.search(text)
    return poles.pop() if len(poles) == 1 and short else None
