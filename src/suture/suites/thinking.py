"""Models that think aloud: what they say behind their thoughts."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"


def answer_of(reply: str) -> str:
    """The reply without what stands before the last `</think>`, whether or not `<think>` opened it
    (some templates do). Nothing, where the reply ends within its thoughts."""
    thoughts, close, said = reply.rpartition(_CLOSE)
    if close:
        return said.strip()
    return "" if thoughts == "" and reply.lstrip().startswith(_OPEN) else reply
