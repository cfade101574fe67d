"""Unlearning: has a model forgotten somebody's own rows or text, and kept the rest?

`--data` is what is to be forgotten: rows of question and answer, or running text (a name that ends
in .txt or .md), of which chunks are continued. Everything else is a file given as an option, and
adds its numbers:

    retain    rows or text to keep
    holdout   rows like those to forget that the model has never seen: membership attacks, PrivLeak
    other     text of no concern: perplexity
    reference measurement of a model that never saw the rows: forget quality (rows with wrong
              answers), PrivLeak's zero, what relearning may bring back
    probes    relearn, quantise: the same rows after training on them again, or in 4-bit weights

`UnlearningAsked` and `forgetting.suite.Asked` list all options, `forgetting.facts` the columns of a
row. General ability is the suite `utility` on the same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from suture.errors import SutureError
from suture.ledger import Better, Row
from suture.suites.common import one_id_each
from suture.suites.forgetting.columns import DEFINITIONS, OPTIONS, UTILITY, Kind
from suture.suites.forgetting.facts import CHUNK, READ, Fact, read_facts
from suture.suites.forgetting.suite import Asked, Forgetting


class UnlearningAsked(Asked):
    """Options of the suite."""

    retain: Path | None = Field(None, description="rows or text to keep")
    other: Path | None = Field(None, description="text of no concern, for perplexity")
    chunk: int = Field(CHUNK, ge=2, description="words of a chunk of text")
    read: int = Field(READ, ge=1, description="words of a chunk that are read, not continued")

    @model_validator(mode="after")
    def _something_to_continue(self) -> Self:
        if self.read >= self.chunk:
            raise ValueError(f"read is {self.read}, so nothing of a chunk of {self.chunk} is left")
        return self


class Unlearning(Forgetting):
    """Items: `Fact` rows to forget, and those that the options name."""

    name = "unlearning"
    options = UnlearningAsked
    asked: UnlearningAsked
    metrics: Mapping[str, Better] = {
        name: about[0] for name, about in DEFINITIONS.items() if not name.startswith(OPTIONS)
    }

    def read(self, files: Sequence[Path], limit: int | None) -> list[Fact]:
        if not files:
            raise SutureError(
                "E556",
                "nothing was given that is to be forgotten",
                where="--data",
                fix='give --data FILE with {"question": "...", "answer": "..."} per row, or a .txt',
            )
        people: dict[str, int] = {}  # somebody may stand in two files
        items = [fact for file in files for fact in self._facts("forget", file, limit, people)]
        more: list[tuple[Kind, Path | None]] = [
            ("retain", self.asked.retain),
            ("holdout", self.asked.holdout),
            ("other", self.asked.other),
        ]
        items += [fact for kind, file in more if file for fact in self._facts(kind, file, limit)]
        one_id_each(items, files)
        ratios = any(fact.wrong for fact in items if fact.kind == "forget")
        return self.checked(items, needs_reference=ratios or "relearn" in self.asked.probes)

    def _facts(
        self, kind: Kind, path: Path, limit: int | None, people: dict[str, int] | None = None
    ) -> list[Fact]:
        asked, rows = self.asked, self.first_rows(kind)
        return read_facts(
            kind, path, limit=limit, rows=rows, chunk=asked.chunk, read=asked.read, people=people
        )

    def utility(self, rows: Sequence[Row]) -> tuple[Kind, ...]:
        """The sets asked for; by default those whose rows all have wrong answers."""
        if self.asked.utility is not None:
            return self.asked.utility
        columns = {name for row in rows for name in row.scores}
        return tuple(kind for kind in UTILITY if f"{kind}_truth_ratio_geometric" in columns)


SUITE = Unlearning()
