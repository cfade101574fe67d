"""One record type for every text task: what was said, by whom, about what, beside which picture.

Text is the anchor. What is not text enters as words about it (`caption`, `audio_desc`,
`video_desc`), or, where the model sees, as the picture itself (`image`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from suture.config import FrozenConfig


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) else value  # JSON has no paths


class Turn(FrozenConfig):
    """Something said before the text."""

    speaker: str | None = Field(None, description="who said it, if that is known")
    text: str = Field(description="what was said")


class Record(FrozenConfig):
    """One row of a task, read from any format.

    `gold` has the form of the task's answer: a label (text), labels (list of texts), a score
    (number), spans (list of texts), pairs (list of lists), a text; or a mapping of several of
    these, of which a task names one (`TaskSpec.gold`). None: not known.
    """

    id: str = Field(min_length=1, description="unique in its file")
    text: str = Field(description="the text itself; an aspect stands in it as it was written")
    context: list[Turn] = Field(default=[], description="what was said before, oldest first")
    speaker: str | None = Field(None, description="who says the text")
    aspect: str | None = Field(None, description="the words of the text that are asked about")
    image: Annotated[Path, BeforeValidator(_path)] | None = Field(
        None, description="picture file beside the text"
    )
    caption: str | None = Field(None, description="the picture in words")
    audio_desc: str | None = Field(None, description="the sound in words")
    video_desc: str | None = Field(None, description="the moving picture in words")
    gold: Any = Field(None, description="what is right")
    cluster: str | None = Field(
        None, description="tweet or dialogue: records of one cluster are not independent"
    )
    meta: dict[str, Any] = Field(default={}, description="what else the format says")
