"""From a reply in words to the answer in it, by rules that depend on the right answer's form.

    number  after "####", else after the last "answer is", else a first paragraph that is nothing
            but a number, else the last number; 1,000 is 1000.0, and 16-3 holds 16 and 3
    letter  after the last "answer is" the option "(B)", else a lone letter; without one, the last
            letter in brackets, else a reply that begins with a lone letter
    closed  (yes, no, true, false) the word that the text after "answer is" begins with; without
            one, the reply or its last line
    text    after the last "answer is", else the last line with words, if it is short; compared
            without case, punctuation, articles and blanks; what is said after the right answer, in
            another sentence or after "because", does not count

The form is the target's: digits, one letter in brackets, one of the four words, or anything else.
Closing courtesies ("Let me know if ...") are no part of an answer.
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?:(?<![\w)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\d)\.\d+)")
_LETTER = re.compile(r"\(([A-Za-z])\)")
_ALONE = re.compile(r"^\W*([A-Z])(?:\W|$)")
_SAYS = re.compile(r"answer\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)
_CLOSED = re.compile(r"\W*(yes|no|true|false)\b", re.IGNORECASE)
_COURTESY = re.compile(
    r"^\W*(?:(?:please )?let me know|(?:please )?feel free|(?:i )?hope (?:this|that|it)|"
    r"if you (?:have|need|would|want)|is there anything|do you have any|would you like)\b",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"[.!?;:]|,?\s*(?:because|since|as)\b|\s[-\u2013\u2014]")  # after the answer
_SHORT = 8  # words of a line that is taken for an answer by itself
_NARROW = 80  # characters of one, for scripts without blanks


def form(target: str) -> str:
    """number, letter, closed or text."""
    text = target.strip()
    if _NUMBER.fullmatch(text.removeprefix("$").replace(" ", "")):
        return "number"
    if _LETTER.fullmatch(text):
        return "letter"
    return "closed" if _CLOSED.fullmatch(text.rstrip(".! ")) else "text"


def extract(reply: str, target: str) -> str | None:
    """The answer that `reply` gives, in the form of `target`, normalised; None when it has none."""
    reply = _without_courtesy(reply)
    said = _SAYS.split(reply)
    tail = said[-1] if len(said) > 1 else None
    kind = form(target)
    if kind == "number":
        return _number(reply, tail)
    if kind == "letter":
        return _letter(reply, tail)
    lines = [line for line in reply.split("\n") if normal_text(line)]
    if kind == "closed":
        for part in (reply, *lines[-1:]) if tail is None else (tail,):
            if found := _CLOSED.match(part):
                return found.group(1).casefold()
    if tail is not None and normal_text(tail.split("\n")[0]):
        return _text(tail.split("\n")[0], target)
    if not lines:
        return None
    found_text = _text(lines[-1], target)
    short = len(lines[-1].split()) <= _SHORT and len(lines[-1]) <= _NARROW
    return found_text if short or found_text == normal_text(target) else None


def _number(reply: str, tail: str | None) -> str | None:
    first = reply.strip().split("\n\n")[0].strip("*_$ .")
    marked = [reply.rpartition("####")[2]] if "####" in reply else []
    alone = [first] if _NUMBER.fullmatch(first) else []
    for part in (*marked, *([] if tail is None else [tail]), *alone):
        if found := _NUMBER.search(part):
            return normal_number(found.group())
    numbers = _NUMBER.findall(reply)
    return normal_number(numbers[-1]) if numbers else None


def _letter(reply: str, tail: str | None) -> str | None:
    places = [] if tail is None else [(tail, 0)]
    for text, place in (*places, (reply.strip(), -1)):
        inside = _LETTER.findall(text)
        if inside:
            return str(inside[place]).upper()
        if alone := _ALONE.match(text):
            return alone.group(1)
    return None


def _text(said: str, target: str) -> str:
    """`said`, or the target where it says that first and then something beside it."""
    text, right = normal_text(said), normal_text(target)
    rest = text.removeprefix(right)
    return right if right and rest != text and _ASIDE.match(rest) else text


def _without_courtesy(reply: str) -> str:
    """The reply up to the closing courtesies, unless it is nothing else."""
    lines = reply.rstrip().split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or _COURTESY.match(lines[-1])):
        lines.pop()
    return "\n".join(lines)


def wanted(target: str) -> str:
    """The target, normalised the same way."""
    kind = form(target)
    if kind == "number":
        return normal_number(target.strip().removeprefix("$").replace(" ", ""))
    if kind == "letter":
        return target.strip()[1].upper()
    return normal_text(target)


def normal_number(text: str) -> str:
    """1,000.50 and 1000.5 are one number, +3 and 3 too."""
    plain = text.replace(",", "").lstrip("+")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    sign, digits = ("-", plain[1:]) if plain.startswith("-") else ("", plain)
    whole, point, rest = digits.partition(".")
    digits = (whole.lstrip("0") or "0") + point + rest
    return digits if digits == "0" else sign + digits


def normal_text(text: str) -> str:
    """Words and signs without case, blanks, articles and closing punctuation."""
    kept = re.sub(r"\b(a|an|the)\b", " ", text.casefold())
    kept = " ".join(kept.split()).strip("\"'`*_ ")
    return kept.rstrip(".!,;: ").strip("\"'`*_ ")
