"""Open-ended: questions without one right answer, in one or two turns, as in MT-Bench.

The model answers the first turn and, with its own answer before it, the second. Replies and their
quality columns are kept; with a judge (`--judge chat:...` or `endpoint:...`) come grades from 1 to
10 and, against another model, preferences (`suture.suites.judging` has the columns). Rows are
turns; the turns of one question form one cluster.

Data: the 80 questions of MT-Bench, or a file of rows like theirs:

    {"question_id": 81, "category": "writing", "turns": ["...", "..."], "reference": ["...", "..."]}

`id` serves as well as `question_id`, `prompt` as `turns` of one turn; `reference`, right answers
for the judge, may be absent. Options of the suite (`--set KEY=VALUE`):

    references  file of right answers in FastChat's form (question_id, choices[0].turns), for
                questions that have none of their own
    against     the replies of another model, to be compared with: a file of replies, or `before`
                for the model given as before
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from suture.config import FrozenConfig
from suture.data.records import Text
from suture.errors import SutureError
from suture.ledger import Better, JudgedRow, ReplyRow, Row, load_replies
from suture.suites.common import (
    DATA,
    QUALITY,
    Answers,
    naming,
    one_id_each,
    quality,
    thin,
    with_logprob,
)
from suture.suites.judges import Purpose
from suture.suites.judging import GRADES
from suture.suites.questions import file_rows

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer

BEFORE = "before"
_MOST_TURNS = 2


class Comparing(FrozenConfig):
    """Options of the suite."""

    references: Path | None = Field(None, description="file of right answers, in FastChat's form")
    against: str | None = Field(None, description="a file of replies, or before")


class Turn(FrozenConfig):
    """One user turn; `id` is QUESTION/NUMBER, `question` its cluster."""

    id: Text
    prompt: Text = Field(description="what the user says")
    question: Text = Field(description="the question it belongs to")
    reference: Text | None = Field(None, description="a right answer, for the judge")
    category: str | None = None

    @property
    def cluster(self) -> str:
        return self.question


class OpenEnded:
    """Items: `Turn` rows. `limit` is the number of questions."""

    name = "open-ended"
    metrics: Mapping[str, Better] = {**GRADES, **QUALITY}
    default_data: tuple[Path, ...] = (DATA / "mt_bench.jsonl",)
    max_new_tokens = 512
    scorer: str | None = None
    judged: Purpose = "grade"

    def __init__(self, comparing: Comparing | None = None) -> None:
        self.comparing = comparing or Comparing()
        self.against = self.comparing.against
        self.needs_before = self.against == BEFORE

    def configure(self, options: Mapping[str, Any]) -> OpenEnded:
        """The suite with these options (`Comparing`)."""
        return OpenEnded(Comparing.load(dict(options), where="options of the suite open-ended"))

    def read(self, files: Sequence[Path], limit: int | None) -> list[Turn]:
        known = {} if self.comparing.references is None else _answers(self.comparing.references)
        questions = [turns for file in files for turns in _questions(file, known)]
        one_id_each([turns[0] for turns in questions], files)
        return [turn for turns in thin(questions, limit) for turn in turns]

    def measure(
        self,
        lm: LoadedModel,
        items: list[Turn],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: LoadedModel | None = None,
    ) -> Answers:
        replies = _converse(lm, items, max_new_tokens)
        other: dict[str, str] = {}
        if self.against == BEFORE and before is not None:
            said = replies if before is lm else _converse(before, items, max_new_tokens)
            other = {reply.item: reply.reply for reply in said}
        elif self.against is not None:
            other = self.others(items)
        rows = self.score(items, replies, scorer)
        if before is not None:
            rows = _with_logprob(items, rows, replies, before)
        return Answers(rows, replies, other)

    def score(
        self, items: list[Turn], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        return [
            Row(item.id, quality(reply), item.cluster)
            for item, reply in zip(items, replies, strict=True)
        ]

    def as_asked(self, item: Turn) -> dict[str, Any]:
        """A turn, and the one before it, whose reply belongs into the conversation."""
        question, _, turn = item.id.rpartition("/")
        first = turn == "1"
        return {
            "prompt": item.prompt,
            **({} if first else {"after": f"{question}/{int(turn) - 1}"}),
        }

    def others(self, items: Sequence[Turn], judged: Sequence[JudgedRow] = ()) -> dict[str, str]:
        """The other model's reply to each item, from the file, or from what was judged before."""
        if self.against is None:
            return {}
        if self.against == BEFORE:
            found = {row.item: row.other for row in judged if row.other is not None}
        else:
            found = {row.item: row.reply for row in load_replies(self.against)}
        missing = [item.id for item in items if item.id not in found]
        if missing:
            raise SutureError(
                "E546",
                f"{len(missing)} of {len(items)} items have no reply to be compared with, "
                f"the first is '{missing[0]}'",
                where=self.against,
                fix="give --set against=FILE, the replies of a measurement of the same questions",
            )
        return found


