"""The trade-off plot: what was gained against what was paid, with intervals and the Pareto front.

Used by the report of a sweep and by benchmarks; `suture.report.svg.standalone` turns the result
into a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

from suture.ledger import pareto
from suture.report import figures
from suture.report.svg import Axis, frame, label, line, mark, text, ticks

Direction = Literal["higher", "lower"]
At = Callable[[float, float], tuple[float, float]]  # values to (percent across, pixels down)
Box = tuple[float, float, float, float]  # middle x, middle y, width, height in nominal pixels

_HEIGHT = 360  # pixels of the plot itself
_NOMINAL = 620  # plot width assumed when labels are kept apart
SERIES = (  # shape, colour variable, filled: no two alike, shapes before fills before colours
    ("circle", "after", True),
    ("diamond", "ref", True),
    ("square", "good", False),
    ("triangle", "bad", False),
    ("down", "open", True),
    ("cross", "before", False),
    ("circle", "before", False),
    ("square", "after", True),
    ("diamond", "good", False),
    ("triangle", "ref", True),
)


@dataclass(frozen=True)
class Point:
    """One setting: `x`, `y` with optional 95% intervals.

    `series` chooses the mark; `label` is printed beside points on the front and picked ones;
    `picked` rings the point. `landmark`: shown for orientation, never on the front. `about`: said
    of the point on hovering, in place of series and label.
    """

    x: float
    y: float
    series: str
    label: str = ""
    x_ci: tuple[float, float] | None = None
    y_ci: tuple[float, float] | None = None
    picked: bool = False
    landmark: bool = False
    about: str = ""


def pareto_front(
    points: Sequence[Point], better_x: Direction = "higher", better_y: Direction = "higher"
) -> list[Point]:
    """Points that no other point matches on both sides and beats on one, ordered by x; landmarks
    neither stand on the front nor keep others off it."""
    sx = 1 if better_x == "higher" else -1
    sy = 1 if better_y == "higher" else -1
    rivals = [point for point in points if not point.landmark]
    kept = pareto.front([(sx * point.x, sy * point.y) for point in rivals])
    return sorted((rivals[place] for place in kept), key=lambda p: (p.x, p.y))


def tradeoff(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    title: str = "Trade-off",
    better_x: Direction = "higher",
    better_y: Direction = "higher",
    as_percent: bool = True,
    x_limit: float | None = None,
    y_limit: float | None = None,
    label_all: bool = False,
) -> Markup:
    """A scatter of `points` with error bars, the Pareto front as steps, and a legend by shape.

    `x_limit`, `y_limit`: levels drawn as posts (a required gain, a margin). `label_all`: labels
    beside every point, where they are short and few. Axes point their way of "better" in words.
    Empty markup for no points.
    """
    if not points:
        return Markup("")
    x_marks = _marks([v for p in points for v in (p.x, *(p.x_ci or ()))], x_limit)
    y_marks = _marks([v for p in points for v in (p.y, *(p.y_ci or ()))], y_limit)
    across, up = Axis(x_marks[0], x_marks[-1]), Axis(y_marks[0], y_marks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        return across.at(x), _HEIGHT * (1 - up.at(y) / 100)

    body: list[str] = []
    for value in y_marks:
        _, y = at(x_marks[0], value)
        body.append(line(0, y, 100, y, 'class="rule"'))
        body.append(
            f'<text x="0" dx="-8" y="{y + 4:g}" text-anchor="end" class="tick">'
            f"{tick(value, as_percent)}</text>"
        )
    for value in x_marks:
        x, _ = at(value, y_marks[0])
        body.append(line(x, 0, x, _HEIGHT, 'class="rule"'))
        body.append(label(x, _HEIGHT + 20, tick(value, as_percent), css="tick"))
    for limit, vertical in ((x_limit, True), (y_limit, False)):
        if limit is not None:
            x, y = at(limit, limit)
            ends = (x, 0.0, x, float(_HEIGHT)) if vertical else (0.0, y, 100.0, y)
            body.append(line(*ends, 'class="gate"'))

    front = pareto_front(points, better_x, better_y)
    body += _steps(front, at, better_x)
    names = list(dict.fromkeys(point.series for point in points))
    body += [_point(point, at, names) for point in points]
    body += _labels(points, points if label_all else front, at)

    words = (
        f"{_many(points)}; on the Pareto front: "
        + "; ".join(
            f"{p.label or p.series} ({tick(p.x, as_percent)}, {tick(p.y, as_percent)})"
            for p in front
        )
        + "."
    )
    plot = (
        f'<svg x="9%" y="34" width="86%" height="{_HEIGHT}" overflow="visible">'
        f"{''.join(body)}</svg>"
    )
    caption = label(0, 14, f"{y_label} ({better_y} is better)", anchor="start", css="name")
    foot = label(95, _HEIGHT + 76, f"{x_label} ({better_x} is better)", anchor="end", css="name")
    key, tall = legend(names, _HEIGHT + 100)
    for name, limit in ((x_label, x_limit), (y_label, y_limit)):
        if limit is not None:
            top = _HEIGHT + 100 + tall
            key += f'<line x1="0" x2="18" y1="{top}" y2="{top}" class="gate"/>'
            told = f"constraint on {name}: {tick(limit, as_percent)}"
            key += f'<text x="22" y="{top + 4}">{text(told)}</text>'
            tall += 22
    return frame(title, words, caption + plot + foot + key, height=_HEIGHT + 100 + tall)


def _many(points: Sequence[Point]) -> str:
    count = sum(not point.landmark for point in points)
    return f"{count} setting" + ("" if count == 1 else "s")


def _marks(values: Sequence[float], limit: float | None) -> list[float]:
    found = [*values, *([] if limit is None else [limit])]
    low, high = min(found), max(found)
    if low == high:
        low, high = low - 0.05, high + 0.05
    return ticks(low, high)


def tick(value: float, as_percent: bool) -> str:
    """A value beside an axis."""
    if not as_percent:
        return f"{value:g}".replace("-", figures.MINUS)
    return f"{100 * value:.4g}%".replace("-", figures.MINUS)


def _point(point: Point, at: At, names: Sequence[str]) -> str:
    shape, colour, filled = SERIES[names.index(point.series) % len(SERIES)]
    x, y = at(point.x, point.y)
    paint = f'class="error" style="stroke:var(--{colour})"'
    bars = ""
    if point.x_ci:
        bars += line(at(point.x_ci[0], point.y)[0], y, at(point.x_ci[1], point.y)[0], y, paint)
    if point.y_ci:
        bars += line(x, at(point.x, point.y_ci[0])[1], x, at(point.x, point.y_ci[1])[1], paint)
    ring = f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="11" class="ring"/>' if point.picked else ""
    about = point.about or f"{point.series} {point.label}"
    hover = f"{about}: {point.x:.4g}, {point.y:.4g}"
    drawn = mark(x, round(y, 1), shape, colour, filled=filled)
    return f"<g><title>{text(hover)}</title>{bars}{drawn}{ring}</g>"


def _steps(front: Sequence[Point], at: At, better_x: Direction) -> list[str]:
    """The attainment line: level until the next point of the front, then straight to it."""
    drawn = []
    for left, right in pairwise(front):
        (x0, y0), (x1, y1) = at(left.x, left.y), at(right.x, right.y)
        bend_y = y1 if better_x == "higher" else y0
        bend_x = x0 if better_x == "higher" else x1
        drawn.append(line(x0, y0, bend_x, bend_y, 'class="front"'))
        drawn.append(line(bend_x, bend_y, x1, y1, 'class="front"'))
    return drawn


def _labels(points: Sequence[Point], chosen: Sequence[Point], at: At) -> list[str]:
    """Labels of chosen and picked points, each at the first place around it that is free; far off
    with a line to the point, and where nothing is free none (the table has all numbers)."""
    taken = [(at(p.x, p.y)[0] * _NOMINAL / 100, at(p.x, p.y)[1], 14.0, 14.0) for p in points]
    drawn = []
    for point in points:
        if not point.label or not (point in chosen or point.picked or point.landmark):
            continue
        x, y = at(point.x, point.y)
        wide = 6.6 * len(point.label)
        for dx, dy, anchor in _PLACES:
            shift = {"start": wide / 2, "end": -wide / 2, "middle": 0.0}[anchor]
            box = (x * _NOMINAL / 100 + dx + shift, y + dy - 4, wide, 15.0)
            inside = wide / 2 <= box[0] <= _NOMINAL * 1.06 - wide / 2
            inside = inside and -12 <= box[1] <= _HEIGHT - 4
            if inside and not any(_overlap(box, other) for other in taken):
                break
        else:
            continue
        if abs(dy) > _NEAR:
            end = y + dy + (2 if dy < 0 else -11)
            drawn.append(line(x, y, x, end, 'class="rule"'))
        taken.append(box)
        drawn.append(
            f'<text x="{x:.2f}%" dx="{dx}" y="{y + dy:.1f}" text-anchor="{anchor}" '
            f'class="tick">{text(point.label)}</text>'
        )
    return drawn


_PLACES = (  # the diagonals first: bars run along the axes
    (9, -8, "start"),
    (-9, -8, "end"),
    (9, 17, "start"),
    (-9, 17, "end"),
    (0, -14, "middle"),
    (0, 24, "middle"),
    (14, 4, "start"),
    (-14, 4, "end"),
    (9, -24, "start"),  # farther off
    (-9, -24, "end"),
    (9, 34, "start"),
    (-9, 34, "end"),
    *(
        (side * 4, sign * far + 4, anchor)
        for far in range(40, 125, 14)
        for sign in (-1, 1)
        for side, anchor in ((1, "start"), (-1, "end"))
    ),
)
_NEAR = 34  # pixels within which a label is seen to be its point's


def _overlap(a: Box, b: Box) -> bool:
    return abs(a[0] - b[0]) * 2 < a[2] + b[2] and abs(a[1] - b[1]) * 2 < a[3] + b[3]


def legend(names: Sequence[str], top: float) -> tuple[str, int]:
    """Names beside their marks in two columns from `top` pixels on, and how tall that is."""
    drawn = []
    for place, name in enumerate(names):
        shape, colour, filled = SERIES[place % len(SERIES)]
        x, y = (0.0 if place % 2 == 0 else 50.0), top + 22 * (place // 2)
        drawn.append(
            f'<svg x="{x}%" y="{y:g}" overflow="visible">'
            f'<svg x="8" overflow="visible">{mark(0, 0, shape, colour, filled=filled)}</svg>'
            f'<text x="22" y="4">{text(name)}</text></svg>'
        )
    return "".join(drawn), 22 * ((len(names) + 1) // 2)
