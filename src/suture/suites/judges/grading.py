"""How a judge is asked for grades, and how its answer is read: data files in `../data/judges`.

    prompts   by name, each with `system` and `template`: single, single-reference, single-two,
              single-two-reference, and the same with pair
    asks      what the grade is of: grade (of an answer, the default) or empathy (of a reply)
    rating    regular expression with one group, the grade; the last match counts
    lowest, highest   grades outside are unparsed
    first, second, tie   of a pair, regular expressions; the last match counts
    marks     strings that the judge takes for structure; inside what is judged they are broken up

`-two` is asked about the second turn of a conversation, `-reference` where right answers are known.
A template has the slots {question} and {answer} of the turn that is graded, {question_1} and
{answer_1} and so on of each turn, {ref_answer_1} and so on, and in pairs {answer_a}, {answer_b},
{answer_a_1} and so on: FastChat's names, so that its own prompts fit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

from pydantic import Field, model_validator

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.suites.judges import Opinion, Verdict
from suture.suites.judges.guarding import guarded

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Case:
    """One conversation to be graded on its last turn.

    `references`: the right answers, one per turn, or none. `against`: another model's answers, for
    a pair; `swapped`: whether they are shown first.
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    references: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    swapped: bool = False

    @property
    def kind(self) -> str:
        """The name of the prompt that fits."""
        parts = ["pair" if self.against else "single"]
        parts += ["two"] if len(self.questions) > 1 else []
        return "-".join([*parts, *(["reference"] if self.references else [])])

    def the_other_way_round(self) -> Case:
        """The same pair in the other order."""
        return replace(self, swapped=not self.swapped)


class Prompt(FrozenConfig):
    """What a judge is told and asked."""

    system: str | None = None
    template: str


class Grading(FrozenConfig):
    """One way to ask for grades; see the module."""

    version: int = 1
    about: str = ""
    asks: Literal["grade", "empathy"] = "grade"
    rating: str
    lowest: float = 1.0
    highest: float = 10.0
    first: str | None = None
    second: str | None = None
    tie: str | None = None
    max_new_tokens: int = Field(512, ge=1)
    marks: tuple[str, ...] = ()
    prompts: dict[str, Prompt]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for pattern in filter(None, (self.rating, self.first, self.second, self.tie)):
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
            if pattern == self.rating and groups != 1:
                raise ValueError("rating needs one group, which is the grade")
        if "single" not in self.prompts:
            raise ValueError("there is no prompt 'single'")
        if any(name.startswith("pair") for name in self.prompts) and not (
            self.first and self.second and self.tie
        ):
            raise ValueError("prompts for pairs need first, second and tie")
        if not self.lowest < self.highest:
            raise ValueError("lowest must be below highest")
        return self

    @cached_property
    def sha256(self) -> str:
        """Of all that decides a grade."""
        deciding = self.model_dump(mode="json", exclude={"about", "version", "asks"})
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def turns(self, case: Case, special: Iterable[str] = ()) -> list[dict[str, str]]:
        """What the judge is sent; `special`: its special tokens."""
        prompt = self._prompt(case)
        marks = [*self.marks, *special]
        shown = {
            "question": case.questions,
            "ref_answer": case.references,
            "answer": case.answers,
            "answer_a": case.against if case.swapped else case.answers,
            "answer_b": case.answers if case.swapped else case.against,
        }
        slots = {}
        for name, texts in shown.items():
            for number, text in enumerate(texts, 1):
                slots[f"{name}_{number}"] = slots[name] = guarded(text, marks)
        text = _SLOT.sub(lambda found: slots.get(found[1], found[0]), prompt.template)
        turn = [{"role": "user", "content": text}]
        if prompt.system is None:
            return turn
        return [{"role": "system", "content": prompt.system}, *turn]

    def read(self, case: Case, said: str) -> Opinion:
        """The grade, or which of a pair is better, in the judge's own words."""
        if case.against:
            return Opinion(self._preferred(said, case.swapped), said)
        found = re.findall(self.rating, said)
        grade = float(found[-1]) if found else None
        if grade is None or not self.lowest <= grade <= self.highest:
            return Opinion("unparsed", said)
        return Opinion("graded", said, grade=grade)

    def _preferred(self, said: str, swapped: bool) -> Verdict:
        mine, other = (self.second, self.first) if swapped else (self.first, self.second)
        patterns: tuple[tuple[Verdict, str | None], ...] = (
            ("better", mine),
            ("worse", other),
            ("tie", self.tie),
        )
        last = -1
        found: Verdict = "unparsed"
        for verdict, pattern in patterns:
            end = max((m.end() for m in re.finditer(pattern or r"(?!)", said)), default=-1)
            if end > last:
                last, found = end, verdict
        return found

    def _prompt(self, case: Case) -> Prompt:
        kind = case.kind
        found = self.prompts.get(kind) or self.prompts.get(kind.removesuffix("-reference"))
        if found is None:
            raise SutureError(
                "E539",
                f"the judge's format has no prompt '{kind}'",
                fix=f"it has {', '.join(self.prompts)}; give another with format=FILE",
            )
        return found
