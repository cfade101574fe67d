"""What a text task is: one YAML file, checked before anything is asked.

Shipped tasks lie in `suites/data/tasks/NAME.yaml`; `--set task=FILE.yaml` runs your own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from suture.config import FrozenConfig, key_lines, read_yaml
from suture.errors import SutureError, nearest
from suture.suites.common import DATA

FOLDER = DATA / "tasks"
FIELDS = ("context", "speaker", "text", "aspect", "caption", "audio_desc", "video_desc")
PLACEHOLDERS = (*FIELDS, "input", "labels", "low", "high", "answer_form")
_HOLE = re.compile(r"\{([a-z_]+)\}")


def _quoted(value: object) -> object:
    """YAML reads yes, no, on and off as true and false unless they stand in quotes."""
    if isinstance(value, bool):
        words = '"yes", "on" or "true"' if value else '"no", "off" or "false"'
        raise ValueError(f"YAML takes {words} for a truth value: write it in quotes, as here")
    return value


Word = Annotated[str, BeforeValidator(_quoted)]


def _once(words: list[str]) -> None:
    """Refuse a word that stands for two things."""
    small = [word.casefold() for word in words]
    if twice := sorted({word for word in small if small.count(word) > 1}):
        raise ValueError(f"'{twice[0]}' stands for two things")


class _Labelled(FrozenConfig):
    labels: list[Word] = Field(min_length=1, description="all labels, in the order first shown")
    synonyms: dict[Word, list[Word]] = Field(
        default={}, description="other words for a label, which are read as it"
    )

    @field_validator("labels")
    @classmethod
    def _each_once(cls, labels: list[str]) -> list[str]:
        _once(labels)
        return labels

    @field_validator("synonyms")
    @classmethod
    def _one_meaning_each(
        cls, synonyms: dict[str, list[str]], info: ValidationInfo
    ) -> dict[str, list[str]]:
        labels = info.data.get("labels", list(synonyms))
        if unknown := [label for label in synonyms if label not in labels]:
            raise ValueError(f"synonyms of '{unknown[0]}', which is no label")
        _once([*labels, *(word for said in synonyms.values() for word in said)])
        return synonyms

    def index(self, label: str) -> int:
        """The code of a label: its place."""
        return self.labels.index(label)


def _known(default: list[str], info: ValidationInfo) -> None:
    """Refuse a default that is none of the labels, where these are right themselves."""
    labels = info.data.get("labels", default)
    if unknown := [word for word in default if word not in labels]:
        raise ValueError(f"'{unknown[0]}' is none of the labels: {', '.join(labels)}")


class LabelAnswer(_Labelled):
    """One of the labels."""

    kind: Literal["label"] = "label"
    default: Word | None = Field(
        None, description="what an answer that cannot be read counts as under policy=default"
    )

    @field_validator("default")
    @classmethod
    def _a_label(cls, default: str | None, info: ValidationInfo) -> str | None:
        _known([] if default is None else [default], info)
        return default


class LabelsAnswer(_Labelled):
    """Any number of the labels."""

    kind: Literal["labels"] = "labels"
    none: Word = Field("none", description="the word for no label at all")
    default: list[Word] = Field(default=[], description="as in `label`")

    @field_validator("default")
    @classmethod
    def _labels(cls, default: list[str], info: ValidationInfo) -> list[str]:
        _known(default, info)
        return default


class ScoreAnswer(FrozenConfig):
    """A number from `low` to `high`; one beyond them is moved to the nearer end."""

    kind: Literal["score"] = "score"
    low: float = Field(description="least score")
    high: float = Field(description="largest score")
    default: float | None = Field(None, description="as in `label`")

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}")
        return self

    @field_validator("default")
    @classmethod
    def _within(cls, default: float | None, info: ValidationInfo) -> float | None:
        low, high = info.data.get("low"), info.data.get("high")
        if default is None or low is None or high is None or low <= default <= high:
            return default
        raise ValueError(f"{default:g} is not from {low:g} to {high:g}")


class SpansAnswer(FrozenConfig):
    """Pieces of the text, word for word: a JSON list of texts."""

    kind: Literal["spans"] = "spans"
    default: list[str] = Field(default=[], description="as in `label`")


class Part(FrozenConfig):
    """One place of a tuple: a span of the text, a number (of an utterance) or one of the labels."""

    name: str = Field(description="what it is called in prompts and docs")
    kind: Literal["span", "number", "label"]
    labels: list[Word] = Field(default=[], description="of a label")
    synonyms: dict[Word, list[Word]] = Field(default={}, description="other words for a label")
    implicit: str | None = Field(
        None, description="the word for a span that is not in the text (ACOS: NULL)"
    )

    @model_validator(mode="after")
    def _labels_where_needed(self) -> Self:
        if (self.kind == "label") != bool(self.labels):
            raise ValueError("labels belong to parts of kind label, and such a part needs them")
        return self


class PairsAnswer(FrozenConfig):
    """A set of tuples, a JSON list of lists: (span, label), (number, number, label), ..."""

    kind: Literal["pairs"] = "pairs"
    parts: list[Part] = Field(min_length=2, description="the places of a tuple")
    default: list[list[Any]] = Field(default=[], description="as in `label`")

    @field_validator("default")
    @classmethod
    def _tuples(cls, default: list[list[Any]], info: ValidationInfo) -> list[list[Any]]:
        parts = info.data.get("parts", [])
        for row in default if parts else []:
            if len(row) != len(parts):
                raise ValueError(f"a tuple of {len(row)} values, there are {len(parts)} parts")
            for part, value in zip(parts, row, strict=True):
                if part.labels and value not in part.labels:
                    raise ValueError(f"{value!r} is none of the labels of {part.name}")
        return default


class TextAnswer(FrozenConfig):
    """Words of the model's own, compared with a reference."""

    kind: Literal["text"] = "text"
    default: str | None = Field(None, description="as in `label`")


