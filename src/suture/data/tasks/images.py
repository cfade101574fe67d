"""What stands in for an image, or is one: captions, descriptions, attributes, files.

{"x.jpg": "A bench in the rain"}                          one JSON object (captions)
{"image_name": "...", "description": "..."} per line    JSONL (descriptions)
['12', 'bench', 'rain', ...]        Python lists (image attributes)
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from pathlib import Path

from suture.data.tasks.reading import json_file, lines, refuse

SUFFIXES = (".jpg", ".jpeg", ".png")


def in_words(path: Path | None, needed: Iterable[str]) -> dict[str, str]:
    """Image name (as the data name it) -> its words; {} without a file.

    An image without words stays without; if the file knows none of `needed` it is the wrong one
    (E359). E354 for a line of another form.
    """
    if path is None:
        return {}
    name = path.name.removesuffix(".gz")
    if name.endswith(".json"):
        found = {str(key): str(value) for key, value in json_file(path, dict).items()}
    elif name.endswith(".jsonl"):
        found = dict(_described(path, number, line) for number, line in lines(path))
    else:
        found = dict(_attributes(path, number, line) for number, line in lines(path))
    wanted = set(needed)
    if wanted and wanted.isdisjoint(found):
        refuse(
            "E359",
            "the file has words for none of the images",
            path,
            why=f"the data name images like '{min(wanted)}'",
            fix="give the file that belongs to this data set",
        )
    return found


def picture(folder: Path | None, name: str) -> Path | None:
    """The image file `name` in `folder`, with or without its suffix; None where there is none."""
    if folder is None or Path(name).name != name:  # a name that leaves the folder is no image
        return None
    for file in (folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES)):
        if file.is_file():
            return file
    return None


def _described(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        return str(row["image_name"]), str(row["description"])
    except (ValueError, KeyError, TypeError):
        refuse(
            "E354",
            "not a JSON object with image_name and description",
            path,
            number,
            fix="fetch the file again",
        )


def _attributes(path: Path, number: int, line: str) -> tuple[str, str]:
    row = python_list(path, number, line)
    return str(row[0]), ", ".join(map(str, row[1:]))


def python_list(path: Path, number: int, line: str) -> list[object]:
    """A line that holds a Python list of texts and numbers, read without running it (E354)."""
    try:
        row = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        row = None
    if not isinstance(row, list) or not row:
        refuse("E354", "not a Python list", path, number, fix="fetch the file again")
    return row
