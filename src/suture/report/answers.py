"""Replies of two models to the same prompts, and which of them are shown folded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from suture.report.worddiff import change

if TYPE_CHECKING:
    from suture.ledger import JudgedRow, Measurement, ReplyRow, Row

Kind = Literal["refuses now", "complies now", "changed", "same"]

PERSONAL_SUITES = frozenset({"tofu", "unlearning"})  # their rows name people
HARMLESS_SUITES = frozenset({"task", "drift", "speed"})
_HARMLESS_AS_SHIPPED = frozenset({"open-ended"})  # with questions of one's own nobody knows
_HARMLESS_SCORE = re.compile(r"harmless|(^|_)safe_")  # xstest_safe_refused, harmless_refused


@dataclass(frozen=True)
class AnswerPair:
    """Two replies to one prompt.

    `harmful`: the prompt is a harmful test input or holds personal data (`personal`), so prompt and
    replies are shown folded only.
    `scores_before`, `scores_after`: the item's scores, by name. `reference`: the reference
    model's reply. `share`: share of words that differ, 0 to 1. `judged_before`, `judged_after`:
    what a judge said to either reply, word for word.
    """

    suite: str
    item: str
    prompt: str
    before: str
    after: str
    harmful: bool
    scores_before: Mapping[str, float] = field(default_factory=dict)
    scores_after: Mapping[str, float] = field(default_factory=dict)
    reference: str | None = None
    share: float = 0.0
    judged_before: Sequence[JudgedRow] = ()
    judged_after: Sequence[JudgedRow] = ()
    personal: bool = False

    @property
    def refused(self) -> tuple[bool, bool] | None:
        """Refused before, refused after; None where no refusal score was given."""
        for name, old in self.scores_before.items():
            if "refus" in name and name in self.scores_after:
                return old >= 0.5, self.scores_after[name] >= 0.5
        return None

    @property
    def kind(self) -> Kind:
        """What changed, for the folded groups of the report."""
        if self.refused is not None and self.refused[0] != self.refused[1]:
            return "refuses now" if self.refused[1] else "complies now"
        return "same" if self.before == self.after else "changed"


def answer_pairs(
    before: Iterable[Measurement],
    after: Iterable[Measurement],
    reference: Iterable[Measurement] = (),
) -> tuple[AnswerPair, ...]:
    """Pairs of replies to the same item of the same suite and data, most changed first."""
    later = {_key(measured): measured for measured in after}
    model = {_key(measured): measured for measured in reference}
    pairs = []
    for first in before:
        second = later.get(_key(first))
        if second is None:
            continue
        replies = {reply.item: reply for reply in second.replies}
        third = model.get(_key(first))
        shown = {reply.item: reply.reply for reply in third.replies} if third else {}
        rows_before = {row.item: row for row in first.rows}
        rows_after = {row.item: row for row in second.rows}
        words = [_by_item(measured.judged) for measured in (first, second)]
        sound = _all_harmless(first)
        for old in first.replies:
            if old.item in replies:
                pair = _pair(first.suite, old, replies[old.item], rows_before, rows_after)
                pair = replace(
                    pair,
                    reference=shown.get(old.item),
                    judged_before=words[0].get(old.item, ()),
                    judged_after=words[1].get(old.item, ()),
                    harmful=pair.harmful and not sound,
                    personal=str(first.data.get("suite", first.suite)) in PERSONAL_SUITES,
                )
                pairs.append(pair)
    return tuple(sorted(pairs, key=lambda pair: (-pair.share, pair.suite, pair.item)))


def _all_harmless(measured: Measurement) -> bool:
    """By what was asked, whatever the suite is called in the recipe."""
    files = [str(file) for file in measured.data.get("files", ())]
    shipped = bool(files) and all(file.startswith("builtin:") for file in files)
    name = str(measured.data.get("suite", measured.suite))
    return name in HARMLESS_SUITES or (shipped and name in _HARMLESS_AS_SHIPPED)


def _by_item(rows: Iterable[JudgedRow]) -> dict[str, list[JudgedRow]]:
    kept = sorted(rows, key=lambda row: row.item)  # stable: order within an item stays
    return {item: list(own) for item, own in groupby(kept, key=lambda row: row.item)}


def _pair(
    suite: str,
    old: ReplyRow,
    new: ReplyRow,
    rows_before: Mapping[str, Row],
    rows_after: Mapping[str, Row],
) -> AnswerPair:
    row, later = rows_before.get(old.item), rows_after.get(old.item)
    return AnswerPair(
        suite=suite,
        item=old.item,
        prompt=old.prompt or new.prompt,
        before=old.reply,
        after=new.reply,
        harmful=is_harmful(suite, row),
        scores_before=row.scores if row else {},
        scores_after=later.scores if later else {},
        share=change(old.reply, new.reply),
    )


def is_harmful(suite: str, row: Row | None) -> bool:
    """Whether an item is a harmful test input, by its suite and the names of its scores.

    In doubt it is: only folding is at stake.
    """
    names = list(row.scores) if row is not None else []
    if any("unsafe" in name for name in names):
        return True
    return suite not in HARMLESS_SUITES and not any(_HARMLESS_SCORE.search(n) for n in names)


def _key(measured: Measurement) -> tuple[str, str]:
    return measured.suite, str(measured.data.get("sha256") or measured.data.get("name", ""))
