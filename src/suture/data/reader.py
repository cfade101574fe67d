"""A strict JSONL reader: every refusal names file, line and column.

Accepted: UTF-8 with or without a byte order mark, LF or CRLF, blank lines, columns the record does
not know (left out). Refused: everything that would let a damaged file pass for a smaller good one,
such as a cut last line, a key given twice, NaN, half a surrogate pair, or two rows of one id.

Tables (.csv, .tsv) are read too, one row under the header each: cells are texts, an empty one is an
absent key, and one that begins with a bracket is JSON (a list of options). Both may be gzipped.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from suture.config import FrozenConfig, in_words
from suture.errors import SutureError, nearest

R = TypeVar("R", bound=FrozenConfig)

MAX_LINE_BYTES = 16 * 2**20  # a longer line is a file of another kind, not a prompt
_ALMOST = 0.8  # a column this like a missing optional field is taken for a slip of the pen


def read_jsonl(path: str | Path, record: type[R], *, limit: int | None = None) -> list[R]:
    """The rows of `path` as `record`s, in file order; the first `limit` of them if given.

    Errors as in `read_numbered`.
    """
    return [row for _, row in read_numbered(path, record, limit=limit)]


def read_numbered(
    path: str | Path, record: type[R], *, limit: int | None = None
) -> list[tuple[int, R]]:
    """`read_jsonl`, each row with its line, from 1.

    Raises SutureError: E301 no such file, E302 no rows, E303 not UTF-8, E304 not JSON or a key
    twice, E305 not an object, E306 a required key is missing, E307 a value of the wrong kind,
    E308 an id twice, E309 a line over 16 MiB, E310 half a surrogate pair, E311 an optional key
    almost spelt right, E312 the last line is cut off.
    """
    if limit is not None and limit < 1:
        raise SutureError("E702", f"limit is {limit}", fix="give a limit of at least 1")
    path = Path(path)
    rows: list[tuple[int, R]] = []
    seen: dict[str, int] = {}
    for number, line, raw in _rows(path):
        raw = raw if line else _numbers(raw, record)  # tables have no line of their own
        row = _record(path, number, line, raw, record)
        name = getattr(row, "id", None)
        if isinstance(name, str):
            if name in seen:
                _refuse(
                    "E308",
                    # an id may be the name of somebody who is to be forgotten
                    f"the id of line {number} was already used in line {seen[name]}",
                    (path, number, _column(line, "id")),
                    why="rows of two models are paired by id, so an id must be unique",
                    fix="give each row its own id, or leave ids out to use line numbers",
                )
            seen[name] = number
        rows.append((number, row))
        if len(rows) == limit:
            break
    if not rows:
        _refuse("E302", "the file has no rows", (path, 1, 1), fix="write one JSON object per line")
    return rows


def first_row(path: str | Path) -> dict[str, Any]:
    """The first row's columns, whatever they are; errors as in `read_jsonl`."""
    path = Path(path)
    for _, _, raw in _rows(path):
        return raw
    _refuse("E302", "the file has no rows", (path, 1, 1), fix="write one JSON object per line")


def read_raw(path: str | Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line number, the line, its columns) of every row as it comes, for forms that no record
    describes; the line is blank for tables. Errors as in `read_jsonl`, but for those of records."""
    path, number = Path(path), 0
    for number, line, raw in _rows(path):
        yield number, line, raw
    if not number:
        fix = "write one JSON object per line"
        _refuse("E302", "the file has no rows", (path, 1, 1), fix=fix)


def read_text(path: str | Path) -> str:
    """A whole text file, line ends as LF. Errors: E301, E303, E302 where it is blank."""
    path = Path(path)
    with _open(path) as file:
        raw = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        text = str(raw.decode("utf-8")).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        _refuse(
            "E303",
            f"byte 0x{raw[error.start]:02x} is not UTF-8",
            (path, line, 1),
            fix="save the file as UTF-8",
        )
    if not text.strip():
        _refuse("E302", "the file has no text", (path, 1, 1), fix="give a file with text in it")
    return text


def sha256_file(path: str | Path) -> str:
    """SHA-256 of the file's bytes, hex: how measurements name their data."""
    with _open(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> Any:
    try:
        file = path.open("rb")
        return file if path.suffix != ".gz" else io.BytesIO(_unzipped(path, file))
    except OSError as error:
        reason = "is a folder" if path.is_dir() else (error.strerror or "cannot be read").lower()
        there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, there)
        raise SutureError(
            "E301",
            f"cannot read the data file: {reason}",
            where=str(path),
            fix=f"did you mean '{path.parent / close}'?"
            if close and close != path.name
            else "check the path; data files are JSONL, one object per line",
        ) from None


