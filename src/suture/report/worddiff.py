"""The word difference of two replies, for marking what went out and what came in.

Words are runs of letters and digits with their inner apostrophes and combining marks; scripts
written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar) are compared character by character,
a combining mark staying with its base. Whitespace and punctuation are tokens of their own, so that
joining the tokens gives the text back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "del", "ins"]

_SINGLE = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Myanmar, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # radicals, kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_MARKS = (
    "\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece"
    "\u102b-\u103e\u17b4-\u17d3\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
)
_TOKEN = re.compile(
    rf"\s+|[{_SINGLE}][{_MARKS}\u200d]*"
    rf"|(?:(?![{_SINGLE}])\w[{_MARKS}\u200c\u200d]*)+(?:['’](?:(?![{_SINGLE}])\w)+)*"
    rf"|.[{_MARKS}\u200d]*",
    re.DOTALL,
)
_CELLS = 400_000  # compared token pairs beyond which the middle is shown as replaced whole


@dataclass(frozen=True)
class Segment:
    """A run of text: in both replies (`same`), only before (`del`), only after (`ins`)."""

    kind: Kind
    text: str


def tokens(text: str) -> list[str]:
    """Words, single characters of unspaced scripts, whitespace runs, signs; they join to `text`."""
    return _TOKEN.findall(text)


def word_diff(before: str, after: str) -> list[Segment]:
    """Segments whose `same` + `del` join to `before` and whose `same` + `ins` join to `after`.

    Common beginnings and ends are matched first. A middle of more than 400,000 token pairs is
    given as one deletion and one insertion, which bounds the time for degenerate replies.
    """
    a, b = tokens(before), tokens(after)
    head = _common(a, b)
    tail = _common(a[head:][::-1], b[head:][::-1])
    segments = [("same", a[:head])]
    middle_a, middle_b = a[head : len(a) - tail], b[head : len(b) - tail]
    if len(middle_a) * len(middle_b) > _CELLS:
        segments += [("del", middle_a), ("ins", middle_b)]
    else:
        matcher = SequenceMatcher(None, middle_a, middle_b, autojunk=False)
        for tag, a0, a1, b0, b1 in matcher.get_opcodes():
            if tag == "equal":
                segments.append(("same", middle_a[a0:a1]))
            else:
                segments += [("del", middle_a[a0:a1]), ("ins", middle_b[b0:b1])]
    segments.append(("same", a[len(a) - tail :] if tail else []))
    return _merge(segments)


def before_side(segments: Sequence[Segment]) -> list[Segment]:
    """What the *before* column shows: everything but the insertions."""
    return [segment for segment in segments if segment.kind != "ins"]


def after_side(segments: Sequence[Segment]) -> list[Segment]:
    """What the *after* column shows: everything but the deletions."""
    return [segment for segment in segments if segment.kind != "del"]


def change(before: str, after: str) -> float:
    """Share of words that differ, 0 (same) to 1 (nothing in common); whitespace is not counted."""
    kept = gone = 0
    for segment in word_diff(before, after):
        words = sum(not token.isspace() for token in tokens(segment.text))
        if segment.kind == "same":
            kept += 2 * words
        else:
            gone += words
    return gone / (kept + gone) if kept + gone else float(before != after)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    n = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        n += 1
    return n


def _merge(pieces: Sequence[tuple[str, Sequence[str]]]) -> list[Segment]:
    """Join neighbours of one kind; a lone space or sign between two changes joins them.

    Without that, "the old cat" → "a new dog" would show three stripes instead of one. What stands
    between is then both deleted and inserted, which keeps both sides exact.
    """
    merged: list[Segment] = []
    gone: list[str] = []
    came: list[str] = []

    def flush() -> None:
        for kind, parts in (("del", gone), ("ins", came)):
            if parts:
                merged.append(Segment("del" if kind == "del" else "ins", "".join(parts)))
        gone.clear()
        came.clear()

    filled = [(kind, "".join(parts)) for kind, parts in pieces if parts]
    following = [*(kind for kind, _ in filled[1:]), "same"][: len(filled)]  # nothing: nothing
    for (kind, text), upcoming in zip(filled, following, strict=True):
        if kind == "del":
            gone.append(text)
        elif kind == "ins":
            came.append(text)
        elif gone and came and upcoming != "same" and _slight(text):
            gone.append(text)
            came.append(text)
        else:
            flush()
            if merged and merged[-1].kind == "same":
                merged[-1] = Segment("same", merged[-1].text + text)
            else:
                merged.append(Segment("same", text))
    flush()
    return merged


def _slight(text: str) -> bool:
    """Spaces and punctuation within a line: nothing a reader would call kept."""
    return "\n" not in text and not any(sign.isalnum() for sign in text)
