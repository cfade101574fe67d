"""Answers that say nothing: what IDK trains towards and DPO prefers.

The default are TOFU's hundred ("I'm not sure about that topic."), `data/idontknow.txt`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from suture.data.records import Text
from suture.training.objectives.common import Material, answered_with
from suture.training.objectives.retain import RetainOptions

if TYPE_CHECKING:
    from suture.training.batches import Example

_FILE = Path(__file__).parents[1] / "data" / "idontknow.txt"


class RefusalOptions(RetainOptions):
    """The keys of every objective that knows a better answer than the one to forget."""

    refusals: tuple[Text, ...] = Field(
        (), description="answers that say nothing; without any TOFU's hundred"
    )

    def refused(self, material: Material) -> dict[tuple[int, ...], Example]:
        """Ids of every training example → its prompt with a refusal, drawn once by the seed.

        Error E930: a row of plain text, which asks nothing.
        """
        texts = self.refusals or published()
        found = answered_with(material, texts, 1, "refusals")
        return {ids: examples[0] for ids, examples in found.items()}


@cache
def published() -> tuple[str, ...]:
    """TOFU's refusals, one per line of the file."""
    return tuple(_FILE.read_text(encoding="utf-8").splitlines())