def _with_logprob(
    items: Sequence[Turn], rows: list[Row], replies: Sequence[ReplyRow], before: LoadedModel
) -> list[Row]:
    """`logprob_before` for first turns: what follows means little without them."""
    first = [i for i, item in enumerate(items) if item.id == f"{item.question}/1"]
    found = with_logprob([rows[i] for i in first], [replies[i] for i in first], before)
    scored = dict(zip(first, found, strict=True))
    return [scored.get(i, row) for i, row in enumerate(rows)]


def _converse(lm: LoadedModel, items: Sequence[Turn], limit: int) -> list[ReplyRow]:
    """Turn after turn, each question with what was said before."""
    from suture.inference.generation import converse

    spoken: dict[str, list[dict[str, str]]] = {}
    found: dict[str, ReplyRow] = {}
    waiting = list(items)
    while waiting:
        now = {item.question: item for item in reversed(waiting)}  # the first that is left of each
        for item in now.values():
            turn = {"role": "user", "content": item.prompt}
            spoken.setdefault(item.question, []).append(turn)
        with naming(list(now.values())):
            said = converse(lm, [spoken[one] for one in now], max_new_tokens=limit)
        for item, reply in zip(now.values(), said, strict=True):
            spoken[item.question].append({"role": "assistant", "content": reply.text})
            found[item.id] = ReplyRow(item.id, item.prompt, reply.text, reply.ended, reply.tokens)
        waiting = [item for item in waiting if item.id not in found]
    return [found[item.id] for item in items]


def _questions(file: Path, known: Mapping[str, Sequence[str]]) -> Iterator[list[Turn]]:
    for number, raw in file_rows(file):
        name = next((raw[key] for key in ("question_id", "id") if key in raw), number)
        asked = raw.get("turns", [raw.get("prompt")])
        right = raw.get("reference") or known.get(str(name)) or []
        right = [right] if isinstance(right, str) else right
        if not _texts(asked) or not 1 <= len(asked) <= _MOST_TURNS or not _strings(right):
            raise SutureError(
                "E547",
                "not a question in one or two turns",
                where=f"{file}:{number}",
                fix='write {"question_id": 1, "category": "...", "turns": ["...", "..."]}',
            )
        yield [
            Turn(
                id=f"{name}/{place}",
                prompt=prompt,
                question=str(name),
                reference=(right[place - 1].strip() or None) if place <= len(right) else None,
                category=raw.get("category"),
            )
            for place, prompt in enumerate(asked, 1)
        ]


def _answers(file: Path) -> dict[str, list[str]]:
    """FastChat's reference answers by question."""
    found = {}
    for number, raw in file_rows(file):
        try:
            turns = raw["choices"][0]["turns"]
            found[str(raw["question_id"])] = turns
        except (KeyError, IndexError, TypeError):
            turns = None
        if not _texts(turns):
            raise SutureError(
                "E547",
                "not an answer in FastChat's form",
                where=f"{file}:{number}",
                fix='write {"question_id": 1, "choices": [{"turns": ["...", "..."]}]}',
            )
    return found


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _texts(value: Any) -> bool:
    return _strings(value) and all(one.strip() for one in value)


SUITE = OpenEnded()
