"""Drift: how far a model has moved from the before model on harmless prompts.

The before model replies greedily; both models then read prompt and reply, and the score of an item
is KL(before || model) between their next-token distributions, in nats, averaged over the reply's
positions. 0 for the before model itself. This is the forward KL: it grows where the model gives
up what the before model would have said. Default data: the harmless prompts of `over-refusal`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suture.data import Prompt, read_jsonl
from suture.errors import SutureError
from suture.ledger import Better, ReplyRow, Row
from suture.suites.common import DATA, Answers, ask, one_id_each, thin

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer


class Drift:
    """Items: `Prompt` rows. Metric: kl. The replies kept are the before model's."""

    name = "drift"
    metrics: Mapping[str, Better] = {"kl": "lower"}
    default_data: tuple[Path, ...] = (DATA / "harmless_test.jsonl",)
    max_new_tokens = 32
    scorer: str | None = None
    needs_before = True
    needs_model = True

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
        scorer: Scorer | None = None,
        before: LoadedModel | None = None,
    ) -> Answers:
        from suture.inference import response_kl

        assert before is not None
        replies = ask(before, items, max_new_tokens)
        if before is lm:
            values = [0.0] * len(items)
        else:
            prompts, texts = [r.prompt for r in replies], [r.reply for r in replies]
            values = response_kl(before, lm, prompts, texts)
        rows = [
            Row(item.id, {"kl": value}, item.cluster)
            for item, value in zip(items, values, strict=True)
        ]
        return Answers(rows, replies)

    def generates(self, items: list[Prompt]) -> bool:
        """The before model replies; the model itself only reads."""
        return False

    def score(
        self, items: list[Prompt], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        raise SutureError(
            "E527",
            "drift cannot be scored from replies",
            why="it compares the two models' distributions, not their texts",
            fix="run `suture measure drift --model DIR --before DIR`",
        )


SUITE = Drift()