def _unzipped(path: Path, file: Any) -> bytes:
    with file:
        try:
            return gzip.decompress(file.read())
        except (OSError, EOFError, zlib.error) as error:
            raise SutureError(
                "E301",
                f"cannot read the data file: not gzip, or cut off ({error})",
                where=str(path),
                fix="fetch or write the file again",
            ) from None


def _rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line number, text, columns) of every row."""
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _table(path, "\t" if kind == ".tsv" else ",")
        return
    for number, line, whole in _lines(path):
        yield number, line, _parse(path, number, line, whole)


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    table = csv.reader(io.StringIO(read_text(path)), delimiter=delimiter)
    header = [name.strip() for name in next(table, [])]
    for cells in table:
        number = table.line_num
        if len(cells) > len(header):
            _refuse(
                "E305",
                f"the row has {len(cells)} cells, the header {len(header)}",
                (path, number, 1),
                fix="put cells with commas into double quotes",
            )
        row: dict[str, Any] = {}
        for name, cell in zip(header, cells, strict=False):
            if cell.strip():
                row[name] = _cell(cell)
        yield number, "", row


def _numbers(row: dict[str, Any], record: type[FrozenConfig]) -> dict[str, Any]:
    """A table's row with whole numbers where the record wants them."""
    wanted = {name for name, field in record.model_fields.items() if field.annotation is int}
    digits = {key: int(row[key]) for key in wanted & row.keys() if str(row[key]).strip().isdigit()}
    return {**row, **digits}


