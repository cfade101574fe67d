"""How labels are distributed: one panel per dimension, soft labels across, items up.

Bars are stacked by hard label, the first pole filled and the second outlined; with more than two
poles there is a bar per pole, all filled. A legend below says so. A second set of labels (another
mode, a model's) of the same items is laid over as dots. `suture.report.svg.standalone` turns the
result into a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from suture.errors import SutureError, some
from suture.report.svg import Axis, frame, label, line, mark, text, ticks

BINS = 10
_TALL = 110  # pixels of one panel's bars
_ROW = _TALL + 74  # with caption and axis
_LINE = 18  # pixels of a line of the legend
_END = 'text-anchor="end" class="tick"'  # of what stands left of the axis
_PAINT = (
    'style="fill:var(--before);stroke:var(--before)"',
    'style="fill:var(--paper);stroke:var(--after);stroke-width:2"',
    'style="fill:var(--wash);stroke:var(--muted);stroke-dasharray:3 2"',
)


@dataclass(frozen=True)
class Panel:
    """One dimension. `soft`: 0 = first pole, 1 = second, None where there is none; with more poles
    empty, and `shares` has each pole's mean. `hard`: a pole or None, in the same order. `items`:
    their ids."""

    name: str
    poles: tuple[str, ...]
    soft: Sequence[float | None]
    hard: Sequence[str | None]
    shares: Mapping[str, float] | None = None
    items: Sequence[str] = ()


def label_plot(
    panels: Sequence[Panel],
    *,
    title: str,
    over: Sequence[Panel] = (),
    names: tuple[str, str] = ("labels", "others"),
) -> Markup:
    """All panels below each other. `over`: other labels of the same items, drawn as dots in the
    panels that they have; `names`: what the two sets are called. Empty markup for no panels.

    Error: E639 `over` has other items, no dimension in common, or other poles.
    """
    if not panels:
        return Markup("")
    other = _alike(panels, over, names)
    body, told = [], []
    for place, panel in enumerate(panels):
        drawn, words = _panel(panel, other.get(panel.name), names)
        told.append(words)
        body.append(
            f'<svg x="9%" y="{place * _ROW + 44}" width="86%" height="{_TALL}" overflow="visible">'
            f"{drawn}</svg>"
        )
    tall = len(panels) * _ROW + 10
    for drawn in _legend(panels, tall):
        body.append(drawn)
        tall += _LINE
    if over:
        body.append(mark(9.8, tall - 4, "diamond", "ref", filled=True, size=4))
        body.append(label(11, tall, f"{names[1]}; bars: {names[0]}", anchor="start", css="tick"))
        tall += _LINE
    return frame(title, " ".join(told), "".join(body), height=tall)


def _alike(
    panels: Sequence[Panel], over: Sequence[Panel], names: tuple[str, str]
) -> dict[str, Panel]:
    """What is laid over, by dimension, poles in the order of `panels`; refused where counts side by
    side would be about different things."""
    other = {panel.name: panel for panel in over}
    mine, theirs = (", ".join(panel.name for panel in some_set) for some_set in (panels, over))
    both = [(panel, other[panel.name]) for panel in panels if panel.name in other]
    found = {}
    why = None
    if over and not both:
        why = f"no dimension is in both: {mine}, and {theirs}"
    for one, two in both:
        lacking = sorted(set(one.items) ^ set(two.items))
        if lacking:
            why = (
                f"of {len(one.items)} and {len(two.items)} items, {len(lacking)} stand in one only"
            )
            why += f": {some(lacking)}"
        elif (one.shares is None) != (two.shares is None) or _other_poles(one, two):
            why = f"'{one.name}' has the poles {', '.join(one.poles)}, and {', '.join(two.poles)}"
        found[one.name] = replace(two, poles=one.poles)
    if why is not None:
        raise SutureError(
            "E639",
            f"{names[1]} does not label what {names[0]} does",
            where=f"{names[0]} and {names[1]}",
            why=why,
            fix="give labels of the same items and dimensions, or draw each by itself",
        )
    return found


def _other_poles(one: Panel, two: Panel) -> bool:
    """Whether labels that are there are of other poles, or of the same the other way round."""
    if one.shares is not None:
        return set(one.poles) != set(two.poles)
    mine, theirs = (
        {pole: place for place, pole in enumerate(panel.poles) if pole in panel.hard}
        for panel in (one, two)
    )
    turned = any(mine[pole] != theirs[pole] for pole in mine.keys() & theirs.keys())
    places = set(mine.values()) & set(theirs.values())
    return turned or any(one.poles[place] != two.poles[place] for place in places)


def _legend(panels: Sequence[Panel], top: int) -> list[str]:
    """Lines that say what fills and numbers mean, as far as they occur in `panels`."""
    lines = []
    two = [panel for panel in panels if panel.shares is None]
    if two:
        keys = ["hard label: first pole (left end)", "second pole"]
        if any(h is None for panel in two for h in panel.hard):
            keys.append("no hard label")
        drawn = []
        for place, key in enumerate(keys):
            x = (9, 52, 77)[place]
            drawn.append(
                f'<rect x="{x}%" y="{top - 10}" width="12" height="10" {_PAINT[place]}/>'
                + label(x + 2.5, top, key, anchor="start", css="tick")
            )
        lines.append("".join(drawn))
    if len(two) < len(panels):
        words = "more than two poles: bars count hard labels; in brackets each pole's mean share"
        place = top + _LINE * len(lines)
        lines.append(label(9, place, words, anchor="start", css="tick"))
    return lines


def _panel(panel: Panel, over: Panel | None, names: tuple[str, str]) -> tuple[str, str]:
    shares = panel.shares
    columns = _by_pole(panel) if shares is not None else _by_bin(panel)
    dots = None
    if over is not None:
        dots = [sum(c) for c in (_by_pole(over) if shares is not None else _by_bin(over))]
    top = max([sum(column) for column in columns] + (dots or []) + [1])
    marks = [value for value in ticks(0, top, 3) if value == int(value)]
    up = Axis(0, marks[-1])

    def y(count: float) -> float:
        return round(_TALL * (1 - up.at(count) / 100), 1)

    body = [_caption(panel), f'<text x="0" dx="-8" y="-9" {_END}>items</text>']
    for value in marks:
        body.append(line(0, y(value), 100, y(value), 'class="rule"'))
        body.append(f'<text x="0" dx="-8" y="{y(value) + 4:g}" {_END}>{value:g}</text>')
    wide = 100 / len(columns)
    for place, column in enumerate(columns):
        body.append(_bar(panel, column, place, wide, y, shares is not None))
        if dots is not None:
            drawn = mark(
                (place + 0.5) * wide, y(dots[place]), "diamond", "ref", filled=True, size=4
            )
            hover = f"{names[1]}: {dots[place]} items"
            body.append(f"<g><title>{text(hover)}</title>{drawn}</g>")
    body += _feet(panel, wide)
    return "".join(body), _words(panel, over, names)


def _bar(
    panel: Panel,
    column: Sequence[int],
    place: int,
    wide: float,
    y: Callable[[float], float],
    per_pole: bool,
) -> str:
    where = panel.poles[place] if per_pole else f"{place / BINS:g} to {(place + 1) / BINS:g}"
    hands = [*panel.poles, "no hard label"]
    parts = [f"{count} {hands[i]}" for i, count in enumerate(column) if count]
    below, drawn = 0, []
    for i, count in enumerate(column):
        if count:
            paint = _PAINT[0 if per_pole else 2 if i >= len(panel.poles) else min(i, 1)]
            high, low = y(below + count), y(below)
            drawn.append(
                f'<rect x="{place * wide + wide * 0.12:.2f}%" y="{high:g}" '
                f'width="{wide * 0.76:.2f}%" height="{low - high:g}" {paint}/>'
            )
            below += count
    return (
        f"<g><title>{text(where)}: {text(', '.join(parts) or 'none')}</title>{''.join(drawn)}</g>"
    )


def _caption(panel: Panel) -> str:
    labelled = sum(pole is not None for pole in panel.hard)
    counts = " · ".join(
        f"{pole} {sum(found == pole for found in panel.hard)}" for pole in panel.poles
    )
    return label(0, -22, panel.name, anchor="start", css="name") + label(
        100, -22, f"{labelled} labelled: {counts}", anchor="end", css="tick"
    )


def _feet(panel: Panel, wide: float) -> list[str]:
    """What stands below the bars: the ends of the scale and the mean, or the poles' names."""
    low = _TALL + 18
    if panel.shares is not None:
        return [
            label((i + 0.5) * wide, low, f"{pole} ({panel.shares[pole]:.2f})", css="tick")
            for i, pole in enumerate(panel.poles)
        ]
    found = [value for value in panel.soft if value is not None]
    feet = [
        label(0, low, f"0 {panel.poles[0]}", anchor="start", css="tick"),
        label(100, low, f"{panel.poles[1]} 1", anchor="end", css="tick"),
    ]
    if found:
        mean = sum(found) / len(found)
        feet.append(mark(100 * mean, _TALL + 6, "triangle", "ink", filled=True, size=4))
        feet.append(label(100 * mean, low + 4, f"mean {mean:.2f}", css="tick"))
    return feet


def _by_bin(panel: Panel) -> list[list[int]]:
    """Counts by bin and hard label (the last: none); a bin has its lower end, the last both."""
    columns = [[0] * (len(panel.poles) + 1) for _ in range(BINS)]
    for value, pole in zip(panel.soft, panel.hard, strict=True):
        if value is not None:
            columns[min(int(value * BINS), BINS - 1)][_place(panel, pole)] += 1
    return columns


def _by_pole(panel: Panel) -> list[list[int]]:
    columns = [[0] * (len(panel.poles) + 1) for _ in panel.poles]
    for pole in panel.hard:
        if pole is not None:
            columns[_place(panel, pole)][_place(panel, pole)] += 1
    return columns


def _place(panel: Panel, pole: str | None) -> int:
    return panel.poles.index(pole) if pole in panel.poles else len(panel.poles)


def _words(panel: Panel, over: Panel | None, names: tuple[str, str]) -> str:
    found = [value for value in panel.soft if value is not None]
    mean = f", mean soft label {sum(found) / len(found):.2f}" if found else ""
    more = f"; dots: {names[1]}" if over is not None else ""
    return f"{panel.name}: {len(panel.hard)} items{mean}{more}."
