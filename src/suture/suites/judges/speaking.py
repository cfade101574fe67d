"""What judges in words share: a format says what they are asked and how they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field, PrivateAttr

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.progress import note
from suture.suites.judges import Opinion, Purpose
from suture.suites.judges.formats import Format, load_format
from suture.suites.judges.grading import Case, Grading

Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Heard:
    """A judge's words; or, where it did not `answer`, why."""

    text: str
    answered: bool = True


class Speaker(FrozenConfig):
    """A judge in words. Kinds add where it is and how it is asked."""

    format: str | None = Field(
        None,
        description="a shipped format or a JSON file; default: plain, for grades mt-bench, of "
        "empathy empathy",
    )
    _format: Any = PrivateAttr(None)

    @property
    def how(self) -> Format | Grading:
        """The format, read when it is first needed."""
        if self._format is None:
            self._format = load_format(self.format or "plain")
        found: Format | Grading = self._format
        return found

    @property
    def purpose(self) -> Purpose:
        """What the format asks for."""
        return self.how.asks if isinstance(self.how, Grading) else "harm"

    @property
    def special(self) -> list[str]:
        """Tokens that mean structure to the judge; broken up inside what is judged."""
        return []

    def ask(self, asked: Sequence[Turns]) -> list[Heard]:
        """The judge's words on each conversation, in order."""
        raise NotImplementedError

    def judge(self, exchanges: Sequence[tuple[str, str]]) -> list[Opinion]:
        how = self.how
        if not isinstance(how, Format):
            raise _other("harmful or safe")
        asked = [how.turns(prompt, reply, self.special) for prompt, reply in exchanges]
        return [_opinion(one, how.read) for one in _told(self.ask(asked))]

    def grade(self, cases: Sequence[Case]) -> list[Opinion]:
        how = self.how
        if not isinstance(how, Grading):
            raise _other("grades")
        heard = _told(self.ask([how.turns(case, self.special) for case in cases]))
        return [
            _opinion(one, partial(how.read, case)) for case, one in zip(cases, heard, strict=True)
        ]


def _told(heard: list[Heard]) -> list[Heard]:
    """The same, with a line for each reason why the judge said nothing at all."""
    reasons = Counter(one.text for one in heard if not one.answered)
    for reason, count in reasons.items():
        note(f"the judge said nothing to {count} of {len(heard)} questions: {reason[:200]}")
    return heard


def _opinion(heard: Heard, read: Callable[[str], Opinion]) -> Opinion:
    return read(heard.text) if heard.answered else Opinion("unparsed", heard.text)


def _other(wanted: str) -> SutureError:
    return SutureError("E539", f"the judge's format does not ask for {wanted}")
