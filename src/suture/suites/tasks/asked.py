"""What is asked of a suite of tasks, and what it asks: options and items."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_serializer

from suture.config import FrozenConfig
from suture.data.tasks.record import Record
from suture.errors import SutureError, nearest
from suture.suites.tasks.rendering import shown_labels
from suture.suites.tasks.shots import Sampler
from suture.suites.tasks.spec import TaskSpec

_BESIDE = {"image", "caption", "audio_desc", "video_desc", "meta"}


class TaskOptions(FrozenConfig):
    """Options of the suite (`--set KEY=VALUE`)."""

    task: tuple[str, ...] = Field(description="names of tasks, or YAML files of your own")
    split: str = Field("test", description="which split of the data sets")
    method: str = Field("zero-shot", description="which prompts: zero-shot, step-by-step, ...")
    shots: int = Field(0, ge=0, description="solved examples before each question")
    sampler: Sampler = Field(
        "balanced", description="how examples are chosen: by label in turns, by lot, by words"
    )
    paraphrases: int = Field(1, ge=1, description="how many wordings of the prompt are asked")
    orders: int = Field(1, ge=1, description="how many orders of the labels are asked")
    parser: Literal["strict", "lenient"] = Field(
        "strict", description="which answers count; both rates are always reported"
    )
    policy: Literal["abstain", "default", "drop"] = Field(
        "abstain",
        description="an answer that cannot be read is wrong, is the task's default, or its row is "
        "left out",
    )
    train: str = Field(
        "train", description="split, or file of records, that examples and baselines learn from"
    )
    images: Literal["auto", "none"] = Field(
        "auto", description="pictures are shown to an endpoint where records have them, or never"
    )
    seed: int = Field(0, description="of examples and of orders")
    scorer: Path | None = Field(
        None, description="checkpoint folder for BERTScore of replies in the model's own words"
    )
    scorer_layer: int | None = Field(
        None, ge=0, description="whose states are compared; default three quarters of the way up"
    )
    scorer_idf: bool = Field(False, description="rare tokens weigh more")


class Question(FrozenConfig):
    """A record of a task, as it is asked in one variant.

    What is shown (prompt, examples, picture, captions) is no part of what an item is: it is left
    out of the dump, and so of the data's SHA-256, so that two ways of asking can be paired.
    """

    id: str
    task: str
    record: Record
    start: list[dict[str, str]] = Field(
        default=[], exclude=True, description="solved examples, as messages"
    )
    turns: list[str] = Field(min_length=1, exclude=True, description="user turns")
    cluster: str | None = None
    paraphrase: int = 0
    order: int = 0

    @field_serializer("record")
    def _itself(self, record: Record) -> dict[str, Any]:
        """Text and gold, without what stands beside the text."""
        return record.model_dump(mode="json", exclude_none=True, exclude=_BESIDE)

    @property
    def prompt(self) -> str:
        """All that is asked, in one text."""
        return "\n\n".join([*(one["content"] for one in self.start), *self.turns])


def check_asked(asked: TaskOptions, spec: TaskSpec, suite: str, given: str) -> None:
    """Refuse options that a task, named as `given`, cannot follow: E580, E581, E589."""
    if spec.suite != suite:
        raise SutureError(
            "E589",
            f"the task {spec.name} belongs to the suite {spec.suite}",
            where=f"suture measure {suite}",
            why="its numbers would not pair with those of the same task measured there",
            fix=f"suture measure {spec.suite} --set task={given}",
        )
    if asked.method not in spec.prompts:
        close = nearest(asked.method, spec.prompts)
        raise SutureError(
            "E580",
            f"the task {spec.name} has no prompts '{asked.method}'",
            where="method",
            fix=f"did you mean '{close}'?" if close else f"it has: {', '.join(spec.prompts)}",
        )
    if asked.paraphrases > len(spec.prompts[asked.method]):
        raise SutureError(
            "E580",
            f"{asked.paraphrases} paraphrases are asked for, {spec.name} has "
            f"{len(spec.prompts[asked.method])} of {asked.method}",
            where="paraphrases",
            fix=f"--set paraphrases={len(spec.prompts[asked.method])}; of `suture task rows` "
            f"--paraphrases {len(spec.prompts[asked.method])}",
        )
    labels = shown_labels(spec.answer)
    if len(labels) > 1 and asked.orders > (most := math.factorial(len(labels))):
        raise SutureError(
            "E580",
            f"{asked.orders} orders are asked for, {spec.name} has {most} of its labels",
            where="orders",
            fix=f"--set orders={most}; of `suture task rows` --orders {most}",
        )
    if asked.policy == "default" and spec.answer.default is None:
        raise SutureError(
            "E581",
            f"the task {spec.name} has no default answer",
            where="policy",
            fix="use --set policy=abstain or policy=drop, or give `answer: {default: ...}`",
        )
