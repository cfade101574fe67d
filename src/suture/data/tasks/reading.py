"""What the readers of public formats share: lines, tables and JSON, every refusal with file:line.

The files are read whole (the largest has 43,410 rows) and as UTF-8; .gz is opened as what it holds.
Nothing is guessed: a cell too many, a label that the format does not have or a number that is none
stops the reading, since a row left out would change every figure after it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from suture.data.reader import read_text
from suture.data.tasks.record import Record
from suture.errors import SutureError, nearest, some

V = TypeVar("V")


def refuse(
    code: str, what: str, path: Path, line: int | None = None, *, fix: str, why: str | None = None
) -> NoReturn:
    """Raise SutureError at `path:line`."""
    where = f"{path}:{line}" if line else str(path)
    raise SutureError(code, what, where=where, why=why, fix=fix) from None


def lines(path: Path, *, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its end) of every line that is not blank.

    Only LF and CRLF end a line: tweets hold U+0085 and U+2028, which `str.splitlines` would cut at.
    """
    text = read_text(path) if encoding == "utf-8" else _decoded(path, encoding)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _decoded(path: Path, encoding: str) -> str:
    try:
        return path.read_bytes().decode(encoding).replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        refuse("E303", f"cannot be read as {encoding}: {error}", path, fix="name its encoding")


def cells(path: Path, count: int, *, header: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Rows of a tab-separated file without quoting, each of exactly `count` cells (E352).

    `header`: the first line is one, of any width.
    """
    for number, line in lines(path):
        if header and number == 1:
            continue
        row = line.split("\t")
        if len(row) != count:
            refuse(
                "E352",
                f"the row has {len(row)} cells, not {count}",
                path,
                number,
                fix="fetch the file again, or check that it is of this format",
            )
        yield number, row


def table(path: Path, columns: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a comma-separated file with a header that has `columns` (E352), by column name; the
    number is the line on which the row begins."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    header = [name.strip() for name in next(reader, [])]
    if missing := [name for name in columns if name not in header]:
        close = nearest(missing[0], header)
        refuse(
            "E352",
            f"the header has no column {some(missing)}",
            path,
            1,
            fix=f"is '{close}' meant? rename it" if close else f"it has: {some(header, 12)}",
        )
    began = reader.line_num + 1
    for row in reader:
        if row and len(row) != len(header):
            refuse(
                "E352",
                f"the row has {len(row)} cells, the header {len(header)}",
                path,
                began,
                fix="put cells with commas into double quotes",
            )
        if row:
            yield began, dict(zip(header, row, strict=True))
        began = reader.line_num + 1


def json_file(path: Path, kind: type[V]) -> V:
    """The whole file as JSON; its outermost value must be a `kind` (E354)."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        refuse("E354", f"not JSON: {error}", path, line, fix="fetch the file again")
    if not isinstance(value, kind):
        refuse(
            "E354",
            f"the file holds a JSON {type(value).__name__}, not a {kind.__name__}",
            path,
            fix="check that it is a file of this format",
        )
    return value


def field(row: Mapping[str, Any], key: str, kind: type[V], path: Path, name: str) -> V:
    """`row[key]`, which must be a `kind` (E354). `name`: what the row is called."""
    if not isinstance(row, dict) or not isinstance(row.get(key), kind):
        refuse(
            "E354",
            f"{name} has no '{key}' that is a {kind.__name__}",
            path,
            fix="check that the file is of this format",
        )
    return row[key]  # type: ignore[no-any-return]


def texts(row: Mapping[str, Any], key: str, path: Path, name: str) -> list[str]:
    """`row[key]`, which must be a list of texts (E354)."""
    found = field(row, key, list, path, name)
    if not all(isinstance(one, str) for one in found):
        refuse("E354", f"{name} has a '{key}' that is no text", path, fix="fetch the file again")
    return found


def identity(given: str, path: Path, line: int | None = None) -> str:
    """`given` without blanks around it, as the id of a row (E352: it is empty)."""
    if not given.strip():
        refuse("E352", "the row has no id", path, line, fix="give the row an id of its own")
    return given.strip()


def label(
    given: str, known: Collection[str], path: Path, line: int | None, *, what: str = "label"
) -> str:
    """`given` if it is one of `known`, else E353."""
    if given not in known:
        close = nearest(given, known)
        refuse(
            "E353",
            f"the {what} '{given[:40]}' is none of: {some(list(known), 30)}",
            path,
            line,
            why="a label left out or read as another would change every metric",
            fix=f"is '{close}' meant?" if close else "correct this row",
        )
    return given


def number(given: str, path: Path, line: int | None, *, low: float, high: float) -> float:
    """`given` as a finite number from `low` to `high`, else E358."""
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        refuse(
            "E358",
            f"'{given[:40]}' is no number from {low:g} to {high:g}",
            path,
            line,
            fix="correct this row",
        )
    return value


def finished(records: Sequence[Record], files: Sequence[Path]) -> list[Record]:
    """The records, if there are any (E360) and no id stands twice (E357)."""
    where = ", ".join(map(str, files))
    if not records:
        raise SutureError(
            "E360", "no record is left", where=where, fix="check the files and the options"
        )
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise SutureError(
                "E357",
                f"the id '{record.id}' stands twice",
                where=where,
                why="rows of two models are paired by id",
                fix="give each row its own id",
            )
        seen.add(record.id)
    return list(records)
