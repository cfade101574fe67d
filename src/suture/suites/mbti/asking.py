"""What is said to a model about one trait: the turns of each method, filled from `prompts.yaml`.

Four ways of MBTIBench (arXiv 2412.12510): one turn; a step-by-step turn and one for the bare
result; solved examples before the question; a questionnaire, one item a turn, before the question.
Every trait is a conversation of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

from pydantic import Field

from suture.config import FrozenConfig, read_yaml
from suture.errors import SutureError
from suture.suites.mbti.dimensions import FOLDER, Dimension, Example, dimensions
from suture.suites.mbti.records import Trait

Method = Literal["zero-shot", "step-by-step", "few-shot", "questionnaire"]
Form = Literal["soft", "hard"]


class Turn(FrozenConfig):
    """One user turn as it stands in the file."""

    turn: str = Field(description="text with placeholders")
    each: bool = Field(False, description="once for every further item of the questionnaire")
    answer: bool = Field(False, description="closed by the instruction how to answer")


class Prompts(FrozenConfig):
    """The file: how each method asks, and how each form wants its answer."""

    answer: dict[Form, str]
    asks: str
    methods: dict[Method, list[Turn]]


@cache
def prompts() -> Prompts:
    """The prompts that come with Suture."""
    file = FOLDER / "prompts.yaml"
    return Prompts.load(read_yaml(file), where=file)


def user_turns(trait: Trait, method: Method, form: Form) -> list[str]:
    """What the user says, turn by turn."""
    return _filled(dimensions()[trait.dimension], trait.posts, method, form)


def examples(
    trait: Trait, method: Method, form: Form, known: Sequence[Trait] = ()
) -> list[dict[str, str]]:
    """The solved turns before the first, for few-shot: two invented people, or of the `known`
    labelled ones the first on each side, from the same source where it has both. Never the person
    who is asked about. Error E568: nobody known is on one of the sides."""
    if method != "few-shot":
        return []
    about = dimensions()[trait.dimension]
    said: list[dict[str, str]] = []
    for one in _shown(trait, known) if known else about.examples:
        asked = _filled(about, one.posts, "few-shot", form)[0]
        said.append({"role": "user", "content": asked})
        said.append({"role": "assistant", "content": _solved(one, form)})
    return said


def _shown(trait: Trait, known: Sequence[Trait]) -> list[Example]:
    """Two of the known people, the first pole first."""
    about = dimensions()[trait.dimension]
    others = [
        one
        for one in known
        if one.dimension == trait.dimension and one.person != trait.person and one.posts
    ]
    alike = [one for one in others if one.source == trait.source]
    for pool in (alike, others):
        sides: dict[bool, Example] = {}
        for one in pool:
            score = _score(one, about)
            if score is not None:
                sides.setdefault(score > 5, Example(posts=one.posts, score=score))
        if len(sides) == 2:
            return [sides[False], sides[True]]
    raise SutureError(
        "E568",
        f"no two people to show as examples of {trait.dimension}, one on each side",
        where="--set examples",
        fix="give labelled people of both sides, or leave examples out for invented ones",
    )


def _score(one: Trait, about: Dimension) -> int | None:
    """The label as a score that is on a side; the side decides where both labels are known."""
    if one.soft is None:
        return None if one.hard is None else 1 if one.hard == about.first.letter else 9
    score = round(1 + 8 * one.soft)
    if score == 5:
        return None
    agrees = one.hard in (None, (about.second if score > 5 else about.first).letter)
    return score if agrees else None


def _solved(example: Example, form: Form) -> str:
    """The soft and the hard answer of an example agree: the side is the one the score lies on."""
    if form == "soft":
        return f"[[{example.score}]]"
    return f"CHOICE: {'A' if example.score < 5 else 'B'}"


def _filled(about: Dimension, posts: str, method: Method, form: Form) -> list[str]:
    questions = [one.text() for one in about.questions]
    words = {
        "posts": posts,
        "dimension": about.dimension,
        "first": about.first.name,
        "second": about.second.name,
        "about_first": about.first.about,
        "about_second": about.second.about,
        "question": questions[0],
    }
    said: list[str] = []
    for turn in prompts().methods[method]:
        for question in questions[1:] if turn.each else questions[:1]:
            text = fill(turn.turn, {**words, "question": question})
            if turn.answer:
                text = f"{text}\n\n{fill(prompts().answer[form], words)}"
            said.append(text)
    return said


def fill(text: str, words: Mapping[str, str]) -> str:
    """`text` with every {name} replaced, in one pass: posts may hold anything."""
    for name in words:
        text = text.replace(f"{{{name}}}", f"\0{name}\0")
    parts = text.split("\0")
    return "".join(words.get(part, part) if k % 2 else part for k, part in enumerate(parts))
