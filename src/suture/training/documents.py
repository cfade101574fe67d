"""Plain text from files, as documents: what a model is pre-trained on, and read for its loss.

A source names files of one domain: text (`.txt`, `.md`), rows (`.csv`, `.tsv`, `.json`, `.jsonl`)
of which some fields count, each also as `.gz`, and `.zip` archives of text files. Long documents
are cut at paragraphs into sections: what is held out of training is whole sections.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from suture.config import FrozenConfig, one_or_many
from suture.data import same_text
from suture.errors import SutureError

TEXT = (".txt", ".md", ".text", "")
ROWS = (".csv", ".tsv", ".json", ".jsonl")
SECTION = 6000  # characters of a section, about


class TextSource(FrozenConfig):
    """Files of one domain. `name` is what losses are reported under."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="the domain, in small letters")
    files: Annotated[tuple[Path, ...], BeforeValidator(one_or_many)] = Field(min_length=1)
    field: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        ("text",), description="of rows: the fields that are text, joined by a line break"
    )
    split: str | None = Field(
        None, description="of text files: pattern between documents; default: a file is one"
    )
    inside: str = Field("*", description="of archives: pattern of the members that are read")
    encoding: str = "utf-8"
    most: int | None = Field(None, ge=1, description="characters at most, from the beginning")
    licence: str = Field("not stated", description="for the card of the model")

    @field_validator("split")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"'{value}' is no pattern: {error}") from None
        return value


@dataclass(frozen=True)
class Document:
    """One text; `domain` and `where` (file, and member or row of it) say what it is."""

    domain: str
    where: str
    text: str


def documents(source: TextSource) -> Iterator[Document]:
    """Every document of a source in the order of its files, empty ones left out; line ends are
    `\\n`.

    Errors: E940 a file that cannot be read as what it is, E941 a row without a field that counts,
    E942 a source without any text.
    """
    left = source.most
    found = False
    for document in _all(source):
        text = document.text.replace("\r\n", "\n").replace("\r", "\n").strip()
        text = text if left is None else text[:left]
        if text:
            found = True
            yield Document(document.domain, document.where, text)
        if left is not None:
            left -= len(text)
            if left <= 0:
                break
    if not found:
        raise SutureError(
            "E942",
            f"the source '{source.name}' holds no text",
            where=", ".join(map(str, source.files)),
            fix="check files, field, split and inside of this source",
        )


def sections(text: str, size: int = SECTION) -> Iterator[str]:
    """`text` in pieces of `size` characters or a little more, cut where a paragraph ends, else
    where a line or a word does; joined, the pieces are the text."""
    at = 0
    while len(text) - at > 2 * size:
        cut = at + size
        for mark in ("\n\n", "\n", " "):
            found = text.find(mark, cut, cut + size)
            if found >= 0:
                cut = found + len(mark)
                break
        yield text[at:cut]
        at = cut
    yield text[at:]


def held_out(section: str, share: float) -> bool:
    """Whether a section is kept from training: by its own words, so in every order of the files,
    and the same text is always on the same side."""
    digest = hashlib.blake2b(same_text(section).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _all(source: TextSource) -> Iterator[Document]:
    for file in source.files:
        if file.suffix == ".zip":
            for member, data in _members(file, source.inside):
                where = f"{file}/{member}"
                yield from _texts(source, where, _decoded(data, source.encoding, where))
            continue
        if _kind(file) in ROWS:
            yield from _rows(source, file)
        else:
            text = _decoded(_content(file), source.encoding, str(file))
            yield from _texts(source, str(file), text)


def _texts(source: TextSource, where: str, text: str) -> Iterator[Document]:
    parts = [text] if source.split is None else re.split(source.split, text)
    for part in parts:
        yield Document(source.name, where, part)


def _rows(source: TextSource, file: Path) -> Iterator[Document]:
    for number, row in rows_of(file, encoding=source.encoding):
        missing = [name for name in source.field if not isinstance(row.get(name), str)]
        if missing:
            raise SutureError(
                "E941",
                f"the row has no text in '{missing[0]}'",
                where=f"{file}:{number}",
                fix=f"set field to one of: {', '.join(map(str, row))}",
            )
        yield Document(
            source.name, f"{file}:{number}", "\n".join(row[name] for name in source.field)
        )


def rows_of(
    file: Path, *, encoding: str = "utf-8", named: bool = True
) -> list[tuple[int, dict[Any, Any]]]:
    """The rows of a .csv, .tsv, .json or .jsonl file, also as .gz, each with the number of its last
    line (in a JSON list: of the row, from 1).

    Not `named`: no line names the columns of a .csv or .tsv, they go by their numbers from 0.
    A .tsv quotes nothing, so a text may begin with a quotation mark. Errors: E940 another kind of
    file, or one that cannot be read as what it is; E941 a row of JSON that is no object.
    """
    kind = _kind(file)
    if kind not in ROWS:
        raise _no_kind(file, ROWS)
    text = _decoded(_content(file), encoding, str(file))
    if kind in (".csv", ".tsv"):
        csv.field_size_limit(2**30)
        form: dict[str, Any] = (
            {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {}
        )
        lines = io.StringIO(text, newline="")
        if named:
            by_name = csv.DictReader(lines, **form)
            return [(by_name.line_num, row) for row in by_name]
        by_place = csv.reader(lines, **form)
        return [(by_place.line_num, dict(enumerate(row))) for row in by_place if row]
    try:
        if text.lstrip()[:1] == "[":
            rows = list(enumerate(json.loads(text), 1))
        else:
            numbered = enumerate(text.split("\n"), 1)
            rows = [(number, json.loads(line)) for number, line in numbered if line.strip()]
    except ValueError as error:
        raise SutureError(
            "E940", f"not JSON: {error}", where=str(file), fix="give a list or a row on each line"
        ) from None
    for number, row in rows:
        if not isinstance(row, dict):
            raise SutureError(
                "E941",
                f"the row is no object with names, but {type(row).__name__}",
                where=f"{file}:{number}",
                fix='write {"text": ...} for each row',
            )
    return rows


def _kind(file: Path) -> str:
    """The suffix below `.gz`. Error E940: of no text file."""
    kind = (Path(file.stem) if file.suffix == ".gz" else file).suffix
    if kind not in (*TEXT, *ROWS):
        raise _no_kind(file, (*TEXT, *ROWS))
    return kind


def _no_kind(file: Path, known: Iterable[str]) -> SutureError:
    return SutureError(
        "E940",
        f"'{file.name}' is no kind of file that is read here",
        where=str(file),
        fix=f"give one of {', '.join(kind for kind in known if kind)}, plain or as .gz",
    )


def _members(file: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """The text files of an archive, by name."""
    try:
        with zipfile.ZipFile(file) as archive:
            for name in sorted(archive.namelist()):
                path = Path(name)
                hidden = path.name.startswith((".", "README"))
                if not name.endswith("/") and not hidden and path.match(pattern):
                    yield name, archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise _unreadable(file, error) from None


def _content(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> SutureError:
    return SutureError(
        "E940",
        "the text cannot be read",
        where=f"{file}: {error}",
        fix="check the path in the recipe; paths are relative to its folder",
    )


def _decoded(data: bytes, encoding: str, where: str) -> str:
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise SutureError(
            "E940",
            f"the text is not {encoding}",
            where=f"{where}: {error}",
            fix="set encoding of this source, for instance encoding: latin-1",
        ) from None
