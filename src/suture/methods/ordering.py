"""Edits in checkpoint order, whatever order they are made in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suture.errors import SutureError

if TYPE_CHECKING:
    from suture.checkpoint import TensorEdit


def in_order(
    names: Sequence[str], results: Iterator[TensorEdit], folder: Path | None = None
) -> Iterator[TensorEdit]:
    """Checkpoint order: layers may be stored as 0, 1, 10, 2; early results wait for their turn, in
    `folder` or TMPDIR where they are many.

    Raises SutureError E406 when the results end before every name had its edit, or hold another.
    """
    from suture.checkpoint import TensorEdit
    from suture.inference.spool import Spool

    waiting = Spool(folder)
    turn = iter(names)
    wanted = next(turn, None)
    for edit in results:
        if edit.name == wanted:
            yield edit
            wanted = next(turn, None)
        else:
            waiting.put(edit.name, edit.value)
        while wanted is not None and wanted in waiting:
            yield TensorEdit(wanted, waiting.take(wanted))
            wanted = next(turn, None)
    left = next(iter(waiting), None)
    if wanted is not None or left is not None:
        raise SutureError(
            "E406",
            "no decoder layer edits this matrix"
            if wanted is not None
            else "an edit of a matrix that is not in scope, or the second of one that is",
            where=wanted or str(left),
            why="a model with some of its matrices left out would pass for the edited one",
            fix="use --scope qv, or a method that works on any tensor (resta, task-arithmetic)",
        )
