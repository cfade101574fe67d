"""How answers lean: their distribution against the truth's, and bias and polarisation as intervals.

A model that rates people may be right on average and still give only extremes (polarisation), or
prefer one pole (bias). MBTIBench names both as what is wrong with soft answers; the measures are
ours (inferred). `suture.report.svg.standalone` turns a chart into a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from suture.report.figures import fixed, percent
from suture.report.scatter import SERIES, legend, tick
from suture.report.svg import Axis, frame, label, line, mark, text, ticks

BINS = 9  # as there are scores
_PANEL = 150  # pixels of one panel
_BAR = 46  # pixels of the tallest bar
_ROW = 24
_EDGE = 1.5  # percent left free on the left, so that no letter is cut
_LONGEST = 22  # letters of a model's name beside its interval; all of it is in the legend


@dataclass(frozen=True)
class Panel:
    """One scale from 0 (`low`) to 1 (`high`): the true values and the answers to the same items.

    `unread`: answers that are not among `said`, since they could not be read.
    """

    name: str
    low: str
    high: str
    truth: Sequence[float]
    said: Sequence[float]
    unread: int = 0


class Leaning(NamedTuple):
    """A mean with its 95% interval, of `n` items."""

    value: float
    low: float
    high: float
    n: int


def distributions(models: Mapping[str, Sequence[Panel]]) -> Markup:
    """Models across, scales down: labels as outlined bars upwards, answers as filled ones down.

    Both are shares of items in nine equal parts of the scale. Labels have one height throughout and
    answers another: heaped answers would press the labels flat.
    """
    shares = {
        model: [(_shares(panel.truth), _shares(panel.said)) for panel in panels]
        for model, panels in models.items()
    }
    pairs = [pair for own in shares.values() for pair in own]
    if not any(share for pair in pairs for side in pair for share in side):
        return Markup("")
    tops = (_top(truth for truth, _ in pairs), _top(said for _, said in pairs))
    wide = 100 / len(models)
    body = []
    for place, (model, panels) in enumerate(models.items()):
        fits = int(0.9 * (wide - _TICKS))  # letters of a drawing 720 pixels wide
        drawn = [label(0, 18, _short(model, fits), anchor="start", css="name")]
        for row, (panel, pair) in enumerate(zip(panels, shares[model], strict=True)):
            drawn += _panel(panel, *pair, tops, fits, 34 + row * _PANEL)
        body.append(
            f'<svg x="{place * wide + _TICKS:.2f}%" width="{wide - _TICKS - 2:.2f}%" '
            f'overflow="visible">{"".join(drawn)}</svg>'
        )
    rows = max(len(panels) for panels in models.values())
    foot = 34 + rows * _PANEL + 12
    key = (
        f'<svg x="{_EDGE}%" overflow="visible">'
        f'<rect x="0" y="{foot - 10}" width="12" height="12" {_OUTLINE}/>'
        f'<text x="18" y="{foot}">labels, upwards</text>'
        f'<rect x="160" y="{foot - 10}" width="12" height="12" {_FILLED}/>'
        f'<text x="178" y="{foot}">answers that could be read, downwards</text>'
        f'<text x="0" y="{foot + 22}" class="tick">Shares of all labels and of all answers read; '
        "the two have scales of their own.</text></svg>"
    )
    words = "; ".join(
        f"{model}, {panel.name}: {percent(_ends(panel.said))} of {len(panel.said)} answers and "
        f"{percent(_ends(panel.truth))} of {len(panel.truth)} labels in the outermost parts, "
        f"{panel.unread} answers unread"
        for model, panels in models.items()
        for panel in panels
    )
    return frame("Answers and labels", f"{words}.", "".join(body) + key, height=foot + 34)


def leanings(measures: Mapping[str, Mapping[str, Mapping[str, Leaning]]]) -> Markup:
    """One block per measure; in it one line per scale and model: value and 95% interval around 0.

    `measures[measure][scale][model]` is a `Leaning`.
    """
    ends = [
        abs(end)
        for scales in measures.values()
        for models in scales.values()
        for leaning in models.values()
        for end in leaning[:3]
    ]
    if not ends:
        return Markup("")
    marks = ticks(-max(ends), max(ends), 6)
    reach = max(-marks[0], marks[-1], 0.05)
    axis = Axis(-reach, reach)
    names = list(dict.fromkeys(m for s in measures.values() for one in s.values() for m in one))
    body, words, y = [], [], 18
    for measure, scales in measures.items():
        body.append(label(_EDGE, y, measure, anchor="start", css="name"))
        top = y + 8
        for value in marks:
            foot = y + _ROW * sum(map(len, scales.values())) + 10
            body.append(line(_at(axis, value), top, _at(axis, value), foot, 'class="rule"'))
            body.append(label(_at(axis, value), foot + 16, tick(value, False), css="tick"))
        body.append(line(_at(axis, 0), top, _at(axis, 0), foot, 'class="front"'))
        for scale, models in scales.items():
            body.append(label(_EDGE, y + _ROW + 4, scale, anchor="start", css="tick"))
            for model, (value, low, high, n) in models.items():
                y += _ROW
                shape, colour, filled = SERIES[names.index(model) % len(SERIES)]
                paint = f'style="stroke:var(--{colour});stroke-width:2"'
                said = f"{scale}, {model}: {fixed(value, sign=True)}"
                said += f" ({fixed(low, sign=True)} to {fixed(high, sign=True)}), n {n}"
                words.append(f"{measure}, {said}")
                body.append(
                    f"<g><title>{text(said)}</title>"
                    + label(7, y + 4, _short(model, _LONGEST), anchor="start", css="tick")
                    + label(98.5, y + 4, f"n {n}", anchor="end", css="tick")
                    + line(_at(axis, low), y, _at(axis, high), y, paint)
                    + mark(_at(axis, value), y, shape, colour, filled=filled, size=4.5)
                    + "</g>"
                )
        y += 60
    key, tall = legend(names, y)
    body.append(f'<svg x="{_EDGE}%" width="{100 - _EDGE}%" overflow="visible">{key}</svg>')
    return frame("Bias and polarisation", "; ".join(words) + ".", "".join(body), height=y + tall)


_TICKS = 6.0  # percent left of each model's bars, for the shares
_OUTLINE = 'style="fill:none;stroke:var(--before);stroke-width:1.5"'
_FILLED = 'style="fill:var(--after)"'


def _at(axis: Axis, value: float) -> float:
    """Percent of the width; names stand on the left, sizes on the right."""
    return 29 + 0.6 * axis.at(value)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _top(columns: Iterable[Sequence[float]]) -> float:
    """The round share that the tallest bar fits under."""
    return ticks(0, max((share for column in columns for share in column), default=0) or 1, 2)[-1]


def _panel(
    panel: Panel,
    truth: Sequence[float],
    said: Sequence[float],
    tops: tuple[float, float],
    fits: int,
    y: int,
) -> list[str]:
    """`tops`: shares of the tallest bars up and down; `fits`: letters in a line."""
    middle, wide = y + _BAR + 22, 100 / BINS
    unread = f", {panel.unread} not" if panel.unread else ""
    drawn = [
        label(0, y + 12, panel.name, anchor="start", css="tick name"),
        label(100, y + 12, f"{len(panel.said)} read{unread}", anchor="end", css="tick"),
    ]
    for share, at in ((tops[0], middle - _BAR), (0.0, middle), (tops[1], middle + _BAR)):
        drawn.append(line(0, at, 100, at, 'class="rule"'))
        drawn.append(
            f'<text x="0" dx="-6" y="{at + 4:g}" text-anchor="end" class="tick">'
            f"{tick(share, True)}</text>"
        )
    for place, (up, down) in enumerate(zip(truth, said, strict=True)):
        x, tall, deep = place * wide + 0.08 * wide, _BAR * up / tops[0], _BAR * down / tops[1]
        hover = f"part {place + 1} of {BINS}: labels {percent(up)}, answers {percent(down)}"
        drawn.append(
            f"<g><title>{text(hover)}</title>"
            f'<rect x="{x:.2f}%" y="{middle - tall:.1f}" width="{0.84 * wide:.2f}%" '
            f'height="{tall:.1f}" {_OUTLINE}/>'
            f'<rect x="{x:.2f}%" y="{middle:g}" width="{0.84 * wide:.2f}%" '
            f'height="{deep:.1f}" {_FILLED}/></g>'
        )
    foot = middle + _BAR + 14
    drawn.append(label(0, foot, panel.low, anchor="start", css="tick"))
    foot += 14 * (len(panel.low) + len(panel.high) >= fits)  # else the two would overlap
    drawn.append(label(100, foot, panel.high, anchor="end", css="tick"))
    return drawn


def _shares(values: Sequence[float]) -> list[float]:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, max(0, int(value * BINS)))] += 1
    return [count / len(values) if values else 0.0 for count in counts]


def _ends(values: Sequence[float]) -> float:
    shares = _shares(values)
    return shares[0] + shares[-1]
