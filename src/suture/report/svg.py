"""Charts as inline SVG, written by hand: no library, no script, no fixed width.

Horizontal positions are percentages and vertical ones pixels, so a chart fills any width without
scaling its text. Colours are CSS variables of the page (`templates/style.css`), which is how dark
mode works; `standalone` adds them for a file of its own. Every mark differs in shape as well as
in colour, and every chart carries a title and a description.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from suture.errors import SutureError
from suture.report import figures
from suture.report.visible import one_line

_NARROWEST = 0.1  # share axes span at least ten points, so that noise does not look like news
_HEADING = 28  # pixels above the chart of a file, for its title

STANDALONE_STYLE = (
    "svg{--paper:#fff;--ink:#1d1c1a;--muted:#5f5b54;--rule:#d9d4ca;--wash:#f1eee7;"
    "--before:#6a665e;--after:#0b5a9e;--ref:#9a4700;--good:#0b6a4d;--bad:#ad2a1e;--open:#7a5400;"
    "font:13px system-ui,sans-serif;background:var(--paper)}"
    "text{fill:var(--ink)}.tick{fill:var(--muted);font-size:12px}.name{font-weight:600}"
    ".rule{stroke:var(--rule);stroke-width:1}.front{stroke:var(--muted);stroke-width:1.5;"
    "stroke-dasharray:5 4}.error{stroke-width:1.5;opacity:.55}.ring{fill:none;stroke:var(--ink);"
    "stroke-width:1.5}"
)


def text(value: object) -> Markup:
    """`value` as one visible, escaped line for element content or a quoted attribute."""
    return escape(one_line(str(value)))


def frame(title: str, description: str, body: str, *, height: float) -> Markup:
    """The outer element: role, accessible name and description."""
    return Markup(
        f'<svg role="img" aria-label="{text(title)}" width="100%" height="{height:g}" '
        f'overflow="visible"><title>{text(title)}</title>'
        f"<desc>{text(description)}</desc>{body}</svg>"
    )


def standalone(svg: str, *, width: int = 720) -> str:
    """A chart as a file: XML namespace, fixed width, the light palette inside, and its title above
    it, which a page would have as a heading."""
    found = re.match(r'<svg (role="img" aria-label="([^"]*)") width="100%" height="([^"]+)"', svg)
    assert found is not None  # of `frame`
    named, title, height = found.groups()
    heading = label(0, 16, unescape(title), anchor="start", css="name")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {named} font-family="system-ui" width="{width}" '
        f'height="{float(height) + _HEADING:g}" overflow="visible">'
        f"<style>{STANDALONE_STYLE}</style>{heading}"
        + str(svg).replace(named, f'y="{_HEADING}"', 1)
        + "</svg>"
    )


def check_ending(out: Path) -> None:
    """Refuse (E633) a file for a drawing that is not called .svg."""
    if out.suffix != ".svg":
        raise SutureError(
            "E633",
            f"a drawing is not written as '{out.suffix or out.name}'",
            where=str(out),
            fix="end the file's name in .svg; browsers and Inkscape turn that into anything else",
        )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line; x in percent, y in pixels; `style` holds the paint attributes."""
    return f'<line x1="{x1:.2f}%" y1="{y1:g}" x2="{x2:.2f}%" y2="{y2:g}" {style}/>'


def label(x: float, y: float, body: object, *, anchor: str = "middle", css: str = "") -> str:
    """Text at x percent and a baseline of y pixels."""
    return f'<text x="{x:.2f}%" y="{y:g}" text-anchor="{anchor}" class="{css}">{text(body)}</text>'


def mark(x: float, y: float, shape: str, colour: str, *, filled: bool, size: float = 5.5) -> str:
    """One point: circle, diamond, square, triangle or cross, at x percent and y pixels."""
    fill = f"var(--{colour})" if filled else "var(--paper)"
    paint = f'style="fill:{fill};stroke:var(--{colour});stroke-width:2"'
    s = size
    shapes = {
        "circle": f'<circle r="{s:g}" {paint}/>',
        "diamond": f'<path d="M0 {-s * 1.25:g}L{s * 1.25:g} 0L0 {s * 1.25:g}L{-s * 1.25:g} 0Z" '
        f"{paint}/>",
        "square": f'<path d="M{-s:g} {-s:g}H{s:g}V{s:g}H{-s:g}Z" {paint}/>',
        "triangle": f'<path d="M0 {-s * 1.2:g}L{s * 1.15:g} {s:g}H{-s * 1.15:g}Z" {paint}/>',
        "down": f'<path d="M0 {s * 1.2:g}L{s * 1.15:g} {-s:g}H{-s * 1.15:g}Z" {paint}/>',
        "cross": f'<path d="M{-s:g} {-s:g}L{s:g} {s:g}M{-s:g} {s:g}L{s:g} {-s:g}" {paint}/>',
    }
    return f'<svg x="{x:.2f}%" y="{y:g}" overflow="visible">{shapes[shape]}</svg>'


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round tick positions that cover [low, high]."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to percent of the width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Percent of the width, clamped to the plot."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return 100 * min(max(share, 0.0), 1.0)


