"""Labels from a file: what `suture labels estimate` writes, or MBTIBench's own rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from suture.data.reader import read_raw
from suture.errors import SutureError


@dataclass(frozen=True)
class Stored:
    """One item's labels: soft, 0 to 1 or each pole's share; hard, a pole. None: not labelled."""

    id: str
    soft: dict[str, float | dict[str, float] | None]
    hard: dict[str, str | None]


def read_labels(path: str | Path) -> list[Stored]:
    """The rows of a label file.

    Errors: E301 to E312 of the reader, E383 an id twice, E397 a row without soft labels, one
    outside 0 to 1, or other dimensions than the first row's.
    """
    rows: list[Stored] = []
    seen: dict[str, int] = {}
    for number, _, row in read_raw(path):
        where = f"{path}:{number}"
        name = str(row.get("id", number))
        if name in seen:
            raise SutureError(
                "E383",
                f"the id of line {seen[name]} stands again",
                where=where,
                fix="give each item its own id",
            )
        seen[name] = number
        soft, hard = row.get("softlabels"), row.get("hardlabels") or {}
        if not isinstance(soft, dict) or not soft or not isinstance(hard, dict):
            _refuse("the row has no soft labels", where)
        for dimension, value in soft.items():
            shares = list(value.values()) if isinstance(value, dict) else [value]
            if not shares or not all(_share(share) for share in shares):
                _refuse(f"the soft label of '{dimension}' is not between 0 and 1", where)
            if isinstance(value, dict) and None in shares:
                _refuse(f"the soft label of '{dimension}' lacks a pole's share", where)
            if not isinstance(hard.get(dimension), str | None):
                _refuse(f"the hard label of '{dimension}' is no pole", where)
            if rows and not _alike(rows[0].soft.get(dimension), value):
                _refuse(f"'{dimension}' has other poles than in the first row", where)
        if rows and set(soft) != set(rows[0].soft):
            _refuse("the row has other dimensions than the first", where)
        rows.append(Stored(name, soft, hard))
    return rows


def _alike(one: Any, other: Any) -> bool:
    """Both numbers, or shares of the same poles; None goes with either."""
    if one is None or other is None:
        return True
    shared = isinstance(one, dict), isinstance(other, dict)
    return shared == (False, False) or (all(shared) and set(one) == set(other))


def _share(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and 0 <= value <= 1)


def _refuse(what: str, where: str) -> NoReturn:
    raise SutureError(
        "E397", what, where=where, fix="give a file that `suture labels estimate` has written"
    )
