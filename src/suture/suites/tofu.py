"""TOFU: has a model forgotten some of two hundred fictitious authors, and kept everything else?

Maini et al. 2024. `--data` is the folder of TOFU's files, or the files themselves:

    forget01_perturbed.json, forget05_..., forget10_...   rows to forget (the last 40, 200, 400)
    retain_perturbed.json                                 rows to keep
    real_authors_perturbed.json, world_facts_perturbed.json
    holdout01.json, ...                                   unseen rows, optional: membership attacks

Sets are told by the beginning of a file's name, so that files of other sizes will do. A set that
counts needs the wrong answers of its `_perturbed` file.

Options beside those of `forgetting.suite.Asked`:

    split     forget01, forget05 or forget10: which files of a folder
    authors   rows in a row about one author, who are one cluster; 20, and 0 for none

The reference is the model trained without the split ("oracle"), measured once with `--reference
none`. Numbers of another model or of another number of rows are not comparable with published ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from suture.errors import SutureError
from suture.ledger import Better
from suture.suites.common import one_id_each
from suture.suites.forgetting.columns import DEFINITIONS, OF_TEXT, Kind
from suture.suites.forgetting.facts import Fact, read_facts
from suture.suites.forgetting.logs import author_of
from suture.suites.forgetting.suite import Asked, Forgetting

_BEGINS: tuple[tuple[str, Kind], ...] = (
    ("forget", "forget"),
    ("retain", "retain"),
    ("real_authors", "authors"),
    ("world_facts", "world"),
    ("holdout", "holdout"),
)
_ORDER: tuple[Kind, ...] = ("forget", "retain", "authors", "world", "holdout")
_ENDINGS = (".json", ".json.gz", ".jsonl", ".jsonl.gz")


class TofuAsked(Asked):
    """Options of the suite."""

    split: Literal["forget01", "forget05", "forget10"] = Field(
        "forget10", description="which files of a folder"
    )
    authors: int = Field(20, ge=0, description="rows about one author; 0: rows are independent")


class Tofu(Forgetting):
    """Items: `Fact` rows of four or five sets."""

    name = "tofu"
    options = TofuAsked
    asked: TofuAsked
    metrics: Mapping[str, Better] = {
        name: about[0] for name, about in DEFINITIONS.items() if name not in OF_TEXT
    }

    def read(self, files: Sequence[Path], limit: int | None) -> list[Fact]:
        found: dict[Kind, Path] = {}
        for file in self.files(files):
            kind = _kind_of(file)
            if kind in found:
                raise SutureError(
                    "E556",
                    f"two files of the set '{kind}'",
                    where=f"{found[kind]} and {file}",
                    fix="give one file for each set, or the folder and --set split=NAME",
                )
            found[kind] = file
        wanted = {"forget", *self.utility(())}
        if missing := [kind for kind in _ORDER if kind in wanted and kind not in found]:
            raise SutureError(
                "E556",
                f"no file of the set '{missing[0]}'",
                where=", ".join(map(str, files)) or "--data",
                why="forget quality needs rows to forget, and model utility three further sets",
                fix="give TOFU's folder with --data, or say which sets count: "
                "--set utility=[retain]",
            )
        items = [
            self._clustered(fact)
            for kind in _ORDER
            if kind in found
            for fact in read_facts(kind, found[kind], limit=limit, rows=self.first_rows(kind))
        ]
        one_id_each(items, files)
        _check_answers(items, wanted)
        return self.checked(items, needs_reference=True)

    def files(self, files: Sequence[Path]) -> list[Path]:
        """The files themselves; of a folder those of the split, perturbed ones first."""
        found: list[Path] = []
        for path in files:
            if not path.is_dir():
                found.append(path)
                continue
            names = [self.asked.split, "retain", "real_authors", "world_facts"]
            names.append(self.asked.split.replace("forget", "holdout"))
            for name in names:
                forms = [path / f"{name}{tail}{e}" for tail in ("_perturbed", "") for e in _ENDINGS]
                found += [one for one in forms if one.is_file()][:1]
        return found + ([self.asked.holdout] if self.asked.holdout else [])

    @property
    def authors(self) -> int:
        return self.asked.authors

    def _clustered(self, fact: Fact) -> Fact:
        if fact.cluster is not None:
            return fact
        author = author_of(fact.kind, fact.id.partition("/")[2], self.asked.authors)
        return fact.model_copy(update={"cluster": author})


def _check_answers(items: Sequence[Fact], wanted: Collection[str]) -> None:
    """Refuse (E551) rows that have no truth ratio, before a model has answered any of them."""
    for fact in items:
        lacks = [] if fact.wrong else ["perturbed_answer"]
        if fact.kind in ("forget", "retain") and fact.paraphrased is None:
            lacks.append("paraphrased_answer")
        if fact.kind in wanted and lacks:
            raise SutureError(
                "E551",
                f"the truth ratio needs {lacks[0]}, which a row does not have",
                where=fact.id,
                why="forget quality and model utility are made of truth ratios",
                fix="give the files whose names end in _perturbed",
            )


def _kind_of(file: Path) -> Kind:
    for beginning, kind in _BEGINS:
        if file.name.startswith(beginning):
            return kind
    raise SutureError(
        "E556",
        "no set of TOFU begins like this file's name",
        where=str(file),
        fix=f"name it after its set: {', '.join(name for name, _ in _BEGINS)}",
    )


SUITE = Tofu()
