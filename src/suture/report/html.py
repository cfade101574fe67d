"""`report.html`: one page, no network, no script, under 2 MB.

Autoescape is always on, and every printed value passes through `visible` first (Jinja's
`finalize`), so no template line can forget either. Replies are never compiled as templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from suture.errors import SutureError
from suture.report import figures, heatgrid, scatter, svg, worddiff
from suture.report.answers import AnswerPair, Kind
from suture.report.facts import ReportFacts
from suture.report.visible import clip, home_short, one_line, visible

if TYPE_CHECKING:
    from jinja2 import Environment

    from suture.ledger import JudgedRow

LIMIT_BYTES = 2_000_000
_ATTEMPTS = ((25, 1600), (12, 1000), (5, 500), (0, 0))  # pairs per group, characters per text
_LONG = 40_000  # characters of a recipe

_GROUPS: tuple[tuple[Kind, str], ...] = (
    ("refuses now", "Answered before, refuses now"),
    ("complies now", "Refused before, answers now"),
    ("changed", "Same kind of reply, other words"),
    ("same", "Unchanged, word for word"),
)


@dataclass(frozen=True)
class Card:
    """One pair as shown: clipped, with the difference marked."""

    pair: AnswerPair
    prompt: str
    left: Sequence[worddiff.Segment]
    right: Sequence[worddiff.Segment]
    reference: str | None
    chips: Sequence[str]
    clipped: int
    judged: Sequence[tuple[str, str]] = ()  # whose reply and how it was read; the judge's words


@dataclass(frozen=True)
class Group:
    kind: Kind
    label: str
    total: int
    cards: Sequence[Card]


@dataclass(frozen=True)
class Section:
    """The answers of one suite, harmful test inputs apart from harmless ones.

    `personal`: they are folded because they name people, not because they do harm."""

    suite: str
    harmful: bool
    personal: bool
    total: int
    groups: Sequence[Group]


def render_html(facts: ReportFacts) -> str:
    """The page. Fewer and shorter answers are shown until it fits into 2 MB."""
    for pairs, characters in _ATTEMPTS:
        page = _page(facts, pairs, characters)
        if len(page.encode("utf-8")) < LIMIT_BYTES:
            return page
    raise SutureError(
        "E760",
        "the report does not fit into 2 MB even without answers",
        why="a page that large does not open everywhere",
        fix="shorten the recipe or split the ledger into several runs",
    )


def answer_sections(facts: ReportFacts, pairs: int, characters: int) -> list[Section]:
    """Answers grouped by suite, harmfulness and what changed; most changed first."""
    buckets: dict[tuple[bool, str], list[AnswerPair]] = {}
    for pair in facts.answers:
        buckets.setdefault((pair.harmful, pair.suite), []).append(pair)
    sections = []
    for (harmful, suite), found in sorted(buckets.items(), key=_prominence):
        groups = []
        for kind, label in _GROUPS:
            members = [pair for pair in found if pair.kind == kind]
            if not members:
                continue
            shown = [] if harmful and facts.redact else members[: pairs if kind != "same" else 8]
            cards = [_card(pair, characters) for pair in shown]
            groups.append(Group(kind, label, len(members), cards))
        sections.append(Section(suite, harmful, found[0].personal, len(found), groups))
    return sections


def _prominence(bucket: tuple[tuple[bool, str], list[AnswerPair]]) -> tuple[bool, int, str]:
    """Harmless suites first, those with most flips on top."""
    (harmful, suite), found = bucket
    return harmful, -sum(pair.kind.endswith("now") for pair in found), suite


def _card(pair: AnswerPair, characters: int) -> Card:
    prompt, cut_prompt = clip(visible(pair.prompt), characters)
    before, cut_before = clip(visible(pair.before), characters)
    after, cut_after = clip(visible(pair.after), characters)
    segments = worddiff.word_diff(before, after)
    reference = None if pair.reference is None else clip(visible(pair.reference), characters)[0]
    return Card(
        pair=pair,
        prompt=prompt,
        left=worddiff.before_side(segments),
        right=worddiff.after_side(segments),
        reference=reference,
        chips=_chips(pair),
        clipped=cut_prompt + cut_before + cut_after,
        judged=[
            (f"{side}{_asked(row)}: {_read_as(row)}", clip(visible(row.said), characters)[0])
            for side, rows in (("before", pair.judged_before), ("after", pair.judged_after))
            for row in rows
        ],
    )


def _asked(row: JudgedRow) -> str:
    """Of a pair, where this reply stood when the judge read both."""
    return f", standing {row.asked}" if row.asked in ("first", "second") else ""


def _read_as(row: JudgedRow) -> str:
    if row.grade is not None:
        return f"graded {row.grade:g}"
    return row.verdict if row.category is None else f"{row.verdict} ({row.category})"


def _chips(pair: AnswerPair) -> list[str]:
    chips = []
    if pair.refused is not None:
        old, new = ("refused" if refused else "answered" for refused in pair.refused)
        chips.append(old if old == new else f"{old} → {new}")
    if pair.kind != "same":
        chips.append(f"{figures.percent(pair.share, 0)} of words changed")
    for name, old_score in pair.scores_before.items():
        new_score = pair.scores_after.get(name)
        told = "refus" in name or "_turn_" in name  # by another chip
        if new_score is not None and new_score != old_score and not told:
            chips.append(f"{name} {figures.number(old_score)} → {figures.number(new_score)}")
    return chips[:4]


def _page(facts: ReportFacts, pairs: int, characters: int) -> str:
    recipe, cut = clip(facts.provenance.recipe or "", _LONG)
    context = {
        "facts": facts,
        "sections": answer_sections(facts, pairs, characters),
        "recipe": recipe,
        "recipe_cut": cut,
        "roles": [
            ("Target", "must improve", facts.targets, reach(facts.targets)),
            ("Kept", "must hold", facts.kept, reach(facts.kept)),
        ],
        "stages": stages(facts),
        "limits": limits(facts),
        "models": [
            (role, model)
            for role, model in (
                ("before", facts.before),
                ("after", facts.after),
                ("reference", facts.reference),
            )
            if model
        ],
        "grids": [
            ("How far the weights moved", "‖after − before‖ / ‖before‖, percent", heatgrid.norm_of),
            ("How many entries moved", "share of entries changed, percent", heatgrid.share_of),
        ],
    }
    return environment().get_template("report.html.j2").render(context)


def reach(rows: Sequence[Mapping[str, Any]]) -> dict[bool, float]:
    """The widest oriented difference among shares and among other metrics, for forest marks."""
    widest = {True: 0.0, False: 0.0}
    for row in rows:
        ends = figures.interval(row) or (0.0, 0.0)
        share = figures.is_share(row)
        widest[share] = max(widest[share], *map(abs, (*ends, figures.bound(row))))
    return {share: 1.08 * value for share, value in widest.items()}


def limits(facts: ReportFacts) -> list[str]:
    """The standing limits of a proof and the ledger's own remarks, without saying one twice."""
    own = [note for note in facts.notes if not note.startswith("One paired run proves")]
    return [*figures.LIMITS, *own]


def stages(facts: ReportFacts) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in facts.seconds.items() if name != "total"]


def _finalize(value: object) -> object:
    if value is None:
        return ""
    return value if isinstance(value, Markup) else visible(str(value))


def _plain(value: object) -> str:
    """Nested settings as compact JSON, anything else as one line."""
    if isinstance(value, (dict, list, tuple, bool)) or value is None:
        return json.dumps(value, ensure_ascii=False, default=str)
    return one_line(str(value))


@cache
def environment() -> Environment:
    """Jinja2 with autoescape on, undefined names as errors, and the figures at hand."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("suture.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        figures=figures,
        svg=svg,
        heatgrid=heatgrid,
        tradeoff=scatter.tradeoff,
        zip=zip,
    )
    made.filters.update(plain=_plain, line=_line, home=home_short, words=_words)
    return made


def _line(value: object) -> str:
    return "" if value is None else one_line(str(value))


def _words(name: object) -> str:
    """A metric's name as words: refusal_rate → refusal rate."""
    return one_line(str(name)).replace("_", " ")
