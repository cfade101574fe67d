"""What suites share whose items a model only reads, a decoder or an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.ledger import ReplyRow, Row

if TYPE_CHECKING:
    from suture.suites.scorers import Scorer

O = TypeVar("O", bound=FrozenConfig)


class Unspoken(Generic[O]):
    """A suite without replies. `options`: the class of its options; `what`, `why` and `usage`: why
    replies made elsewhere are no use to it (E527)."""

    name: ClassVar[str]
    options: ClassVar[type[FrozenConfig]]
    what: ClassVar[str]
    why: ClassVar[str]
    usage: ClassVar[str]
    default_data: tuple[Path, ...] = ()
    max_new_tokens = 1
    scorer: str | None = None
    needs_before = False
    needs_model = True
    reads = True  # an encoder will do, and no chat template is asked for

    def __init__(self, asked: O | None = None) -> None:
        self.asked: O = asked or self.options()  # type: ignore[assignment]

    def configure(self, options: Mapping[str, Any]) -> Self:
        """The suite with these options."""
        asked: Any = self.options.load(options, where=f"options of the suite {self.name}")
        return type(self)(asked)

    def generates(self, items: list[Any]) -> bool:
        """Nothing is replied."""
        return False

    def score(
        self, items: list[Any], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        raise SutureError(
            "E527",
            f"{self.what} cannot be scored from replies",
            why=self.why,
            fix=f"run `suture measure {self.name} --model DIR {self.usage}`",
        )
