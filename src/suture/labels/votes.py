"""Votes from files, whatever their number of annotators, dimensions and gaps.

    {"id": 1, "annotation": {"E/I": {"A1": "E-", "A2": "I+"}, ...}}   one row per item, as MBTIBench
    {"item": "t1", "annotator": "ann", "vote": "yes"}                 one row per vote; a table too
    {"item": "t1", "annotator": "ann", "dimension": "E/I", "vote": "E-"}

Other columns are left alone. A vote that is null, or not there, is missing and counted as such;
nothing else is guessed: an unknown symbol is an error with its line.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from suture.data.reader import read_raw
from suture.errors import SutureError, nearest, some
from suture.labels.scale import Scale, scale_for
from suture.lazy import np
from suture.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

ONLY = "label"  # the dimension of files that name none
_LEFT = {"id", "annotation", "posts", "text"}  # kept elsewhere, or not needed
_NOTHING: dict[str, Any] = {}  # one for all rows that hold no more


@dataclass(frozen=True)
class Ballot:
    """All votes of one dimension as three equally long arrays, sorted by item, then annotator.

    `item`, `annotator`: places in the lists of `Votes`; `symbol`: place in `scale.symbols`.
    """

    scale: Scale
    item: NDArray[np.int64]
    annotator: NDArray[np.int64]
    symbol: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.item)

    def table(self, items: int, annotators: int) -> NDArray[np.int64]:
        """Symbols as (items, annotators), -1 where there is no vote."""
        cells = np.full((items, annotators), -1, dtype=np.int64)
        cells[self.item, self.annotator] = self.symbol
        return cells


@dataclass(frozen=True)
class Votes:
    """`items` in file order, `annotators` in order of their names, `ballots` by dimension.

    `ids`: the items' ids as the file has them, numbers too. `rows`: the columns of each item that
    are no votes (self-reports, stored labels), where the file has one row per item. `lines`: the
    line of each item. `path`: the file, None for an array. `dimensions`: all that the
    file has, also those that were not asked for.
    """

    items: list[str]
    annotators: list[str]
    ballots: dict[str, Ballot]
    ids: Sequence[str | int]
    rows: list[dict[str, Any]]
    lines: Sequence[int]
    path: Path | None = None
    dimensions: Sequence[str] = ()

    @classmethod
    def of_table(cls, cells: Any, scale: Scale) -> Votes:
        """Votes on one dimension from an array (items, annotators) of symbol places; -1: none.

        E385 for a place that the scale does not have, E386 for votes of one annotator,
        E387 for none at all.
        """
        cells = np.asarray(cells)
        if cells.size and not -1 <= cells.min() <= cells.max() < len(scale.symbols):
            raise SutureError(
                "E385",
                f"a vote is not among the {len(scale.symbols)} symbols of '{scale.name}'",
                where="votes as an array",
                fix=f"give places from 0 to {len(scale.symbols) - 1}, or -1 for no vote",
            )
        item, annotator = np.nonzero(cells >= 0)
        refuse_few(annotator, scale.name, "votes as an array")
        ballot = Ballot(scale, item, annotator, cells[item, annotator].astype(np.int64))
        n, k = cells.shape
        width = len(str(k))
        names = [f"A{place:0{width}d}" for place in range(1, k + 1)]
        items = [str(i + 1) for i in range(n)]
        return cls(items, names, {scale.name: ballot}, items, [], [])


def read_votes(
    path: str | Path,
    scales: Mapping[str, Scale] | None = None,
    *,
    limit: int | None = None,
    dimensions: Sequence[str] = (),
) -> Votes:
    """The votes of a file, checked. `scales`: by dimension, for those whose names do not tell.
    `limit`: the first items only, with all their votes. `dimensions`: these only, whatever the
    others hold; default: all. Rows per vote that name no dimension vote on the one called `label`.

    Errors, with file and line: E301 to E312 of the reader; E380 a dimension without a scale, E382
    rows of neither form, E383 an item or a vote twice, E384 an item without votes at all, E385 an
    unknown symbol, E386 one annotator, E387 a dimension that nobody voted on, E388 one of
    `dimensions` that the file does not have.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise SutureError("E702", f"limit is {limit}", fix="give a limit of at least 1")
    read = _Reading(path, limit)
    for number, _, row in track(read_raw(path), "rows of votes"):
        if not read.take(number, row):
            break
    return read.votes(scales or {}, dimensions)


