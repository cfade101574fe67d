"""Labels that somebody states: what users say of themselves, or what is known to be true.

    {"id": 1, "self_report": "INTJ"}                       one letter per dimension, in its order
    {"id": 1, "self_report": {"E/I": "I", "S/N": "N"}}     by dimension
    {"id": "t7", "label": "yes"}                           where there is one dimension

What users say of themselves stands under `self_report` or `type`, what is known under `label`,
`hardlabels` or `type`: a label file given for self-reports by mistake is refused. A label that is
no pole is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.data.reader import read_raw
from suture.errors import SutureError, some
from suture.labels.scale import Scale
from suture.labels.votes import Votes

SELF_REPORT = ("self_report", "type")
TRUTH = ("label", "hardlabels", "type")


@dataclass(frozen=True)
class Declared:
    """`labels`: per item of the votes, the pole stated for each dimension; what is not stated is
    absent. `without_item`: ids that state a label, but that no item of the votes has."""

    labels: list[dict[str, str]]
    without_item: list[str]


def declared(
    votes: Votes, path: str | Path | None = None, *, columns: Sequence[str] = SELF_REPORT
) -> Declared:
    """The labels that are stated for the items of `votes`.

    `path`: a file of such rows; default: the votes' own rows. `columns`: where a label may stand;
    the first of them that any row has is taken.

    Errors: E301 to E312 of the reader, E392 no such column, or a label outside the dimension's
    poles; E393 no item of the votes is in the file, or one twice.
    """
    scales = {name: ballot.scale for name, ballot in votes.ballots.items()}
    if path is None:
        rows = list(zip(votes.lines, votes.items, votes.rows, strict=False))
        where = str(votes.path or "votes")
    else:
        rows = [(n, str(row.get("id", row.get("item", n))), row) for n, _, row in read_raw(path)]
        where = str(path)
    column = next((name for name in columns if any(name in row for _, _, row in rows)), None)
    if column is None:
        have = sorted({name for _, _, row in rows[:1] for name in row})
        raise SutureError(
            "E392",
            f"no row states a label; looked for: {', '.join(columns)}",
            where=where,
            why=f"the first row has: {some(have) or 'nothing'}",
            fix="give a file with --self-report FILE, rows with id and self_report"
            if path is None
            else f"give a file of rows with id and {columns[0]}",
        )
    every = votes.dimensions or [*scales]
    found: dict[str, dict[str, str]] = {}
    for number, name, row in rows:
        if name in found:
            raise SutureError(
                "E393",
                f"item '{name}' stands twice",
                where=f"{where}:{number}",
                fix="keep one of the two rows",
            )
        found[name] = _poles(row.get(column), scales, every, f"{where}:{number}")
    if not any(found.get(name) for name in votes.items):
        raise SutureError(
            "E393",
            "no item of the votes has a label there",
            where=where,
            why="rows are matched by id",
            fix="use the same ids in both files",
        )
    known = set(votes.items)
    return Declared(
        labels=[found.get(name, {}) for name in votes.items],
        without_item=[name for name, own in found.items() if own and name not in known],
    )


def _poles(
    value: Any, scales: Mapping[str, Scale], every: Sequence[str], where: str
) -> dict[str, str]:
    """The poles of one row; letters stand for `every` dimension of the file, in its order."""
    if value is None:
        return {}
    if isinstance(value, str):
        letters = all(len(pole) == 1 for scale in scales.values() for pole in scale.poles)
        if letters and len(value.strip()) == len(every):
            value = dict(zip(every, value.strip(), strict=True))
        elif len(scales) == 1:
            value = dict.fromkeys(scales, value.strip())
    if not isinstance(value, dict):
        raise SutureError(
            "E392",
            "the label cannot be divided among the dimensions",
            where=where,
            why=f"dimensions: {', '.join(scales)}",
            fix="write one pole per dimension: {DIMENSION: POLE}",
        )
    out = {}
    for name, pole in value.items():
        if name in scales and pole is not None:
            same = {known.casefold(): known for known in scales[name].poles}
            pole = pole if pole in scales[name].poles else same.get(str(pole).casefold())
            if pole is None:
                raise SutureError(
                    "E392",
                    f"'{value[name]}' is no pole of '{name}': {some(scales[name].names, 12)}",
                    where=where,
                    fix="correct the label, or write null where none is stated",
                )
            out[name] = pole
    return out
