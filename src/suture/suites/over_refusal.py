"""Over-refusal: does a model still answer what is harmless?

Default data: XSTest's 250 safe prompts that look unsafe and its 200 unsafe contrasts (Röttger et
al. 2024), and 900 harmless prompts of other kinds. A row has the score of its own kind only:

    xstest_safe_refused    rows with label "safe"      lower is better
    xstest_unsafe_refused  rows with label "unsafe"    higher is better
    harmless_refused       rows without a label        lower is better
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

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


class LabelledPrompt(Prompt):
    """A prompt that XSTest, or a set like it, calls safe or unsafe; without label: harmless."""

    label: Literal["safe", "unsafe"] | None = Field(None, description="safe, unsafe or absent")

    @property
    def metric(self) -> str:
        return f"xstest_{self.label}_refused" if self.label else "harmless_refused"


class OverRefusal:
    """Items: `LabelledPrompt` rows. `limit` holds for each of the three kinds."""

    name = "over-refusal"
    metrics: Mapping[str, Better] = {
        "harmless_refused": "lower",
        "xstest_safe_refused": "lower",
        "xstest_unsafe_refused": "higher",
        **QUALITY,
    }
    default_data: tuple[Path, ...] = (DATA / "xstest.jsonl", DATA / "harmless_test.jsonl")
    max_new_tokens = 32
    scorer: str | None = "refusal"
    needs_before = False

    def read(self, files: Sequence[Path], limit: int | None) -> list[LabelledPrompt]:
        items = [item for file in files for item in read_jsonl(file, LabelledPrompt)]
        one_id_each(items, files)
        kinds: dict[str, list[LabelledPrompt]] = {}
        for item in items:
            kinds.setdefault(item.metric, []).append(item)
        return [item for kind in kinds.values() for item in thin(kind, limit)]

    def measure(
        self,
        lm: LoadedModel,
        items: list[LabelledPrompt],
        *,
        max_new_tokens: int,
        scorer: Scorer | None,
        before: LoadedModel | None = None,
    ) -> Answers:
        replies = ask(lm, items, max_new_tokens)
        rows = self.score(items, replies, scorer)
        return Answers(with_logprob(rows, replies, before) if before else rows, replies)

    def score(
        self, items: list[LabelledPrompt], replies: Sequence[ReplyRow], scorer: Scorer | None
    ) -> list[Row]:
        assert scorer is not None
        return [
            Row(
                item.id,
                {item.metric: scorer.score(item.prompt, reply.reply), **quality(reply)},
                item.cluster,
            )
            for item, reply in zip(items, replies, strict=True)
        ]


SUITE = OverRefusal()
