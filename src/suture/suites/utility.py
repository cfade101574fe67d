"""Utility: what a model can do, by published benchmarks or one's own list of questions.

    accuracy       multiple choice: the right option has the highest log-likelihood (sum of tokens)
    accuracy_norm  the same per character of the option, which does not favour short ones
    exact_match    open questions: the answer found in the greedy reply is the right one
    answered       open questions: an answer was found at all

`questions` says which files are understood, `extraction` how an answer is found. Options of the
suite (`--set KEY=VALUE`):

    shots    solved examples before each question: 0, or 5 as for MMLU
    examples file or files to take them from, of the same category where there are enough; without,
             the first rows of each category serve and are not asked
    style    chat: examples are earlier turns, in the model's template; plain: a text with
             "Question:" and "Answer:", for models without a template
    present  text: options are full replies; letters: the question lists them and the reply is a
             letter

There is no default data: give --data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.ledger import Better, ReplyRow, Row
from suture.suites.common import Answers, naming, one_id_each, thin
from suture.suites.extraction import extract, normal_text, wanted
from suture.suites.questions import LETTERS, Question, read_questions

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.inference.likelihood import Likelihood
    from suture.suites.scorers import Scorer


class Asked(FrozenConfig):
    """How the questions are put."""

    shots: int = Field(0, ge=0, description="solved examples before each question")
    examples: list[Path] = Field(default=[], description="files the examples come from")
    style: Literal["chat", "plain"] = Field("chat", description="turns of a chat, or plain text")
    present: Literal["text", "letters"] = Field("text", description="options as texts or letters")


class Asking(FrozenConfig):
    """A question and the solved ones before it."""

    question: Question
    shots: tuple[Question, ...] = ()

    @property
    def id(self) -> str:
        return self.question.id

    @property
    def prompt(self) -> str:
        return self.question.prompt

    @property
    def cluster(self) -> str | None:
        return self.question.cluster


class Utility:
    """Items: `Asking` rows. Ties between options go to the first, as in a plain argmax."""

    name = "utility"
    metrics: Mapping[str, Better] = {
        "accuracy": "higher",
        "accuracy_norm": "higher",
        "exact_match": "higher",
        "answered": "higher",
    }
    default_data: tuple[Path, ...] = ()
    max_new_tokens = 256
    scorer: str | None = None
    needs_before = False

    def __init__(self, asked: Asked | None = None) -> None:
        self.asked = asked or Asked()

    def configure(self, options: Mapping[str, Any]) -> Utility:
        """The suite with these options (`Asked`)."""
        values = dict(options)
        if isinstance(values.get("examples"), str):
            values["examples"] = [values["examples"]]
        return Utility(Asked.load(values, where="options of the suite utility"))

    def read(self, files: Sequence[Path], limit: int | None) -> list[Asking]:
        if not files:
            raise SutureError(
                "E536",
                "the suite utility has no data of its own",
                fix="give --data FILE: a benchmark's file, or your own questions",
            )
        questions = [one for file in files for one in read_questions(file)]
        examples = [one for file in self.asked.examples for one in read_questions(file)]
        by_category: dict[str | None, list[Question]] = {}
        for one in examples or questions:
            by_category.setdefault(one.category, []).append(one)
        if not examples:
            used = {one.id for group in by_category.values() for one in group[: self.asked.shots]}
            questions = [one for one in questions if one.id not in used]
        items = [
            Asking(question=one, shots=tuple(self._examples_for(one, by_category, examples)))
            for one in questions
        ]
        if not items:
            raise SutureError(
                "E536",
                f"no question is left after {self.asked.shots} examples of each category",
                where=", ".join(map(str, files)),
                fix="give the examples in a file of their own with --set examples=FILE",
            )
        one_id_each(items, files)
        return thin(items, limit)

    def _examples_for(
        self,
        question: Question,
        by_category: Mapping[str | None, list[Question]],
        examples: list[Question],
    ) -> list[Question]:
        """Of the question's category where there are enough, else of all; never the question."""
        count = self.asked.shots
        own = by_category.get(question.category, [])
        pool = own if len(own) >= count else examples
        found = [one for one in pool if one.prompt != question.prompt][:count]
        if len(found) < count:
            raise SutureError(
                "E536",
                f"{count} examples are asked for, there are {len(found)}",
                where=f"question '{question.id}'",
                fix="give more with --set examples=FILE, or fewer shots",
            )
        return found

    def measure(
        self,
        lm: LoadedModel,
        items: list[Asking],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: LoadedModel | None = None,
    ) -> Answers:
        choice = [item for item in items if item.question.options]
        spoken = [item for item in items if not item.question.options]
        with naming(choice):
            likely = self._likelihoods(lm, choice)
        scores = dict(zip((i.id for i in choice), likely, strict=True))
        with naming(spoken):
            replies = self._replies(lm, spoken, max_new_tokens) if spoken else []
        said = {reply.item: reply for reply in replies}
        rows = []
        for item in items:
            if item.question.options:
                options = self._shown(item.question)
                rows.append(Row(item.id, _chosen(item, options, scores[item.id]), item.cluster))
            else:
                rows.append(Row(item.id, _answered(item, said[item.id]), item.cluster))
        return Answers(rows, replies)

    def score(
        self, items: list[Asking], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        """From replies alone: open questions as ever, options by being named."""
        return [
            Row(item.id, _answered(item, reply), item.cluster)
            for item, reply in zip(items, replies, strict=True)
        ]

    def generates(self, items: list[Asking]) -> bool:
        """Open questions are replied to; options are only read."""
        return any(not item.question.options for item in items)

    def as_asked(self, item: Asking) -> dict[str, Any]:
        """The prompt of an item, or, after solved examples, the turns of a chat."""
        if self.asked.style == "plain":
            return {"prompt": self._text(item)}
        turns = self._turns(item)
        return {"prompt": turns[-1]["content"], **({"messages": turns} if turns[1:] else {})}

    def _likelihoods(self, lm: LoadedModel, items: list[Asking]) -> list[list[Likelihood]]:
        from suture.inference.generation import conversation_ids
        from suture.inference.likelihood import likelihoods
        from suture.inference.scoring import text_likelihoods

        options = [self._shown(item.question) for item in items]
        if self.asked.style == "plain":
            contexts = [self._text(item) for item in items]
            spaced = [[f" {one}" for one in row] for row in options]
            return text_likelihoods(lm, contexts, spaced)
        starts = conversation_ids(lm, [self._turns(item) for item in items])
        ends = [
            [list(lm.tokenizer(one, add_special_tokens=False)["input_ids"]) for one in row]
            for row in options
        ]
        return likelihoods(lm, starts, ends)

    def _replies(self, lm: LoadedModel, items: list[Asking], limit: int) -> list[ReplyRow]:
        from suture.inference.generation import converse, generate_ids
        from suture.inference.scoring import bos

        if self.asked.style == "chat":
            found = converse(lm, [self._turns(item) for item in items], max_new_tokens=limit)
            texts = [reply.text for reply in found]
        else:
            asked = [self._text(item) for item in items]
            ids = [
                bos(lm) + list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
                for text in asked
            ]
            found = generate_ids(lm, ids, max_new_tokens=limit)
            texts = [reply.text.split("\nQuestion:")[0].rstrip() for reply in found]
        return [
            ReplyRow(item.id, item.prompt, text, reply.ended, reply.tokens)
            for item, reply, text in zip(items, found, texts, strict=True)
        ]

    def _turns(self, item: Asking) -> list[dict[str, str]]:
        turns = []
        for shot in item.shots:
            turns.append({"role": "user", "content": self._asked(shot)})
            turns.append({"role": "assistant", "content": self._solution(shot)})
        return [*turns, {"role": "user", "content": self._asked(item.question)}]

    def _text(self, item: Asking) -> str:
        shots = [f"Question: {self._asked(s)}\nAnswer: {self._solution(s)}\n\n" for s in item.shots]
        return "".join(shots) + f"Question: {self._asked(item.question)}\nAnswer:"

    def _asked(self, question: Question) -> str:
        if not question.options or self.asked.present == "text":
            return question.prompt
        listed = [f"{LETTERS[k]}. {one}" for k, one in enumerate(question.options)]
        return "\n".join([question.prompt, *listed])

    def _solution(self, question: Question) -> str:
        if question.answer is not None:
            return self._shown(question)[question.answer]
        return question.solution

    def _shown(self, question: Question) -> list[str]:
        if self.asked.present == "letters":
            return [LETTERS[k] for k in range(len(question.options))]
        return list(question.options)


def _chosen(item: Asking, options: Sequence[str], scores: Sequence[Likelihood]) -> dict[str, float]:
    plain = [one.logprob for one in scores]
    fair = [one.logprob / len(text) for one, text in zip(scores, options, strict=True)]
    return {
        "accuracy": float(plain.index(max(plain)) == item.question.answer),
        "accuracy_norm": float(fair.index(max(fair)) == item.question.answer),
    }


def _answered(item: Asking, reply: ReplyRow) -> dict[str, float]:
    question = item.question
    if question.options:
        named = _named(question, reply.reply)
        return {
            "exact_match": float(named == question.answer),
            "answered": float(named is not None),
        }
    target = question.target or ""
    found = extract(reply.reply, target)
    return {"exact_match": float(found == wanted(target)), "answered": float(found is not None)}


def _named(question: Question, reply: str) -> int | None:
    """Which option a reply names: by its text, else by its letter."""
    text = normal_text(reply)
    by_text = [k for k, one in enumerate(question.options) if text.startswith(normal_text(one))]
    if by_text:
        return max(by_text, key=lambda k: len(question.options[k]))
    letter = extract(reply, "(A)")
    place = LETTERS.find(letter) if letter else -1
    return place if 0 <= place < len(question.options) else None


SUITE = Utility()
