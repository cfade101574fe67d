"""The data sets of `datasets.yaml`: which files make one, reading a split, what is on disk.

read_split("meld", Path("../shared/data"), "test")      a folder of data sets
read_split("meld", Path("my/meld"), "test")             the data set's own folder
read_split("meld", Path("my/some_other_name.csv"))      one file of its format
read_split("ecf:utterance", ...)                        another view of the same files
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from suture.config import FrozenConfig, key_lines, read_yaml
from suture.data.tasks.record import Record
from suture.errors import SutureError, nearest, some

TABLE = Path(__file__).parent / "datasets.yaml"
SPLITS = ("train", "dev", "test", "all")
Format = Literal[
    "acos", "dreaddit", "ecf", "emobench", "emorynlp", "empathetic", "eq_bench", "esconv",
    "goemotions", "iemocap", "label_tsv", "meld", "msa_csv", "mustard", "mvsa", "reccon",
    "records", "semeval2018", "semeval_absa", "span_json", "target_tsv", "three_lines",
    "tweeteval", "twitter_sarcasm",
]  # fmt: skip
Modality = Literal["text", "image", "audio", "video", "physiology"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio", "video", "physiology")


class Split(FrozenConfig):
    """The files of one split."""

    files: list[str] = Field(min_length=1, description="names or globs, in the data set's folder")
    records: int | None = Field(None, ge=1, description="how many records it has, as published")
    options: dict[str, Any] = Field(default={}, description="of the reader, for this split")


class View(FrozenConfig):
    """The same data read in another way."""

    title: str = Field(description="one line")
    options: dict[str, Any] = Field(default={}, description="of the reader, before the split's")
    sides: dict[str, str] = Field(default={}, description="in place of the data set's")
    splits: dict[str, Split] = Field(default={}, description="in place of the data set's")
    records: dict[str, int] = Field(default={}, description="counts of this view")


class Dataset(FrozenConfig):
    """One data set as its public files have it."""

    name: str = Field(description="as in the table; with `:view` for a view")
    title: str = Field(description="one line")
    format: Format = Field(description="the reader: a module of `suture.data.tasks.formats`")
    folder: str = Field(description="its folder under --data")
    splits: dict[str, Split] = Field(min_length=1, description="train, dev, test or all")
    options: dict[str, Any] = Field(default={}, description="of the reader")
    sides: dict[str, str] = Field(default={}, description="option of the reader to file or folder")
    needs: list[str] = Field(default=[], description="sides that the reader cannot do without")
    views: dict[str, View] = Field(default={}, description="other ways to read the files")
    modalities: dict[Modality, str] = Field(description="modality to how a model gets it here")
    licence: str = Field(description="as stated where the data come from")
    source: str = Field(description="where the files come from")
    sizes: Literal["confirmed", "inferred"] = Field("confirmed", description="mark of the counts")
    notes: str | None = Field(None, description="a trap")

    def view(self, name: str) -> Dataset:
        """The data set read as its view `name` says (E362 if it has none of that name)."""
        if name not in self.views:
            close = nearest(name, self.views)
            known = some(list(self.views)) or "none"
            raise SutureError(
                "E362",
                f"the data set '{self.name}' has no view '{name}'",
                fix=f"did you mean '{self.name}:{close}'?" if close else f"its views: {known}",
            )
        view = self.views[name]
        splits = {
            split: one.model_copy(
                update={"records": view.records[split]} if split in view.records else {}
            )
            for split, one in (view.splits or self.splits).items()
        }
        return self.model_copy(
            update={
                "name": f"{self.name}:{name}",
                "title": view.title,
                "options": {**self.options, **view.options},
                "sides": {**self.sides, **view.sides},
                "splits": splits,
                "views": {},
            }
        )

    def files(self, where: str | Path, split: str = "test") -> list[Path]:
        """The files of a split: in `where`/`folder`, in `where`, or `where` itself if it is a file.

        Errors: E301 nothing is at `where`, E361 the data set has no such split, E351 files are
        missing (all are named).
        """
        where = Path(where)
        if where.is_file():
            return [where]
        if not where.exists():
            raise SutureError(
                "E301", "there is no such folder or file", where=str(where), fix="check --data"
            )
        if split not in self.splits:
            raise SutureError(
                "E361",
                f"the data set '{self.name}' has no split '{split}'",
                fix=f"its splits: {', '.join(self.splits)}",
            )
        found, lost = _found([where / self.folder, where], self.splits[split].files)
        if lost:
            raise SutureError(
                "E351",
                f"the split '{split}' of '{self.name}' is not there: {some(lost)}",
                where=str(where),
                why=f"source: {self.source}; licence: {self.licence}",
                fix=f"put the files into {where / self.folder}, or name one: --data FILE",
            )
        return found

    def beside(self, where: str | Path, split: str = "test") -> dict[str, Path]:
        """The sides that are there, by option of the reader (E351 if a needed one is not)."""
        where = Path(where)
        places = [
            where / self.folder, where, *(file.parent for file in self.files(where, split)[:1])
        ]  # fmt: skip
        found: dict[str, Path] = {}
        for option, name in self.sides.items():
            there, _ = _found(places, [name])
            if there:
                found[option] = there[0]
        if lost := [self.sides[option] for option in self.needs if option not in found]:
            raise SutureError(
                "E351",
                f"'{self.name}' cannot be read without {some(lost)}",
                where=str(where),
                fix=f"put it beside the data, into {where / self.folder}",
            )
        return found

    def read(self, where: str | Path, split: str = "test") -> list[Record]:
        """The records of a split. Errors as in `files` and `beside`, and those of the reader."""
        reader = importlib.import_module(f"suture.data.tasks.formats.{self.format}")
        options = dict(self.options)
        if not Path(where).is_file():  # of a file by itself, all of it is meant
            options |= self.splits[split].options if split in self.splits else {}
        records: list[Record] = reader.read(
            self.files(where, split), **options, **self.beside(where, split)
        )
        return records

    def on_disk(self, where: str | Path) -> dict[str, list[Path]]:
        """The splits whose files are all in `where`/`folder`: elsewhere `train.tsv` may be
        another data set's."""
        own = Path(where) / self.folder
        found = {split: _found([own], one.files) for split, one in self.splits.items()}
        return {split: files for split, (files, lost) in found.items() if not lost}


