"""Curves over steps or epochs: how a training went, with the moments that count marked.

`suture.report.svg.standalone` turns the result into a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from suture.report.scatter import SERIES, legend, tick
from suture.report.svg import Axis, frame, label, line, mark, text, ticks

_HEIGHT = 260  # pixels of the plot itself
_MOST_MARKS = 24  # on one curve; with more points it is a line alone


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    as_percent: bool = True,
    posts: Mapping[str, float] | None = None,
) -> Markup:
    """Every line's points (x, y), joined in order of x, each line with a mark of its own.

    `posts`: named places on the x axis, drawn as upright lines. Empty markup for no points.
    """
    lines = {name: sorted(points) for name, points in lines.items() if points}
    if not lines:
        return Markup("")
    every = [point for points in lines.values() for point in points]
    x_marks = ticks(min(x for x, _ in every), max(x for x, _ in every))
    low, high = min(y for _, y in every), max(y for _, y in every)
    y_marks = ticks(low, high) if high > low else ticks(low - 0.05, high + 0.05)
    across, up = Axis(x_marks[0], x_marks[-1]), Axis(y_marks[0], y_marks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        return across.at(x), round(_HEIGHT * (1 - up.at(y) / 100), 1)

    body: list[str] = []
    for value in y_marks:
        y = at(x_marks[0], value)[1]
        body.append(line(0, y, 100, y, 'class="rule"'))
        body.append(
            f'<text x="0" dx="-8" y="{y + 4:g}" text-anchor="end" class="tick">'
            f"{tick(value, as_percent)}</text>"
        )
    body += [label(across.at(x), _HEIGHT + 20, tick(x, False), css="tick") for x in x_marks]
    for name, x in (posts or {}).items():
        body.append(line(across.at(x), 0, across.at(x), _HEIGHT, 'class="front"'))
        body.append(label(across.at(x), -6, name, css="tick"))
    for place, (name, points) in enumerate(lines.items()):
        shape, colour, filled = SERIES[place % len(SERIES)]
        paint = f'style="stroke:var(--{colour});stroke-width:2"'
        body += [line(*at(*a), *at(*b), paint) for a, b in pairwise(points)]
        if len(points) <= _MOST_MARKS:
            for x, y in points:
                drawn = mark(*at(x, y), shape, colour, filled=filled, size=4.5)
                hover = f"{name}: {x:g}, {tick(y, as_percent)}"
                body.append(f"<g><title>{text(hover)}</title>{drawn}</g>")
    ends = "; ".join(
        f"{name} from {tick(points[0][1], as_percent)} to {tick(points[-1][1], as_percent)}"
        for name, points in lines.items()
    )
    plot = (
        f'<svg x="9%" y="44" width="86%" height="{_HEIGHT}" overflow="visible">'
        f"{''.join(body)}</svg>"
    )
    caption = label(0, 14, y_label, anchor="start", css="name")
    foot = label(95, _HEIGHT + 84, x_label, anchor="end", css="name")
    key, tall = legend(list(lines), _HEIGHT + 104)
    return frame(title, f"{ends}.", caption + plot + foot + key, height=_HEIGHT + 108 + tall)
