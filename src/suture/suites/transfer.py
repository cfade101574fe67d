"""Transfer: how well a model classifies texts after fine-tuning on them.

    transfer_accuracy   share of the rows of --data whose label the fine-tuned model gives

A copy of the model is trained on the rows of `train`, less those whose text stands in --data too;
the measured folder stays as it is. The interval is over the rows: one fine-tuning of one seed, and
another seed's differs (CEA takes the mean of several). A mixture is fine-tuned without the losses
of its routers. Options:

    train     file or files to train on, of the same form as --data
    text      name of the column that holds the text; its number from 0 where no line names columns
    label     the same of the label
    limit     rows of `train`, at most, spread evenly
    epochs, rates, scope, batch, seed   of `suture.training.classifier.FineTuning`

Files: .jsonl and .json rows, .csv and .tsv with a first line of names or, where `text` and `label`
are numbers, without; each also as .gz.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from suture.config import FrozenConfig, one_or_many
from suture.data import same_text
from suture.errors import SutureError
from suture.ledger import Better, Row
from suture.progress import note
from suture.suites.common import Answers, thin
from suture.suites.unspoken import Unspoken
from suture.training.classifier import FineTuning, encoded, fine_tune, predict
from suture.training.documents import rows_of

if TYPE_CHECKING:
    from suture.inference.reading import Reader
    from suture.suites.scorers import Scorer


class Asked(FineTuning):
    """The rows, and how a classifier is trained on them."""

    train: Annotated[tuple[Path, ...], BeforeValidator(one_or_many)] = ()
    text: str | int = "text"
    label: str | int = "label"
    limit: int | None = Field(None, ge=1, description="rows to train on, at most")


class Labelled(FrozenConfig):
    """A text and what it is."""

    id: str
    prompt: str
    label: str
    cluster: str | None = None


class Transfer(Unspoken[Asked]):
    """Items: `Labelled` rows. Nothing is generated."""

    name = "transfer"
    metrics: Mapping[str, Better] = {"transfer_accuracy": "higher"}
    options = Asked
    what = "transfer"
    why = "it is what a model fine-tuned on labels gives"
    usage = "--data TEST --set train=TRAIN"

    def read(self, files: Sequence[Path], limit: int | None) -> list[Labelled]:
        if not files or not self.asked.train:
            raise SutureError(
                "E956",
                "transfer needs rows to train on and rows to measure",
                fix="give --data TEST --set train=TRAIN",
            )
        return thin([row for file in files for row in self._rows(file)], limit)

    def measure(
        self,
        lm: Any,
        items: list[Labelled],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: Any = None,
    ) -> Answers:
        reader: Reader = lm
        rows = thin(self._unseen(items), self.asked.limit)
        known = {row.label for row in rows}
        strange = [item for item in items if item.label not in known]
        if strange:
            raise SutureError(
                "E957",
                f"the label '{strange[0].label}' is in no row to train on",
                where=f"item '{strange[0].id}'",
                fix=f"the labels there are: {', '.join(sorted(known)[:20])}",
            )
        found = fine_tune(reader, [r.prompt for r in rows], [r.label for r in rows], self.asked)
        tried = ", ".join(f"{rate:g}: {value:.3f}" for rate, value in found.chosen_by.items())
        note(f"transfer: learning rate {found.rate:g} of {tried} on {len(rows)} rows")
        said = predict(found.model, encoded(reader, [item.prompt for item in items]))
        return Answers(
            [
                Row(
                    item.id,
                    {"transfer_accuracy": float(found.labels[one] == item.label)},
                    item.cluster,
                )
                for item, one in zip(items, said, strict=True)
            ],
            [],
        )

    def _unseen(self, items: Sequence[Labelled]) -> list[Labelled]:
        """The rows to train on that are not measured. Error E956: all are."""
        rows = [row for file in self.asked.train for row in self._rows(file)]
        asked = {same_text(item.prompt) for item in items}
        found = [row for row in rows if same_text(row.prompt) not in asked]
        if rows and not found:
            raise SutureError(
                "E956",
                "every row to train on is one to measure",
                where=", ".join(map(str, self.asked.train)),
                fix="give --set train=TRAIN, other rows than those of --data",
            )
        if len(found) < len(rows):
            note(f"transfer: {len(rows) - len(found)} of {len(rows)} rows to train on stand in "
                 "--data too and are left out")  # fmt: skip
        return found

    def _rows(self, file: Path) -> list[Labelled]:
        found = []
        for number, row in rows_of(file, named=isinstance(self.asked.text, str)):
            text, label = row.get(self.asked.text), row.get(self.asked.label)
            if text is None or label is None:
                raise SutureError(
                    "E958",
                    f"the row has no column '{self.asked.text}' or '{self.asked.label}'",
                    where=f"{file}:{number}",
                    fix=f"set text and label; there are: {', '.join(map(str, row))}",
                )
            found.append(Labelled(id=f"{file.name}:{number}", prompt=str(text), label=str(label)))
        return found


SUITE = Transfer()