@functools.cache
def datasets() -> dict[str, Dataset]:
    """All data sets of the table, by name, without views."""
    lines = key_lines(TABLE)
    return {
        name: Dataset.load(
            {"name": name, **row},
            where=TABLE.name,
            lines={at[1:]: line for at, line in lines.items() if at[:1] == (name,)},
        )
        for name, row in read_yaml(TABLE).items()
    }


def dataset(name: str) -> Dataset:
    """A data set, or a view of one as `NAME:VIEW`. Errors: E350 no such data set, E362 no view."""
    base, colon, view = name.partition(":")
    known = datasets()
    if base not in known:
        close = nearest(base, known)
        raise SutureError(
            "E350",
            f"there is no data set '{base}'",
            fix=f"did you mean '{close}'?" if close else f"there are: {some(list(known), 60)}",
        )
    return known[base].view(view) if colon else known[base]


def read_split(name: str, where: str | Path, split: str = "test") -> list[Record]:
    """The records of a split of a data set. Errors as in `dataset` and `Dataset.read`."""
    return dataset(name).read(where, split)


def on_disk(where: str | Path) -> dict[str, dict[str, list[Path]]]:
    """Data set -> its splits under the folder `where`, with their files; none: left out."""
    found = {name: one.on_disk(where) for name, one in datasets().items()}
    return {name: splits for name, splits in found.items() if splits}


def _found(places: Sequence[Path], names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(what there is in the first place that has it, the names that none has), also as .gz."""
    found: list[Path] = []
    lost: list[str] = []
    for name in names:
        tries = (
            sorted(path for path in place.glob(pattern) if not path.name.startswith("."))
            for place in places
            for pattern in (name, f"{name}.gz")
        )
        there = next((paths for paths in tries if paths), [])
        found += there
        lost += [] if there else [name]
    return found, lost
