"""Task: a downstream task with a fixed set of replies.

    accuracy         the right option has the highest log-likelihood (sum over its tokens)
    greedy_accuracy  the greedy reply begins with the right option, word by word

The two can part: a damaged model may rank the options well and still say something else. Default
data: GoEmotions as three polarities, 2,000 rows of its test split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suture.data import Choice, read_jsonl
from suture.ledger import Better, ReplyRow, Row
from suture.suites.common import DATA, Answers, ask, naming, one_id_each, thin

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class Task:
    """Items: `Choice` rows. Ties between options go to the first, as in a plain argmax."""

    name = "task"
    metrics: Mapping[str, Better] = {"accuracy": "higher", "greedy_accuracy": "higher"}
    default_data: tuple[Path, ...] = (DATA / "goemotions_test.jsonl",)
    max_new_tokens = 8
    scorer: str | None = None
    needs_before = False

    def read(self, files: Sequence[Path], limit: int | None) -> list[Choice]:
        items = [item for file in files for item in read_jsonl(file, Choice)]
        one_id_each(items, files)
        return thin(items, limit)

    def measure(
        self,
        lm: LoadedModel,
        items: list[Choice],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: LoadedModel | None = None,
    ) -> Answers:
        from suture.inference import option_logprobs

        with naming(items):
            likelihoods = option_logprobs(
                lm, [item.prompt for item in items], [item.options for item in items]
            )
        replies = ask(lm, items, max_new_tokens)
        rows = [
            Row(
                row.item,
                {"accuracy": float(scores.index(max(scores)) == item.answer), **row.scores},
                row.cluster,
            )
            for row, item, scores in zip(
                self.score(items, replies, scorer), items, likelihoods, strict=True
            )
        ]
        return Answers(rows, replies)

    def score(
        self, items: list[Choice], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        return [
            Row(
                item.id,
                {"greedy_accuracy": float(says(reply.reply, item.options[item.answer]))},
                item.cluster,
            )
            for item, reply in zip(items, replies, strict=True)
        ]


def says(reply: str, option: str) -> bool:
    """Whether `reply` begins with the words of `option`, in any case and punctuation."""
    wanted = _WORD.findall(option.casefold()) or [option.strip()]
    words = _WORD.findall(reply.casefold()) if _WORD.search(option) else reply.split()
    return words[: len(wanted)] == wanted


SUITE = Task()
