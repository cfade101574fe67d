"""What several verbs of `suture labels` take, and how they read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.terminal import emit
from suture.errors import SutureError, nearest

if TYPE_CHECKING:
    from suture.labels import Votes
    from suture.labels.estimate import Mode

VotesFile = Annotated[
    Path, typer.Argument(help="votes: one row per item (`annotation`), or one row per vote")
]
ScaleText = Annotated[
    list[str] | None,
    typer.Option(
        "--scale",
        help="what may be voted: NAME=POLE|POLE or NAME=POLE:SYM,SYM|POLE:SYM, poles in order; or "
        "a YAML file. Names like E/I need none; rows per vote without a dimension vote on NAME "
        "label",
    ),
]
Dimensions = Annotated[
    list[str] | None, typer.Option("--dimension", help="only this one; may be repeated")
]
ModeText = Annotated[
    str, typer.Option("--mode", help="released: MBTIBench's procedure to the digit; or converged")
]
Limit = Annotated[int | None, typer.Option("--limit", help="the first so many items only")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


def votes_of(
    path: Path, scale: list[str] | None, limit: int | None, dimensions: list[str] | None
) -> Votes:
    """The votes of a file, with scales, limit and dimensions of the command line."""
    from suture.labels import read_scales, read_votes

    return read_votes(path, read_scales(scale or ()), limit=limit, dimensions=dimensions or ())


def tell_without_item(ids: list[str], path: Path | None) -> None:
    """A line about stated labels that fit no item, with the first ids."""
    if ids:
        emit(
            f"{len(ids)} rows of {path or 'the file'} fit no item of the votes that were read and "
            f"count nowhere: {', '.join(ids[:3])}{', …' if len(ids) > 3 else ''}"
        )


def mode_of(mode: str) -> Mode:
    """A mode, spelt right (E702)."""
    found: Mode = one_of(mode, "--mode", ("released", "converged"))
    return found


def one_of(word: str | None, flag: str, known: tuple[str, ...]) -> Any:
    """`word` itself; E702 where it is not among those that the flag knows."""
    if word is not None and word not in known:
        close = nearest(word, known)
        raise SutureError(
            "E702",
            f"{flag} is {word!r}, none of these: {', '.join(known)}",
            fix=f"did you mean '{close}'?" if close else f"give {flag} one of these values",
        )
    return word
