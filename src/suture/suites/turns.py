"""Questions of several turns for engines elsewhere: what is asked next, and what came of it.

The k-th turn of an item is called ITEM#k; its reply comes back under that name. An engine that goes
through all turns by itself may give just the last reply, under the item's own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.ledger import ReplyRow
from suture.progress import note

if TYPE_CHECKING:
    from suture.suites.common import Suite


def turn_name(item: str, number: int) -> str:
    """What the reply to turn `number` (from 1) of an item of several turns is called."""
    return f"{item}#{number}"


def check_names(suite: Suite, items: Sequence[Any]) -> None:
    """Refuse (E595) an item that is called as a turn of another one is."""
    conversation = getattr(suite, "conversation", None)
    known = {item.id for item in items}
    if conversation is None or not any("#" in name for name in known):
        return
    for item in items:
        for name in _names(item.id, conversation(item)[1]):
            if name != item.id and name in known:
                raise SutureError(
                    "E595",
                    f"the item '{name}' is called as a turn of '{item.id}' is",
                    where="--data",
                    why="a reply of this name would count for both",
                    fix="give one of the two records another id, without '#'",
                )


def check_replies(
    suite: Suite, items: Sequence[Any], replies: Sequence[ReplyRow], path: Path
) -> None:
    """Refuse (E594) replies to other questions, where the file says what was asked (`prompt`, alone
    or within more text, as templates write it); a line about replies to nothing that is asked."""
    asked: dict[str, list[str]] = {}
    for item in items:
        texts, turns = [item.prompt], []
        if (conversation := getattr(suite, "conversation", None)) is not None:
            turns = list(conversation(item)[1])
        elif (as_asked := getattr(suite, "as_asked", None)) is not None:
            texts.append(str(as_asked(item).get("prompt") or ""))
        asked[item.id] = [*texts, *turns]
        if len(turns) > 1:
            asked |= {turn_name(item.id, k): [*texts, turn] for k, turn in enumerate(turns, 1)}
    for reply in replies:
        wanted = [" ".join(text.split()) for text in asked.get(reply.item, ())]
        said = " ".join(reply.prompt.split())
        if said and wanted and not any(text and text in said for text in wanted):
            raise SutureError(
                "E594",
                f"the reply to '{reply.item}' answers another question than the one that is asked",
                where=str(path),
                why="its `prompt` is not what the item asks with these data and options",
                fix="give the data and the --set options that the replies were made with, or "
                "replies to these questions",
            )
    if strange := [reply.item for reply in replies if reply.item not in asked]:
        note(f"{path.name}: {len(strange)} of {len(replies)} replies are to nothing that is asked "
             f"here, the first is to '{strange[0]}'")  # fmt: skip


def open_turn(suite: Suite, item: Any, said: Mapping[str, ReplyRow]) -> dict[str, Any] | None:
    """The first turn of an item that has no reply yet, None where all are answered.

    `item` and `prompt`; `messages`, the conversation up to it, where anything stands before it;
    `then`, the user turns that follow, where there are any. E592: a later turn has a reply already.
    """
    if item.id in said:
        return None
    conversation = getattr(suite, "conversation", None)
    if conversation is None:
        as_asked = getattr(suite, "as_asked", None)
        return {
            "item": item.id,
            **({"prompt": item.prompt} if as_asked is None else as_asked(item)),
        }
    start, turns = conversation(item)
    names = _names(item.id, turns)
    here = next((k for k, name in enumerate(names) if name not in said), None)
    if here is None:
        return None
    if early := [name for name in names[here:] if name in said]:
        raise SutureError(
            "E592",
            f"'{early[0]}' has a reply, and '{names[here]}', which comes before it, has none",
            where="--replies",
            fix="give the replies to all earlier turns in the same file",
        )
    messages = [dict(message) for message in start]
    for name, turn in zip(names[:here], turns, strict=False):
        messages.append({"role": "user", "content": turn})
        messages.append({"role": "assistant", "content": said[name].reply})
    messages.append({"role": "user", "content": turns[here]})
    row: dict[str, Any] = {"item": names[here], "prompt": turns[here]}
    row |= {"messages": messages} if len(messages) > 1 else {}
    return row | ({"then": list(turns[here + 1 :])} if turns[here + 1 :] else {})


def last_reply(suite: Suite, item: Any, said: Mapping[str, ReplyRow]) -> ReplyRow | None:
    """The reply that counts: under the item's own name, or to the last of its turns, if all have
    one; cut off in any turn counts as not ended."""
    conversation = getattr(suite, "conversation", None)
    if item.id in said or conversation is None:
        return said.get(item.id)
    names = _names(item.id, conversation(item)[1])
    if any(name not in said for name in names):
        return None
    own = [said[name] for name in names]
    ended = all(reply.ended for reply in own)
    return ReplyRow(item.id, item.prompt, own[-1].reply, ended, own[-1].tokens)


def _names(item: str, turns: list[str]) -> list[str]:
    if len(turns) == 1:
        return [item]
    return [turn_name(item, number) for number in range(1, len(turns) + 1)]
