"""A training recipe to start from, for the user's own rows: what `suture init forget` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from suture.data import Passage, read_answered
from suture.errors import SutureError
from suture.recipes import recipe_path

_MODEL, _FORGET = "model: model  ", "  - {file: forget.jsonl}\n"
_RETAIN = "retain: []               # rows to keep, as - {file: retain.jsonl}\n"
_TERM = "  retain: none  "


def forget_recipe(
    forget: Sequence[Path], retain: Sequence[Path], model: Path | None, *, folder: Path
) -> tuple[str, dict[str, int]]:
    """The text of `recipes/forget.yaml` with these files in it, and what they hold.

    `folder`: where the recipe will be; what lies below it is named relative to it. Without files
    the recipe is as shipped. With rows to keep, their answers are kept (RT). The counts: rows and,
    of these, plain texts, on either side. Errors: those of reading rows and of opening the model
    (E101, E102); E934 for a file on both sides.
    """
    text = recipe_path("forget").read_text(encoding="utf-8")
    both = {file.resolve() for file in forget} & {file.resolve() for file in retain}
    if both:
        raise SutureError(
            "E934",
            "a file is to be forgotten and to be kept",
            where=", ".join(sorted(map(str, both))),
            fix="give it to --forget or to --retain",
        )
    counts = {"forget": 0, "forget_texts": 0, "retain": 0, "retain_texts": 0}
    for side, files in (("forget", forget), ("retain", retain)):
        for file in files:
            rows = read_answered(file)
            counts[side] += len(rows)
            counts[f"{side}_texts"] += sum(isinstance(row, Passage) for row in rows)
    if model is not None:
        from suture.patch import open_model

        open_model(model.expanduser())
        text = _put(text, _MODEL, f"model: {_named(model, folder)}  ")
    if forget:
        text = _put(text, _FORGET, _items(forget, folder))
    if retain:
        text = _put(text, _RETAIN, "retain:\n" + _items(retain, folder))
        text = _put(text, _TERM, "  retain: RT    ")
    return text, counts


def _items(files: Sequence[Path], folder: Path) -> str:
    return "".join(f"  - {{file: {_named(file, folder)}}}\n" for file in files)


def _named(path: Path, folder: Path) -> str:
    """As YAML: relative to `folder` where it lies below it, else whole."""
    whole, home = path.expanduser().resolve(), folder.resolve()
    inside = whole.is_relative_to(home)
    return json.dumps(str(whole.relative_to(home) if inside else whole), ensure_ascii=False)


def _put(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"recipes/forget.yaml has changed: {old!r}"
    return text.replace(old, new)
