"""Questions of several turns: each user turn follows the reply to the one before.

Whoever can be asked has `converse`: a model loaded here (`LoadedModel`), or an address
(`suture.inference.endpoint.Client`), so that one chain of turns serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.inference.generation import Reply

Message = Mapping[str, Any]  # {"role", "content"}, and "image" (a path) where one is shown


@runtime_checkable
class Talker(Protocol):
    """What takes conversations and says the next turn of each. `sees`: images, too."""

    @property
    def sees(self) -> bool: ...

    def converse(
        self, conversations: Sequence[Sequence[Message]], *, max_new_tokens: int
    ) -> list[Reply]: ...


def ask_turns(
    lm: LoadedModel | Talker,
    starts: Sequence[Sequence[Message]],
    turns: Sequence[Sequence[str]],
    max_new_tokens: int,
    *,
    images: Sequence[Path | None] | None = None,
) -> list[list[Reply]]:
    """The reply to each turn of each item: result[i][k] answers turns[i][k].

    `starts`: what stands before (solved examples, a system message), may be empty. `turns`: user
    turns of each item; items may have different numbers of them. All items go forward together, one
    turn at a time, so a batch is as large as there are items. `images`: shown with an item's first
    turn, if the one that is asked sees. Raises TooLongError E506 for a conversation that does not
    fit, with the item's place in `row`.
    """
    from suture.errors import TooLongError

    spoken: list[list[Message]] = [[dict(message) for message in start] for start in starts]
    found: list[list[Reply]] = [[] for _ in turns]
    sees = getattr(lm, "sees", False)
    for k in range(max((len(own) for own in turns), default=0)):
        now = [i for i, own in enumerate(turns) if k < len(own)]
        for i in now:
            message: dict[str, Any] = {"role": "user", "content": turns[i][k]}
            image = images[i] if images is not None and sees and k == 0 else None
            spoken[i].append(message if image is None else {**message, "image": image})
        try:
            replies = _converse(lm, [spoken[i] for i in now], max_new_tokens)
        except TooLongError as error:
            error.row = now[error.row]
            raise
        for i, reply in zip(now, replies, strict=True):
            spoken[i].append({"role": "assistant", "content": reply.text})
            found[i].append(reply)
    return found


def _converse(
    lm: LoadedModel | Talker, conversations: list[list[Message]], max_new_tokens: int
) -> list[Reply]:
    from suture.inference.generation import converse

    if isinstance(lm, Talker):
        return lm.converse(conversations, max_new_tokens=max_new_tokens)
    return converse(lm, conversations, max_new_tokens=max_new_tokens)
