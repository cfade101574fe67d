"""Personality: what a model reads out of somebody's posts, against population-like soft labels.

MBTIBench (arXiv 2412.12510, COLING 2025): 286 people, each of four dimensions rated from 1 to 9, or
one side chosen. Options are the fields of `Asked` (`--set method=step-by-step --set form=hard`).
KEY is ei, sn, tf, jp, or mean for the mean over the dimensions.

    KEY.s_rmse, KEY.s_mae      soft: bins between answer and label
    KEY.rmse, KEY.mae          soft: the same in scores from 0 to 1
    KEY.accuracy, KEY.macro_f1 hard: sides that are right
    KEY.METRIC_constant        what the best constant answer gets: few models beat it
    KEY.bias, KEY.polarisation which pole, and how far to the ends, the answers lean
    parsed_strict, parsed_lenient, ends_properly

Data: MBTIBench's file, or rows like it (`suture.suites.mbti.records`). The figures say how well a
model agrees with annotators; they say nothing about what a person is like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from suture.config import FrozenConfig, one_or_many
from suture.errors import SutureError, nearest
from suture.ledger import NONE, Better, Measurement, ReplyRow, Row
from suture.progress import note
from suture.suites.answerers import replies_of
from suture.suites.common import Answers, items_sha256, one_id_each, quality, thin
from suture.suites.mbti import baselines, parsing
from suture.suites.mbti.asking import Form, Method, examples, user_turns
from suture.suites.mbti.columns import columns, constants, derived, directions, parse_column
from suture.suites.mbti.declared import of_log
from suture.suites.mbti.dimensions import NAMES, dimensions
from suture.suites.mbti.predictions import logged_replies
from suture.suites.mbti.records import (
    Person,
    Trait,
    labels_of,
    read_labels,
    read_people,
    traits,
)

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer

_NEW_TOKENS: dict[Method, int] = {
    "zero-shot": 32,
    "few-shot": 32,
    "questionnaire": 32,
    "step-by-step": 512,
}


class Asked(FrozenConfig):
    """How people are judged; options of the suite."""

    method: Method = Field("zero-shot", description="how the question is put")
    form: Form = Field("soft", description="soft: a score from 1 to 9; hard: one of two sides")
    parser: Literal["strict", "lenient", "released"] = Field(
        "strict",
        description="how replies are read; released: strict, and scores of 0 and 10 are not "
        "clipped and an unread side is a third class of macro-F1, as in the code of MBTIBench",
    )
    unread: Literal["default", "drop"] = Field(
        "default",
        description="default: a soft answer that cannot be read counts as 0.5, a hard one as "
        "wrong; drop: it counts as nothing, and the metrics are about the rest",
    )
    dimensions: Annotated[list[str], BeforeValidator(one_or_many)] = Field(
        list(NAMES), min_length=1, description="of E/I S/N T/F J/P"
    )
    examples: Path | None = Field(
        None, description="labelled people that few-shot shows instead of invented ones"
    )
    labels: Path | None = Field(None, description="labels to measure against, by id")
    posts: int | None = Field(None, ge=1, description="at most so many posts of a person")
    post_tokens: int = Field(80, ge=1, description="words and marks kept of each post")


class Personality:
    """Items: `Trait` rows, one for each dimension of each person. `limit` is people."""

    name = "personality"
    metrics: Mapping[str, Better]
    default_data: tuple[Path, ...] = ()
    scorer: str | None = None
    needs_before = False
    baselines: tuple[str, ...] = baselines.NAMES

    def __init__(self, asked: Asked | None = None) -> None:
        self.asked = asked or Asked()
        self.max_new_tokens = _NEW_TOKENS[self.asked.method]
        self.metrics = directions()
        self.shown: list[Trait] = []  # once the people are read

    def configure(self, options: Mapping[str, Any]) -> Personality:
        """The suite with these options (`Asked`). Error E565: no such dimension."""
        asked = Asked.load(options, where="options of the suite personality")
        for name in asked.dimensions:
            if name not in NAMES:
                close = nearest(name, NAMES)
                raise SutureError(
                    "E565",
                    f"there is no dimension '{name}'",
                    where="--set dimensions",
                    fix=f"did you mean '{close}'?" if close else f"take of: {', '.join(NAMES)}",
                )
        return Personality(asked)

    def read(self, files: Sequence[Path], limit: int | None) -> list[Trait]:
        if not files:
            raise SutureError(
                "E566",
                f"the suite {self.name} has no data of its own",
                why="posts are personal, so none come with Suture",
                fix="give --data FILE: rows of id, posts and, where known, softlabels and "
                "hardlabels, as MBTIBench's mbtibench.jsonl has them",
            )
        labels = None if self.asked.labels is None else read_labels(self.asked.labels)
        people = [one for file in files for one in read_people(file, labels)]
        items = self._traits(thin(people, limit))
        if self.asked.examples is not None:
            self.shown = self._traits(read_people(self.asked.examples))
        one_id_each(items, files)
        return items

    def measure(
        self,
        lm: LoadedModel,
        items: list[Trait],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: LoadedModel | None = None,
    ) -> Answers:
        replies = replies_of(lm, self, items, max_new_tokens)
        return Answers(self.score(items, replies), replies)

    def score(
        self, items: list[Trait], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        """The rows that follow from the last reply about each trait."""
        form = self.asked.form
        constant = constants(items, form)
        reader = parse_column(self.asked.parser)
        rows = []
        for item, reply in zip(items, replies, strict=True):
            strict, lenient = self._read(item, reply.reply)
            scores = {
                "parsed_strict": float(strict is not None),
                "parsed_lenient": float(lenient is not None),
                "ends_properly": quality(reply)["ends_properly"],
            }
            said = {"parsed_strict": strict, "parsed_lenient": lenient}[reader]
            if said is None and self.asked.unread == "default":
                unread = parsing.THIRD if self.asked.parser == "released" else NONE
                said = parsing.MIDDLE if form == "soft" else unread
            if said is not None:
                scores |= columns(item, said, constant.get(item.dimension), form)
            rows.append(Row(item.id, scores, item.cluster))
        return rows

    def derived(self, rows: list[Row]) -> dict[str, dict[str, Any]]:
        """All metrics; of people without labels only how their replies could be read."""
        return derived(rows, self.asked.form, sides=3 if self.asked.parser == "released" else 2)

    def described(self, items: Sequence[Trait]) -> dict[str, Any]:
        """The file says what somebody is like, so only its owner may read it."""
        return {"private": True}

    def baseline(self, name: str, items: Sequence[Trait], *, seed: int = 0) -> list[str]:
        """Replies of a baseline (`suture.suites.mbti.baselines`)."""
        return baselines.replies(name, items, self.asked.form, seed=seed)

    def conversation(self, item: Trait) -> tuple[list[dict[str, str]], list[str]]:
        """Solved examples, and the user turns about one trait."""
        method, form = self.asked.method, self.asked.form
        return examples(item, method, form, self.shown), user_turns(item, method, form)

    def score_log(self, file: Path, options: Mapping[str, Any]) -> Measurement:
        """MBTIBench's log of replies ({"dimension": "EI", "id": 1, "response": "[[7]]"} per line),
        scored against `labels` where the options name them. E564: a person that the labels lack;
        E596: not such a log."""
        said = logged_replies(file)
        known = None if self.asked.labels is None else read_labels(self.asked.labels)
        items = []
        for one in said:
            own = labels_of(one.person, known, file)
            items.append(
                Trait(
                    id=f"{one.person}/{one.dimension.replace('/', '')}",
                    person=one.person,
                    dimension=one.dimension,
                    posts="",
                    soft=(own.softlabels or {}).get(one.dimension),
                    hard=(own.hardlabels or {}).get(one.dimension),
                )
            )
        replies = [
            ReplyRow(item.id, "", one.response, True, len(one.response.split()))
            for item, one in zip(items, said, strict=True)
        ]
        rows = self.score(items, replies)
        if known is not None:
            note(
                f"{len(rows)} replies of {file.name} are held against {self.asked.labels} by id "
                "alone: both must be about the same people"
            )
        data = {
            "sha256": items_sha256(items),
            "options": {key: str(value) for key, value in options.items()},
        }
        return of_log(self.name, file, rows, replies, self.derived(rows), data=data)

    def _traits(self, people: Sequence[Person]) -> list[Trait]:
        asked = self.asked
        return traits(people, asked.dimensions, tokens=asked.post_tokens, most=asked.posts)

    def _read(self, item: Trait, reply: str) -> tuple[float | None, float | None]:
        """What the reply says to the strict and to the lenient reader."""
        if self.asked.form == "hard":
            about = dimensions()[item.dimension]
            found = (parsing.side(reply, about), parsing.lenient_side(reply, about))
            return tuple(None if one is None else float(one) for one in found)  # type: ignore[return-value]
        clip = self.asked.parser != "released"
        said = parsing.score(reply) if clip else parsing.first_score(reply)
        scores = (said, parsing.lenient_score(reply) if said is None else said)
        strict, lenient = (
            None if one is None else parsing.soft_value(one, clip=clip) for one in scores
        )
        return strict, lenient


SUITE = Personality()
