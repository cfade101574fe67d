"""What is asked of a suite of tasks, and what it asks: options and items."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_serializer

from suture.config import FrozenConfig
from suture.data.tasks.record import Record
from suture.suites.tasks.shots import Sampler

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
