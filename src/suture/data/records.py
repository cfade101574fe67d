"""The kinds of row: something to ask, something to ask and answer, something to choose from.

`id` names the item in every measurement, so that two models can be paired by it; left out, it is
the line number. `cluster` groups rows that are not independent (paraphrases of one prompt, facts
of one author): the ledger then resamples clusters, not rows.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from suture.config import FrozenConfig


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class Prompt(FrozenConfig):
    """One user turn, in plain text; the chat template is added by the model's own folder."""

    id: Text = Field(description="unique name of the item; default: the line number")
    prompt: Text = Field(description="what the user says")
    category: str | None = Field(None, description="free label, shown in reports")
    cluster: str | None = Field(None, description="rows of one cluster are not independent")


class Pair(FrozenConfig):
    """One user turn and the reply to it; without `response` the reply is to be generated."""

    id: Text = Field(description="unique name of the item; default: the line number")
    prompt: Text = Field(description="what the user says")
    response: Text | None = Field(None, description="the reply; left out: generated where needed")
    category: str | None = Field(None, description="free label, shown in reports")
    cluster: str | None = Field(None, description="rows of one cluster are not independent")


class AnsweredPair(Pair):
    """One user turn and the reply to it, which must be there: rows to train or calibrate on."""

    response: Text = Field(description="the reply")


class QuestionAnswer(FrozenConfig):
    """A pair as question answering calls it."""

    id: Text = Field(description="unique name of the item; default: the line number")
    question: Text = Field(description="what the user asks")
    answer: Text = Field(description="the reply")
    category: str | None = Field(None, description="free label, shown in reports")
    cluster: str | None = Field(None, description="rows of one cluster are not independent")

    def pair(self) -> AnsweredPair:
        """The same as prompt and response."""
        return AnsweredPair(
            id=self.id,
            prompt=self.question,
            response=self.answer,
            category=self.category,
            cluster=self.cluster,
        )


class PlainText(FrozenConfig):
    """A text that answers nothing: a page, a biography, a chapter."""

    id: Text = Field(description="unique name of the item; default: the line number")
    text: Text = Field(description="the text")
    category: str | None = Field(None, description="free label, shown in reports")
    cluster: str | None = Field(None, description="rows of one cluster are not independent")

    def pair(self) -> Passage:
        """The same as a row to train on."""
        return Passage(id=self.id, response=self.text, category=self.category, cluster=self.cluster)


class Passage(AnsweredPair):
    """A plain text among rows to train on: all of it is the reply, and nothing asks for it.

    It is read without the chat template.
    """

    prompt: str = Field("", max_length=0, description="nothing")


class Choice(FrozenConfig):
    """One question with two or more possible replies, `answer` being the index of the right one."""

    id: Text = Field(description="unique name of the item; default: the line number")
    prompt: Text = Field(description="what the user says")
    options: list[Text] = Field(min_length=2, description="the possible replies, all different")
    answer: int = Field(ge=0, description="index of the right option, from 0")
    category: str | None = Field(None, description="free label, shown in reports")
    cluster: str | None = Field(None, description="rows of one cluster are not independent")

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> Self:
        if self.answer >= len(self.options):
            raise ValueError(
                f"answer is {self.answer}, but options are 0 to {len(self.options) - 1}"
            )
        if len(set(self.options)) != len(self.options):
            raise ValueError("options must differ from each other")
        return self