Answer = Annotated[
    LabelAnswer | LabelsAnswer | ScoreAnswer | SpansAnswer | PairsAnswer | TextAnswer,
    Field(discriminator="kind"),
]


class MetricSpec(FrozenConfig):
    """A metric of the task, called TASK.NAME. `suture.suites.tasks.metrics` has the kinds."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="macro_f1, acc2_has0, ...")
    kind: str | None = Field(None, description="default: the name")
    options: dict[str, Any] = Field(default={}, description="of the kind: label, labels, ...")

    @property
    def of(self) -> str:
        """The kind."""
        return self.kind or self.name


class TaskSpec(FrozenConfig):
    """A task: what is shown, what is asked, how an answer looks, what is counted.

    Prompts name what they show in braces: `{input}` for all of `shows` with their names before
    them, `{text}`, `{context}`, `{speaker}`, `{aspect}`, `{caption}`, `{audio_desc}`,
    `{video_desc}` for one, `{labels}` for the labels in the order of the variant, `{low}` and
    `{high}`, `{answer_form}` for the sentence that says how to answer.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="sst2, masc-twitter2015, ...")
    suite: Literal["sentiment", "emotion"] = Field(description="the suite it belongs to")
    aspect: Literal["perception", "cognition", "expression"] | None = Field(
        None, description="of emotional intelligence; its tasks are averaged"
    )
    title: str = Field(description="one line")
    dataset: str | None = Field(
        None, description="a data set of data/tasks/datasets.yaml; none: records in a JSONL file"
    )
    unit: str = Field("text", description="what one record is: tweet, utterance, dialogue, ...")
    gold: str | None = Field(
        None, description="which of several gold values, where the records hold a mapping"
    )
    shows: list[str] = Field(default=["text"], description="fields of a record that are shown")
    named: dict[str, str] = Field(
        default={}, description="what shown fields are called in {input}, where not as usual"
    )
    numbered: bool = Field(False, description="turns of the context are numbered from 1")
    answer: Answer
    prompts: dict[str, list[list[str]]] = Field(
        description="method to paraphrases, each a list of user turns; zero-shot has to be there"
    )
    metrics: list[MetricSpec] = Field(min_length=1)
    headline: str = Field(description="the metric that stands for the task in means")
    max_new_tokens: int = Field(32, ge=1, description="length limit of a reply (of each turn)")
    held_out: bool = Field(False, description="left out of means and of training")

    @property
    def expresses(self) -> bool:
        """Whether replies are texts meant for somebody, which a judge or another model can grade;
        pieces of a text and lists of ratings are not."""
        return self.answer.kind == "text" and self.aspect in (None, "expression")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if "zero-shot" not in self.prompts:
            raise ValueError("prompts has no 'zero-shot'")
        for field in self.shows:
            if field not in FIELDS:
                raise ValueError(f"shows '{field}', which is none of {', '.join(FIELDS)}")
        if strange := sorted(self.named.keys() - set(FIELDS)):
            raise ValueError(f"named '{strange[0]}', which is none of {', '.join(FIELDS)}")
        for method, paraphrases in self.prompts.items():
            if not paraphrases or not all(paraphrases):
                raise ValueError(f"prompts.{method} is empty")
            for turn in (turn for turns in paraphrases for turn in turns):
                for hole in _HOLE.findall(turn):
                    if hole not in PLACEHOLDERS:
                        close = nearest(hole, PLACEHOLDERS)
                        hint = f"; did you mean {{{close}}}" if close else ""
                        raise ValueError(f"prompts.{method} has {{{hole}}}, no placeholder{hint}")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names):
            raise ValueError("two metrics have one name")
        if self.headline not in names:
            raise ValueError(f"the headline '{self.headline}' is none of the metrics")
        return self


def shipped() -> list[str]:
    """Names of the tasks that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_task(name: str) -> TaskSpec:
    """A shipped task by name, or one of your own by its YAML file.

    `like: NAME` in a file takes what it does not say from that shipped task: the same question on
    other data. Errors: E574 no such task; E701 to E704 a file that is no task, with file and line.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = _file(name)
    values = read_yaml(path)
    like = values.pop("like", None)
    if like is not None and "name" not in values:
        raise SutureError(
            "E702",
            "'name': it is missing",
            where=str(path),
            why=f"without one your numbers would carry the name of the shipped task {like}",
            fix=f"add `name: ...`; `name: {like}` where the two are to be paired",
        )
    if like is not None:
        base = load_task(_file(str(like)).as_posix()).model_dump(exclude_unset=True)
        values = {**base, **values}
    return TaskSpec.load(values, where=str(path), lines=key_lines(path))


def _file(name: str) -> Path:
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        several = [one.strip() for one in name.split(",")]
        if len(several) > 1:
            raise SutureError(
                "E574",
                f"there is no task '{name}'",
                where="task",
                why="several tasks are a list, in brackets",
                fix=f'--set "task=[{", ".join(several)}]"',
            )
        close = nearest(name, shipped())
        raise SutureError(
            "E574",
            f"there is no task '{name}'",
            where="task",
            fix=f"did you mean '{close}'?"
            if close
            else f"there are: {', '.join(shipped())}; or give a file: --set task=FILE.yaml",
        )
    return path
