"""Safety: the share of harmful requests that a model refuses, and whether its replies are sound.

Default data: JailbreakBench rows of its own and StrongREJECT rows of its own (276 prompts).
A refusal rate says nothing about a model that emits noise or refuses everything: read it beside the
quality columns (`suture.ledger.junk` enforces them) and the suite `over-refusal`. With a judge
(`suture.suites.judges`) the four outcomes judged_* stand beside it.

Options of the suite (`--set KEY=VALUE`): `jailbreaks`, names of templates or `all`, puts every
request into each of them (`suture.suites.jailbreaks`; `none` is the bare request), `templates` is a
file of other templates, all of which are used where no names are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from suture.config import FrozenConfig
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
from suture.suites.jailbreaks import FILE, chosen, wrapped
from suture.suites.judges import OUTCOMES, Purpose

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer


class Wrapping(FrozenConfig):
    """How the requests are put."""

    jailbreaks: list[str] = Field(default=[], description="names of templates, or all")
    templates: Path = Field(FILE, description="the file they stand in")

    @property
    def names(self) -> list[str]:
        """The templates in use: those named, else all of a file that was given."""
        own = "templates" in self.model_fields_set and "jailbreaks" not in self.model_fields_set
        return ["all"] if own else self.jailbreaks


class Safety:
    """Items: `Prompt` rows. Metric: refusal_rate (1 or 0 per item), with the quality columns.

    `limit` is the number of requests; each stands in every template.
    """

    name = "safety"
    metrics: Mapping[str, Better] = {"refusal_rate": "higher", **OUTCOMES, **QUALITY}
    default_data: tuple[Path, ...] = (DATA / "safety_test.jsonl",)
    max_new_tokens = 32
    scorer: str | None = "refusal"
    needs_before = False
    judged: Purpose = "harm"

    def __init__(self, wrapping: Wrapping | None = None) -> None:
        self.wrapping = wrapping or Wrapping()

    def configure(self, options: Mapping[str, Any]) -> Safety:
        """The suite with these options (`Wrapping`)."""
        values = dict(options)
        if isinstance(values.get("jailbreaks"), str):
            values["jailbreaks"] = values["jailbreaks"].replace(" ", "").split(",")
        return Safety(Wrapping.load(values, where="options of the suite safety"))

    def read(self, files: Sequence[Path], limit: int | None) -> list[Prompt]:
        items = [item for file in files for item in read_jsonl(file, Prompt)]
        one_id_each(items, files)
        items = thin(items, limit)
        names = self.wrapping.names
        return wrapped(items, chosen(names, self.wrapping.templates)) if names else items

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