def _cell(text: str) -> Any:
    """A list where it is one, else the text."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line number, text, ended by a newline) of every line that is not blank."""
    with _open(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                _refuse(
                    "E309",
                    f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB",
                    (path, number, 1),
                    fix="write one JSON object per line (from an array: jq -c '.[]')",
                )
            if number == 1:
                if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    _refuse(
                        "E303",
                        "the file is UTF-16, not UTF-8",
                        (path, 1, 1),
                        fix="convert it: iconv -f UTF-16 -t UTF-8",
                    )
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                good = raw[: error.start].decode("utf-8")
                if error.reason == "unexpected end of data":
                    _cut_off(path, number, len(good) + 1)
                _refuse(
                    "E303",
                    f"byte 0x{raw[error.start]:02x} is not UTF-8",
                    (path, number, len(good) + 1),
                    fix="save the file as UTF-8",
                )
            if text.strip():
                yield number, text.rstrip("\r\n"), text.endswith("\n")


def _parse(path: Path, number: int, line: str, whole: bool) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        if number == 1 and line.lstrip().startswith("["):
            fix = "this looks like one JSON array; write its items line by line: jq -c '.[]'"
        elif number == 1 and not line.lstrip().startswith("{"):
            fix = "data files are JSONL: one JSON object per line"
        else:
            fix = "correct this line"
        open_string = error.msg.startswith("Unterminated string")
        if not whole and (open_string or error.pos >= len(line.rstrip())):
            _cut_off(path, number, error.colno)
        _refuse("E304", f"not JSON: {error.msg}", (path, number, error.colno), fix=fix)
    except _KeyTwiceError as error:
        second = line.rfind(json.dumps(error.key))
        _refuse(
            "E304",
            f"key {_short(error.key)} stands twice in one row",
            (path, number, max(second, 0) + 1),
            fix="keep one of the two",
        )
    except (RecursionError, ValueError) as error:
        what = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        _refuse("E304", f"not JSON: {what}", (path, number, 1), fix="correct this line")
    if not isinstance(value, dict):
        _refuse(
            "E305",
            f"a row must be an object, not {_kind(value)}",
            (path, number, 1),
            fix='write {"prompt": "..."} with one object per line',
        )
    return value


def _record(path: Path, number: int, line: str, raw: dict[str, Any], record: type[R]) -> R:
    fields = record.model_fields
    strange = [key for key in raw if key not in fields]
    known = {key: value for key, value in raw.items() if key in fields}
    if "id" in fields:
        identity = known.setdefault("id", str(number))
        if isinstance(identity, int) and not isinstance(identity, bool):
            known["id"] = str(identity)  # numbered data sets are common and unambiguous
    for name, field in fields.items():
        if name in known:
            continue
        close = nearest(name, strange)
        if field.is_required():
            _refuse(
                "E306",
                f"the row has no '{name}'",
                (path, number, _column(line, close) if close else 1),
                fix=f"is {_short(close)} meant? rename it to '{name}'"
                if close
                else f"add '{name}'; this row has: {', '.join(map(_short, raw)) or 'nothing'}",
            )
        if close and _likeness(close, name) >= _ALMOST:
            _refuse(
                "E311",
                f"{_short(close)} is unknown but almost '{name}'",
                (path, number, _column(line, close)),
                why=f"it would be ignored, and '{name}' would count as absent",
                fix=f"rename it to '{name}', or to something else if it means something else",
            )
    for key, value in known.items():
        if (bad := _surrogate(value)) is not None:
            _refuse(
                "E310",
                f"'{key}' holds half a surrogate pair, U+{ord(bad):04X}",
                (path, number, _column(line, key)),
                why="it cannot be written as UTF-8 or given to a tokenizer",
                fix="remove it; it is the remains of an emoji cut in two",
            )
    try:
        return record.model_validate(known, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message, _ = in_words(first, key, show=False)
        _refuse(
            "E307",
            f"'{key}': {message}" if key else message,
            (path, number, _column(line, str(first["loc"][0])) if first["loc"] else 1),
            fix="correct this value",
        )


def _cut_off(path: Path, line: int, column: int) -> NoReturn:
    _refuse(
        "E312",
        "the last line is cut off",
        (path, line, column),
        why="rows after it may be missing too",
        fix="fetch or write the file again",
    )


def _refuse(
    code: str,
    what: str,
    at: tuple[Path, int, int],
    *,
    fix: str,
    why: str | None = None,
) -> NoReturn:
    path, line, column = at
    raise SutureError(code, what, where=f"{path}:{line}:{column}", why=why, fix=fix) from None


class _KeyTwiceError(ValueError):
    def __init__(self, key: str) -> None:
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _KeyTwiceError(key)
        out[key] = value
    return out


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _surrogate(value: Any) -> str | None:
    """The first lone surrogate in a string, or in the strings of a list or object."""
    if isinstance(value, str):
        found = re.search("[\ud800-\udfff]", value)
        return found.group() if found else None
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        return next((bad for item in value if (bad := _surrogate(item)) is not None), None)
    return None


def _column(line: str, key: str | None) -> int:
    """Where `key` begins in the line, from 1; 1 when it is written in escapes or absent."""
    return max(line.find(json.dumps(key, ensure_ascii=False)), 0) + 1 if key else 1


def _likeness(a: str, b: str) -> float:
    import difflib

    return difflib.SequenceMatcher(None, a, b).ratio()


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _short(text: str | None) -> str:
    shown = ascii(text) if text is None or len(text) <= 60 else ascii(text[:57] + "...")
    return shown