class _Reading:
    """What has been read so far, symbols still as texts."""

    def __init__(self, path: Path, limit: int | None) -> None:
        self.path, self.limit = path, limit
        self.wide: bool | None = None
        self.items: dict[str, int] = {}
        self.ids: list[str | int] = []
        self.lines = array("q")
        self.rows: list[dict[str, Any]] = []
        self.annotators: dict[str, int] = {}
        self.symbols: dict[str, dict[str, int]] = {}  # of each dimension, as they appear
        self.boxes: dict[str, tuple[array[int], ...]] = {}

    def take(self, number: int, row: dict[str, Any]) -> bool:
        """One row; False when it and all behind it are beyond the limit."""
        if self.wide is None:
            self.wide = "annotation" in row
        own = row.get("id", str(number)) if self.wide else row.get("item")
        name = str(own) if isinstance(own, int) and not isinstance(own, bool) else own
        if not isinstance(name, str) or not isinstance(own, str | int) or not name.strip():
            self._refuse_form(number, row)
        new = name not in self.items
        if new and len(self.items) == self.limit:
            return not self.wide  # votes on the items within may stand further down
        if self.wide and not new:
            first = self.lines[self.items[name]]
            self._refuse(
                "E383", f"the id of line {first} stands again", number, "give each item its own id"
            )
        place = self.items.setdefault(name, len(self.items))
        if new:
            self.lines.append(number)
            self.ids.append(own)
        if self.wide:
            self.rows.append({k: v for k, v in row.items() if k not in _LEFT} or _NOTHING)
            self._item_row(place, number, row)
        else:
            self._vote_row(place, number, row)
        return True

    def _item_row(self, place: int, number: int, row: dict[str, Any]) -> None:
        annotation = row.get("annotation")
        if not isinstance(annotation, dict):
            self._refuse_form(number, row)
        any_vote = False
        for dimension, votes in annotation.items():
            if not isinstance(votes, dict):
                self._refuse(
                    "E382",
                    f"the votes on '{dimension}' are not an object",
                    number,
                    'write "annotation": {DIMENSION: {ANNOTATOR: SYMBOL}}',
                )
            self._box(dimension)  # also where nobody votes
            for annotator, vote in votes.items():
                any_vote |= self._add_vote(place, dimension, annotator, vote, number)
        if not any_vote:
            self._refuse(
                "E384", "the item has no votes at all", number, "remove the row, or add its votes"
            )

    def _vote_row(self, place: int, number: int, row: dict[str, Any]) -> None:
        annotator, dimension = row.get("annotator"), row.get("dimension", ONLY)
        if isinstance(annotator, int) and not isinstance(annotator, bool):
            annotator = str(annotator)
        if not isinstance(annotator, str) or not isinstance(dimension, str):
            self._refuse_form(number, row)
        self._add_vote(place, dimension, annotator, row.get("vote"), number)

    def _add_vote(self, place: int, dimension: str, annotator: str, vote: Any, number: int) -> bool:
        known, (item, who, what, where) = self._box(dimension)
        by = self.annotators.setdefault(annotator.strip(), len(self.annotators))
        if vote is None:
            return False
        if isinstance(vote, int) and not isinstance(vote, bool):
            vote = str(vote)
        if not isinstance(vote, str):
            self._refuse(
                "E385",
                f"the vote of '{annotator}' on '{dimension}' is not a text",
                number,
                "write the symbol as a text, or null for no vote",
            )
        item.append(place)
        who.append(by)
        what.append(known.setdefault(vote.strip(), len(known)))
        where.append(number)
        return True

    def _box(self, dimension: str) -> tuple[dict[str, int], tuple[array[int], ...]]:
        """Symbols and votes of a dimension so far."""
        dimension = dimension.strip()
        if dimension not in self.boxes:
            self.symbols[dimension] = {}
            self.boxes[dimension] = (array("q"), array("q"), array("q"), array("q"))
        return self.symbols[dimension], self.boxes[dimension]

    def votes(self, scales: Mapping[str, Scale], dimensions: Sequence[str]) -> Votes:
        """All that was read, as arrays; of the `dimensions` only, where there are any."""
        wanted = check_dimensions(dimensions, self.boxes)
        strange = [name for name in scales if name not in self.boxes]
        if strange:
            close = nearest(strange[0], self.boxes)
            raise SutureError(
                "E380",
                f"--scale names '{strange[0]}', which nobody voted on",
                where=str(self.path),
                why=f"rows that name no dimension vote on '{ONLY}'" if ONLY in self.boxes else None,
                fix=f"did you mean '{close}'?" if close else f"there are: {some([*self.boxes])}",
            )
        names = sorted(self.annotators)
        rank = np.empty(len(names), dtype=np.int64)
        rank[[self.annotators[name] for name in names]] = np.arange(len(names))
        ballots = {name: self._ballot(name, scales, rank) for name in wanted}
        items = list(self.items)
        every = [*self.boxes]
        return Votes(items, names, ballots, self.ids, self.rows, self.lines, self.path, every)

    def _ballot(self, name: str, scales: Mapping[str, Scale], rank: Any) -> Ballot:
        item, who, what, where = (np.array(part, dtype=np.int64) for part in self.boxes[name])
        refuse_few(who, name, str(self.path))
        seen = self.symbols[name]
        scale = scale_for(name, scales, seen, self.path)
        places = {symbol: place for place, symbol in enumerate(scale.symbols)}
        unknown = [symbol for symbol in seen if symbol not in places]
        if unknown:
            first = int(where[what == seen[unknown[0]]][0])
            close = nearest(unknown[0], places)
            self._refuse(
                "E385",
                f"'{unknown[0]}' is no symbol of '{name}': {some(scale.symbols, 12)}",
                first,
                f"did you mean '{close}'?"
                if close
                else "correct the vote, write null for no vote, or declare the symbol in --scale",
            )
        code = np.array([places[symbol] for symbol in seen], dtype=np.int64)
        annotator = rank[who]
        order = np.lexsort((annotator, item))
        item, annotator, where = item[order], annotator[order], where[order]
        twice = (np.diff(item) == 0) & (np.diff(annotator) == 0)
        if twice.any():
            at = int(np.flatnonzero(twice)[0])
            first, again = sorted((int(where[at]), int(where[at + 1])))
            self._refuse(
                "E383",
                f"the annotator of line {first} votes on the same item again",
                again,
                "keep one of the two votes",
            )
        return Ballot(scale, item, annotator, code[what[order]])

    def _refuse_form(self, number: int, row: dict[str, Any]) -> NoReturn:
        self._refuse(
            "E382",
            f"the row holds no votes; it has: {some([*row]) or 'nothing'}",
            number,
            "write id and annotation, or item, annotator and vote",
        )

    def _refuse(self, code: str, what: str, number: int, fix: str) -> NoReturn:
        raise SutureError(code, what, where=f"{self.path}:{number}", fix=fix)


def refuse_few(annotators: NDArray[np.int64], dimension: str, where: str) -> None:
    """E387 where nobody voted on a dimension, E386 where all votes are of one annotator."""
    if not len(annotators):
        raise SutureError(
            "E387",
            f"nobody voted on '{dimension}'",
            where=where,
            why="there is nothing to estimate a label from",
            fix=f"name the others with --dimension, remove '{dimension}', or add its votes",
        )
    if annotators.min() == annotators.max():
        raise SutureError(
            "E386",
            f"all votes on '{dimension}' are of one annotator",
            where=where,
            why="a soft label, a reliability and an agreement come from several",
            fix="give the votes of at least two annotators, use the votes as hard labels, or name "
            "other dimensions with --dimension",
        )


def check_dimensions(wanted: Sequence[str], known: Collection[str]) -> list[str]:
    """The dimensions asked for, all that are `known` without any; E388 for one that is none."""
    for name in wanted:
        if name not in known:
            close = nearest(name, known)
            raise SutureError(
                "E388",
                f"there is no dimension '{name}'",
                fix=f"did you mean '{close}'?" if close else f"there are: {some([*known])}",
            )
    return list(wanted) or list(known)
