"""What can stand in for a model: an address that answers, or a baseline that needs no model.

    --model endpoint:url=URL,model=NAME[,key_env=VARIABLE]    an OpenAI-compatible address
    --model baseline:NAME[,seed=0]                            majority, tf-idf, ... as the suite has

A checkpoint with image input answers in the same way, so that pictures need no endpoint. All give
replies, which go through the suite's own parser and metrics, so that a baseline stands
in the same table, with the same intervals, as a model.

A suite may have for them:

    conversation(item)   (messages before, user turns) of an item; default: its prompt
    picture(item)        path of the image that belongs to it, or None
    baselines            names that `baseline` takes
    baseline(name, items, *, seed) -> replies in the form that the suite's answers have
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from suture.config import named_options
from suture.errors import SutureError, nearest
from suture.ledger import ReplyRow
from suture.suites.assembling import declared, traced
from suture.suites.common import naming
from suture.suites.tasks.asking import Message, ask_turns

if TYPE_CHECKING:
    from suture.inference import LoadedModel, Precision
    from suture.inference.endpoint import Address
    from suture.inference.pictures import LookingModel
    from suture.suites.common import Suite
    from suture.suites.tasks.asking import Talker

KINDS = ("endpoint", "baseline")
_ELSEWHERE = {"elsewhere": True}  # a chat template that is not ours to know


@runtime_checkable
class Answerer(Protocol):
    """Answers items of a suite in the model's stead.

    `identity` and `template`: the measurement's `model` and `template`.
    """

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def template(self) -> dict[str, Any]: ...

    def answer(
        self, suite: Suite, items: Sequence[Any], *, max_new_tokens: int
    ) -> list[ReplyRow]: ...


@dataclass(frozen=True)
class Baseline:
    """A suite's own baseline: what anything that reads the text should beat."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=lambda: dict(_ELSEWHERE))

    @property
    def identity(self) -> dict[str, Any]:
        return {**declared(f"baseline:{self.name}"), **({"seed": 0} | dict(self.options))}

    def answer(self, suite: Suite, items: Sequence[Any], *, max_new_tokens: int) -> list[ReplyRow]:
        """The suite's replies (E575: it has no such baseline)."""
        known: Sequence[str] = getattr(suite, "baselines", ())
        if self.name not in known:
            close = nearest(self.name, known)
            told = f"there are: {', '.join(known)}" if known else "measure a checkpoint's folder"
            raise SutureError(
                "E575",
                f"the suite {suite.name} has no baseline '{self.name}'",
                where="--model",
                fix=f"did you mean 'baseline:{close}'?" if close else told,
            )
        reply = getattr(suite, "baseline")  # noqa: B009
        said: list[str] = reply(self.name, items, **({"seed": 0} | dict(self.options)))
        return [
            ReplyRow(item.id, item.prompt, text, True, len(text.split()))
            for item, text in zip(items, said, strict=True)
        ]


@dataclass(frozen=True)
class Remote:
    """An address that answers. `cache`: folder of its answers; nothing in it is asked again."""

    address: Address
    cache: Path | None = None
    template: dict[str, Any] = field(default_factory=lambda: dict(_ELSEWHERE))

    @property
    def identity(self) -> dict[str, Any]:
        return {"url": self.address.url, **declared(self.address.model)}

    def answer(self, suite: Suite, items: Sequence[Any], *, max_new_tokens: int) -> list[ReplyRow]:
        """Every item's replies, turn by turn (E538, E576)."""
        from suture.inference.endpoint import Client
        from suture.inference.memory import AnswerCache

        kept = None
        if self.cache is not None:
            kept = AnswerCache(self.cache, {"url": self.address.url})
        try:
            return replies_of(Client(self.address, kept), suite, items, max_new_tokens)
        finally:
            if kept is not None:
                kept.close()


@dataclass(frozen=True)
class Seeing:
    """A checkpoint that takes pictures beside the text."""

    lm: LookingModel

    @property
    def identity(self) -> dict[str, Any]:
        return traced(self.lm)

    @property
    def template(self) -> dict[str, Any]:
        return {"fingerprint": self.lm.template}

    def answer(self, suite: Suite, items: Sequence[Any], *, max_new_tokens: int) -> list[ReplyRow]:
        """Every item's replies, turn by turn, its picture with the first (E513, E576)."""
        return replies_of(self.lm, suite, items, max_new_tokens)


def seeing(source: Any, device: str, dtype: Precision) -> Any:
    """`source`, or, where it is a checkpoint that takes pictures, the answerer that shows them."""
    config = getattr(source, "config", None)
    if not isinstance(config, Mapping) or isinstance(source, Answerer):
        return source
    from suture.inference.pictures import load_looking, sees

    return Seeing(load_looking(source, device=device, dtype=dtype)) if sees(config) else source


def replies_of(
    lm: LoadedModel | Talker, suite: Suite, items: Sequence[Any], max_new_tokens: int
) -> list[ReplyRow]:
    """The last reply to each item, all turns asked; cut off in any turn counts as not ended."""
    asked = [conversation_of(suite, item) for item in items]
    picture = getattr(suite, "picture", lambda item: None)
    with naming(items):
        said = ask_turns(
            lm,
            [start for start, _ in asked],
            [turns for _, turns in asked],
            max_new_tokens,
            images=[picture(item) for item in items],
        )
    return [
        ReplyRow(
            item.id,
            item.prompt,
            replies[-1].text,
            all(reply.ended for reply in replies),
            replies[-1].tokens,
        )
        for item, replies in zip(items, said, strict=True)
    ]


def conversation_of(suite: Suite, item: Any) -> tuple[list[Message], list[str]]:
    """(messages before, user turns) of an item. E576: the suite cannot be asked in this way."""
    conversation = getattr(suite, "conversation", None)
    if conversation is not None:
        start, turns = conversation(item)
        return list(start), list(turns)
    as_asked = getattr(suite, "as_asked", None)
    asked = {"prompt": item.prompt} if as_asked is None else as_asked(item)
    if "after" in asked or getattr(suite, "needs_model", False):
        raise SutureError(
            "E576",
            f"{suite.name} cannot be asked through an endpoint",
            why="it looks into the model, or a question hangs on the reply to another item",
            fix=f"measure a checkpoint's folder: suture measure {suite.name} --model DIR",
        )
    *before, last = asked.get("messages") or [{"role": "user", "content": asked["prompt"]}]
    return before, [last["content"]]


def refuse_weights(**given: Any) -> None:
    """Refuse (E588) options of a checkpoint: an address or a baseline would pass over them."""
    if named := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
        raise SutureError(
            "E588",
            f"{named[0]} belongs to a checkpoint, and there are no weights here",
            where="--model",
            fix=f"leave out {', '.join(named)}, or give a checkpoint's folder with --model",
        )


def load_answerer(text: str, *, cache: Path | None = None) -> Answerer | None:
    """The answerer that `--model` names; None where it is a folder or a name.

    `cache`: folder in which an endpoint's answers are kept. Errors: E706 it cannot be read, E701
    and E702 unknown options and values.
    """
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon:
        return None
    if kind == "baseline":
        name, comma, options = rest.partition(",")
        return Baseline(name, named_options(f"{name}:{options}")[1] if comma else {})
    from suture.inference.endpoint import Address

    return Remote(Address.load(named_options(text)[1], where="--model endpoint"), cache)
