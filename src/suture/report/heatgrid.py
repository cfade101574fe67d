"""The heat map drawn: layers down, matrices across, every value printed in its cell.

Nine steps of one hue ordered by lightness (readable without colour vision and in print), plus a
blank step for "unchanged". The steps are CSS variables, so the dark page has its own ramp.
"""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from suture.report import figures
from suture.report.heatmap import HeatCell, HeatMap
from suture.report.svg import frame, label, text

STEPS = 9
_LEFT = 8.0  # percent of the width for layer numbers

Value = Callable[[HeatCell], float | None]


def norm_of(cell: HeatCell) -> float | None:
    """Relative Frobenius norm of the change."""
    return cell.norm


def share_of(cell: HeatCell) -> float | None:
    """Share of entries changed."""
    return cell.changed


def heat_grid(heat: HeatMap, value: Value, title: str) -> Markup:
    """One grid; numbers are percent. Empty when no tensor belongs to a layer."""
    layers, matrices = heat.layers, heat.matrices
    if not layers:
        return Markup("")
    top = _largest(heat, value)
    row = 26 if len(layers) <= 40 else 20
    wide = (100.0 - _LEFT) / len(matrices)
    body = [label(_LEFT - 2, 12, "layer", anchor="end", css="tick")]
    for column, matrix in enumerate(matrices):
        body.append(label(_LEFT + (column + 0.5) * wide, 12, matrix, css="head"))
    for line, layer in enumerate(layers):
        y = 22 + line * row
        body.append(label(_LEFT - 2, y + row / 2 + 4, layer, anchor="end", css="tick"))
        for column, matrix in enumerate(matrices):
            cell = heat.cell(layer, matrix)
            if cell is not None:
                body.append(_cell(cell, value(cell), top, _LEFT + column * wide, y, wide, row))
    return frame(title, _describe(heat, value, top), "".join(body), height=22 + len(layers) * row)


def _cell(
    cell: HeatCell, value: float | None, top: float, x: float, y: int, wide: float, tall: int
) -> str:
    step = step_of(value, top)
    hover = (
        f"layer {cell.layer}, {cell.matrix}: {figures.percent(cell.norm, 2)} of the norm, "
        f"{figures.percent(cell.changed)} of {figures.count(cell.entries)} entries changed"
    )
    return (
        f'<g class="h{step}"><title>{text(hover)}</title>'
        f'<rect x="{x:.2f}%" y="{y}" width="{wide:.2f}%" height="{tall}"/>'
        f'<text x="{x + wide / 2:.2f}%" y="{y + tall / 2 + 4:g}" text-anchor="middle">'
        f"{brief(value)}</text></g>"
    )


def step_of(value: float | None, top: float) -> int:
    """0 for unchanged, else 1 to 9 by share of the largest value; no value counts as largest."""
    if value == 0:
        return 0
    if value is None or top <= 0:
        return STEPS
    return min(STEPS, 1 + int(STEPS * value / top * 0.999999))


def brief(value: float | None) -> str:
    """Percent in at most four characters, without the sign; a dot for unchanged."""
    if value is None:
        return "new"
    if value == 0:
        return "·"
    percent = 100 * value
    if percent < 0.01:
        return "&lt;.01"
    if percent < 1:
        return f"{percent:.2f}".lstrip("0")
    return f"{percent:.1f}" if percent < 9.95 else f"{percent:.0f}"


def ramp(heat: HeatMap, value: Value) -> Markup:
    """The colour key: unchanged, then nine steps up to the largest value."""
    top = _largest(heat, value)
    steps = "".join(f'<i class="h{step}"></i>' for step in range(1, STEPS + 1))
    return Markup(
        f'<span class="ramp"><i class="h0">·</i> unchanged <span>{steps}</span> up to '
        f"{figures.percent(top, 2 if top < 0.1 else 0)}</span>"
    )


def _largest(heat: HeatMap, value: Value) -> float:
    inside = (value(cell) for cell in heat.cells if cell.layer is not None)
    return max((found for found in inside if found is not None), default=0.0)


def _describe(heat: HeatMap, value: Value, top: float) -> str:
    peak = [cell for cell in heat.cells if cell.layer is not None and value(cell) == top]
    where = f"layer {peak[0].layer}, {peak[0].matrix}" if peak and top > 0 else "no layer"
    return (
        f"{len(heat.layers)} layers by {len(heat.matrices)} matrices, in percent; largest "
        f"{figures.percent(top, 2)} at {where}. The same numbers stand in the table below."
    )
