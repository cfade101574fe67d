"""What every suite shares: the protocol, asking a model, and the quality of its replies.

A suite is one module with a `SUITE`: it reads items, measures a model on them and scores texts.
Scoring is apart from generating, so that `suture score` needs no model.

Quality columns of every suite that generates, one number per reply:

    ends_properly   1 when the reply ended by itself, before the token limit, and says something
    distinct_2      different word pairs / word pairs; 1 for a single word, 0 for an empty reply
    repetition      share of the words inside a loop: a phrase of 1 to 8 words, three times running
    logprob_before  mean log-probability per token under the before model, where one is given
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from suture.config import FrozenConfig
from suture.data import same_text
from suture.errors import SutureError, TooLongError
from suture.ledger import Better, ReplyRow, Row

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer

DATA = Path(__file__).parent / "data"
QUALITY: dict[str, Better] = {
    "ends_properly": "higher",
    "distinct_2": "higher",
    "repetition": "lower",
    "logprob_before": "higher",
}
_LONGEST_LOOP = 8
_UNSPACED = 20  # mean "word" length above which a text has no blanks and characters count as words

I = TypeVar("I")


class Item(Protocol):
    """What every record of a data file has."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def cluster(self) -> str | None: ...


@dataclass(frozen=True)
class Answers:
    """What a suite found: one row per item, and the replies where it generated any.

    `other`: another model's reply by item, where a judge is to compare the two.
    """

    rows: list[Row]
    replies: list[ReplyRow]
    other: Mapping[str, str] = field(default_factory=dict)


class Suite(Protocol):
    """One thing worth measuring. Modules of `suture.suites` hold one each, as `SUITE`.

    What a suite may have besides:

        configure(options)   itself with options (`--set`)
        others(items, said)  another model's replies, to be compared with
        replied_to(item)     False for items that are only read
        described(items)     what `Measurement.data` says beyond the files
        derived(rows)        all metrics, as entries for `Measurement.derived`; without it the
                             metrics are the means of the rows' scores
        unpaired             metrics that no row has, so that a ledger cannot pair them
        unasked              options that change no row's scores
        score_log(file, options)  a measurement from a log of rows, without a model
        conversation(item), picture(item), baselines, baseline(...)  for what can stand in for a
                             model (`suture.suites.answerers`)
        scored_with(), runs_on(device, cache), without_models()  of a suite with a scoring model:
                             who that is, where it runs and keeps its scores, itself without it
        judged, judged_case(item, reply)  what a judge is asked, and shown
        reads                True: `measure` is given a `Reader`, so that an encoder will do
    """

    name: str
    default_data: tuple[Path, ...]
    scorer: str | None
    needs_before: bool

    @property
    def metrics(self) -> Mapping[str, Better]:
        """The direction of every metric there may be."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Length limit of a reply, unless another is asked for."""
        ...

    def read(self, files: Sequence[Path], limit: int | None) -> list[Any]:
        """The items, checked; `limit` thins them evenly (see `thin`)."""
        ...

    def measure(
        self,
        lm: LoadedModel,
        items: list[Any],
        *,
        max_new_tokens: int,
        scorer: Scorer | None,
        before: LoadedModel | None = None,
    ) -> Answers:
        """Ask `lm` and score what it says."""
        ...

    def score(
        self, items: list[Any], replies: Sequence[ReplyRow], scorer: Scorer | None
    ) -> list[Row]:
        """Every score that follows from the texts alone."""
        ...


def ask(lm: LoadedModel, items: Sequence[Item], max_new_tokens: int) -> list[ReplyRow]:
    """Greedy replies to the items' prompts, in order."""
    from suture.inference import generate

    with naming(items):
        replies = generate(lm, [item.prompt for item in items], max_new_tokens=max_new_tokens)
    return [
        ReplyRow(item.id, item.prompt, reply.text, reply.ended, reply.tokens)
        for item, reply in zip(items, replies, strict=True)
    ]


@contextmanager
def naming(items: Sequence[Item]) -> Iterator[None]:
    """An item that is too long for a model is called by its id (E506)."""
    try:
        yield
    except TooLongError as error:
        raise error.called(f"item '{items[error.row].id}'") from None


def with_logprob(
    rows: Sequence[Row], replies: Sequence[ReplyRow], before: LoadedModel
) -> list[Row]:
    """The rows with the column `logprob_before`."""
    from suture.inference import reply_logprob

    values = reply_logprob(before, [r.prompt for r in replies], [r.reply for r in replies])
    return [
        Row(row.item, {**row.scores, "logprob_before": value}, row.cluster)
        for row, value in zip(rows, values, strict=True)
    ]


def quality(reply: ReplyRow) -> dict[str, float]:
    """The quality columns that follow from the reply itself."""
    words = _words(reply.reply)
    pairs = list(itertools.pairwise(words))
    distinct = len(set(pairs)) / len(pairs) if pairs else float(bool(words))
    return {
        "ends_properly": float(reply.ended and bool(words)),
        "distinct_2": distinct,
        "repetition": _looped(words) / len(words) if words else 0.0,
    }


def _words(text: str) -> list[str]:
    words = text.casefold().split()
    if words and len("".join(words)) / len(words) > _UNSPACED:
        return [char for word in words for char in word]
    return words


def _looped(words: Sequence[str]) -> int:
    """How many words lie inside a phrase of 1 to 8 words that stands at least thrice running."""
    inside = bytearray(len(words))
    for period in range(1, _LONGEST_LOOP + 1):
        run = 0  # how far back every word equals the one a period earlier
        for i in range(period, len(words) + 1):
            if i < len(words) and words[i] == words[i - period]:
                run += 1
                continue
            if run >= 2 * period:
                start = i - run - period
                inside[start:i] = b"\x01" * (i - start)
            run = 0
    return sum(inside)


def thin(items: Sequence[I], limit: int | None) -> list[I]:
    """At most `limit` items, spread evenly over the file (files are often sorted by kind)."""
    if limit is not None and limit < 1:
        raise SutureError("E702", f"limit is {limit}", fix="give a limit of at least 1")
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def part_of(items: Sequence[I], part: Sequence[float] | None) -> list[I]:
    """The items whose place lies in `part`, [low, high) of 0 to 1: parts that do not overlap share
    neither a prompt nor a cluster. The place follows from the cluster, else from the prompt, so it
    is the same in every file. Raises SutureError E545 when nothing is left."""
    if part is None:
        return list(items)
    low, high = part
    found = [item for item in items if low <= _place(item) < high]
    if not found:
        raise SutureError(
            "E545",
            f"none of {len(items)} rows lies in the part {low:g} to {high:g}",
            fix="take a larger part, or a larger limit",
        )
    return found


def _place(item: Any) -> float:
    text = same_text(item.cluster or item.prompt)
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def one_id_each(items: Sequence[Item], files: Sequence[Path]) -> None:
    """Refuse (E524) an id that two files share."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise SutureError(
                "E524",
                f"id '{item.id}' stands in two data files",
                where=", ".join(map(str, files)),
                why="rows of two models are paired by id",
                fix="give each row its own id",
            )
        seen.add(item.id)


def items_sha256(items: Sequence[FrozenConfig]) -> str:
    """SHA-256 of the items in canonical JSON: the same for any file layout, other for a subset."""
    digest = hashlib.sha256()
    for item in items:
        content = item.model_dump(mode="json", exclude_none=True)
        line = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode("utf-8") + b"\n")
    return digest.hexdigest()
