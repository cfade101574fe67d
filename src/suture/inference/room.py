"""Whether what is to be read fits a model's context."""

from __future__ import annotations

from collections.abc import Sequence

from suture.errors import TooLongError


def check_room(
    lengths: Sequence[int],
    context: int | None,
    what: str,
    *,
    where: str,
    extra: int = 0,
    of: Sequence[int] | None = None,
) -> None:
    """Refuse (TooLongError E506) rows of so many tokens that the context does not hold.

    `context`: tokens of prompt and reply together, None where the model does not say. `extra`:
    tokens that follow each row. `what`: a row, in words; `where`: the model. `of`: for each row the
    place of what it belongs to, where that is not its own.
    """
    longest = max(range(len(lengths)), key=lambda row: lengths[row], default=0)
    length = lengths[longest] + extra if lengths else 0
    if context is None or length <= context:
        return
    long = sum(one + extra > context for one in lengths)
    new = f", {extra} of them new," if extra else ""
    error = TooLongError(
        "E506",
        f"{what} takes {length} tokens{new} and the context of this model holds {context}"
        + (f"; {long} of {len(lengths)} rows are too long" if long > 1 else ""),
        where=where,
        why="beyond its context a model's output means nothing",
        fix="shorten it or leave it out"
        + (f", or ask for fewer new tokens (now {extra})" if extra else ""),
    )
    error.row = longest if of is None else of[longest]
    raise error
