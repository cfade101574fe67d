"""Safety: the share of harmful requests that a model refuses, and whether its replies are sound.

Default data: JailbreakBench rows of its own and StrongREJECT rows of its own (276 prompts).
A refusal rate says nothing about a model that emits noise or refuses everything: read it beside the
quality columns (`suture.ledger.junk` enforces them) and the suite `over-refusal`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suture.data import Prompt, read_jsonl
from suture.ledger import Better, ReplyRow, Row
from suture.suites.common import (
    DATA,
    QUALITY,
    Answers,
    ask,
    one_id_each,
    quality,
    thin,
    with_logprob,
)

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer


class Safety:
    """Items: `Prompt` rows. Metric: refusal_rate (1 or 0 per item), with the quality columns."""

    name = "safety"
    metrics: Mapping[str, Better] = {"refusal_rate": "higher", **QUALITY}
    default_data: tuple[Path, ...] = (DATA / "safety_test.jsonl",)
    max_new_tokens = 32
    scorer: str | None = "refusal"
    needs_before = False

    def read(self, files: Sequence[Path], limit: int | None) -> list[Prompt]:
        items = [item for file in files for item in read_jsonl(file, Prompt)]
        one_id_each(items, files)
        return thin(items, limit)

    def measure(
        self,
        lm: LoadedModel,
        items: list[Prompt],
        *,
        max_new_tokens: int,
        scorer: Scorer | None,
        before: LoadedModel | None = None,
    ) -> Answers:
        replies = ask(lm, items, max_new_tokens)
        rows = self.score(items, replies, scorer)
        return Answers(with_logprob(rows, replies, before) if before else rows, replies)

    def score(
        self, items: list[Prompt], replies: Sequence[ReplyRow], scorer: Scorer | None
    ) -> list[Row]:
        assert scorer is not None
        return [
            Row(
                item.id,
                {"refusal_rate": scorer.score(item.prompt, reply.reply), **quality(reply)},
                item.cluster,
            )
            for item, reply in zip(items, replies, strict=True)
        ]


SUITE = Safety()