def _axis(row: Mapping[str, Any], values: Sequence[float]) -> tuple[Axis, list[float]]:
    low, high = min(values), max(values)
    if figures.is_share(row):
        middle, reach = (low + high) / 2, max((high - low) / 2, _NARROWEST / 2)
        low, high = max(middle - reach, 0.0), min(middle + reach, 1.0)
    if low == high:
        low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9
    if 0 < low < 0.5 * high:
        low = 0.0
    marks = [mark for mark in ticks(low, high, 4) if not figures.is_share(row) or mark <= 1]
    return Axis(marks[0], marks[-1]), marks


def dumbbell(row: Mapping[str, Any]) -> Markup:
    """Before o—o after of one ledger row, with reference, interval and margin on one scale.

    The bar is the 95% interval of the difference, laid from the model the row is judged against
    (so it surrounds *after*); the gate is the level that its worse end must clear. Each row has
    its own scale, which for shares spans at least ten points.
    """
    before, after = figures.finite(row.get("before")), figures.finite(row.get("after"))
    reference = figures.finite(row.get("reference"))
    if before is None or after is None:
        return Markup("")
    sign = -1.0 if row.get("better") == "lower" else 1.0
    origin = reference if row.get("against") == "reference" and reference is not None else before
    gate = origin + sign * figures.bound(row)
    ends = figures.interval(row)
    span = sorted(origin + sign * end for end in ends) if ends else []
    shown = [before, after, gate, *span, *([] if reference is None else [reference])]
    axis, marks = _axis(row, shown)
    y = 26.0
    share = figures.is_share(row)
    body = [line(0, y, 100, y, 'class="rule"')]
    for value in marks:
        at = axis.at(value)
        body.append(line(at, y - 4, at, y + 4, 'class="rule"'))
        anchor = "start" if at < 1 else "end" if at > 99 else "middle"
        shape = figures.percent(value, 0) if share else f"{value:g}".replace("-", figures.MINUS)
        body.append(label(at, y + 29, shape, anchor=anchor, css="tick"))
    body.append(_gate(axis.at(gate), y, worse=-sign))
    if span:
        a, b = axis.at(span[0]), axis.at(span[1])
        body.append(
            f'<rect x="{a:.2f}%" y="{y - 7:g}" width="{max(b - a, 0.4):.2f}%" height="14" rx="3" '
            'class="interval"/>'
        )
    body.append(line(axis.at(before), y, axis.at(after), y, 'class="move"'))
    if reference is not None:
        body.append(mark(axis.at(reference), y, "diamond", "ref", filled=False))
    body.append(mark(axis.at(before), y, "circle", "before", filled=False, size=7))
    body.append(mark(axis.at(after), y, "circle", "after", filled=True, size=4.5))
    name = f"{row.get('suite')} {row.get('metric')}"
    described = (
        f"Before {figures.level(row, 'before')}, after {figures.level(row, 'after')}"
        + ("" if reference is None else f", reference {figures.level(row, 'reference')}")
        + f"; difference {figures.signed(row, figures.finite(row.get('difference')))}, "
        f"95% interval {figures.interval_text(row)}, {row.get('verdict')}."
    )
    return frame(f"{name}: before and after", described, "".join(body), height=60)


def _gate(x: float, y: float, *, worse: float) -> str:
    """The margin: a dashed post with hatching toward the side that would fail."""
    tips = "".join(
        f'<line x1="0" y1="{dy}" x2="{5 * worse:g}" y2="{dy + 5}" class="hatch"/>'
        for dy in (-13, -6, 1, 8)
    )
    post = '<line y1="-14" y2="14" class="post"/>'
    return f'<svg x="{x:.2f}%" y="{y:g}" overflow="visible">{post}{tips}</svg>'


def interval_mark(row: Mapping[str, Any], reach: float) -> Markup:
    """A table cell's forest mark: difference and interval around zero, with the bound to clear.

    `reach`: the largest oriented difference to fit, shared by rows of one role and unit.
    """
    ends = figures.interval(row)
    middle = figures.finite(row.get("difference"))
    if ends is None or middle is None or not reach > 0:
        return Markup("")
    axis = Axis(-reach, reach)
    y = 10.0
    a, b = axis.at(ends[0]), axis.at(ends[1])
    tone = figures.tone(str(row.get("verdict")))
    body = (
        line(0, y, 100, y, 'class="rule"')
        + line(50, 3, 50, 17, 'class="zero"')
        + line(axis.at(figures.bound(row)), 1, axis.at(figures.bound(row)), 19, 'class="gate"')
        + line(a, y, max(b, a + 1), y, f'class="whisker {tone}"')
        + mark(axis.at(middle), y, "circle", tone, filled=True, size=3)
    )
    words = f"Difference {figures.signed(row, middle)}, 95% interval {figures.interval_text(row)}"
    return frame("Difference and interval", words, body, height=20)


def key() -> Markup:
    """The legend of the dumbbells, one small drawing per sign."""
    signs = (
        ("before", mark(50, 9, "circle", "before", filled=False, size=7)),
        ("after", mark(50, 9, "circle", "after", filled=True, size=4.5)),
        ("reference", mark(50, 9, "diamond", "ref", filled=False)),
        ("95% interval", '<rect x="1" y="2" width="24" height="14" rx="3" class="interval"/>'),
        ("margin, hatched where it fails", f"<g>{_gate(50, 9, worse=-1)}</g>"),
    )
    items = "".join(
        f'<li><svg aria-hidden="true" width="26" height="18">{drawing}</svg>{name}</li>'
        for name, drawing in signs
    )
    return Markup(f'<ul class="key">{items}</ul>')
