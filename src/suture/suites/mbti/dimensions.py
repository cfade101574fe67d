"""The four dimensions of MBTI and the words they are asked with, from `suites/data/personality`.

Direction everywhere: 0 is fully the first letter (E, S, T, J), 1 fully the second (I, N, F, P), as
in MBTIBench (arXiv 2412.12510). Poles, examples and questionnaires are in our own words.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import Field

from suture.config import FrozenConfig, read_yaml
from suture.suites.common import DATA

FOLDER = DATA / "personality"
NAMES = ("E/I", "S/N", "T/F", "J/P")


class Pole(FrozenConfig):
    """One end of a dimension."""

    letter: Annotated[str, Field(pattern="^[A-Z]$")]
    name: str = Field(description="what a prompt calls it")
    about: str = Field(description="what it means, in one line")
    words: list[str] = Field(description="how a reply may name it, lower case")


class Example(FrozenConfig):
    """An invented person and the right answer; the hard label is the side the score lies on."""

    posts: str
    score: int = Field(ge=1, le=9, description="1 fully the first pole, 9 fully the second")


class Question(FrozenConfig):
    """One item of the questionnaire: options for the first pole, the second, and for neither."""

    ask: str
    options: list[str] = Field(min_length=3, max_length=3)

    def text(self) -> str:
        """The item as it is put: the beginning of a sentence and its lettered ends."""
        ends = [f"{letter}. {end}" for letter, end in zip("ABC", self.options, strict=True)]
        return "\n".join([f"{self.ask} ...", *ends])


class Dimension(FrozenConfig):
    """One of the four."""

    name: str = Field(description="E/I, S/N, T/F or J/P")
    dimension: str = Field(description="what it is about")
    first: Pole
    second: Pole
    examples: list[Example]
    questions: list[Question]

    @property
    def key(self) -> str:
        """As in metrics: ei, sn, tf, jp."""
        return self.name.replace("/", "").lower()


@cache
def dimensions() -> dict[str, Dimension]:
    """All four by name, in MBTI's order."""
    files = [FOLDER / f"{name.replace('/', '').lower()}.yaml" for name in NAMES]
    found = [Dimension.load(read_yaml(file), where=file) for file in files]
    return {one.name: one for one in found}
