"""How numbers look in every rendering: shares as percent, differences in points, true minus signs.

A ledger row is a mapping with the keys of `report.json`; differences are oriented so that + is
better, levels are as measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

MINUS = "\u2212"
DASH = "\u2013"
_SHARE = re.compile(
    r"rate|accuracy|share|refus|exact|f1|auc|agree|end|distinct|repet|recall|em$"
    r"|judged|prefer|wins|losses|parsed|swayed"
)

VERDICT_SENTENCES = {
    "proven": "Every target improved, and everything kept stayed within its margin.",
    "broken": "At least one row is broken: a target got worse, or something kept fell by more than "
    "its margin.",
    "not proven": "The sample cannot carry a verdict on every row. Nothing is shown to be broken.",
    "not measured": "No ledger yet: nothing has been compared.",
    "not chosen": "Several settings were tried and none was chosen: the trade-off is below.",
}
GLYPHS = {"proven": "✓", "improved": "✓", "held": "✓", "broken": "✕"}  # anything else is open
LIMITS = (
    "One paired run proves a checkpoint, not a method: a statement about a method needs at least "
    "five seeds.",
    "The verdicts hold for these items, this chat template and this decoding. Other prompts, "
    "languages or attacks are not covered.",
    "Kept means: not worse than the stated margin on what was measured. What was not measured is "
    "not known.",
    "Refusals are recognised by the scorer named in the measurements; it can err in both "
    "directions.",
)


def finite(value: object) -> float | None:
    """`value` as a float, or None when it is missing, not a number, or not finite."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def is_share(row: Mapping[str, Any]) -> bool:
    """Whether the row's metric is a share in [0, 1], shown as percent."""
    levels = [finite(row.get(key)) for key in ("before", "after", "reference")]
    inside = all(0.0 <= value <= 1.0 for value in levels if value is not None)
    return inside and _SHARE.search(str(row.get("metric", "")).lower()) is not None


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant figures without exponent where it stays short; a dash when missing."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{value:.{digits - 1}e}" if size < 1e-4 or size >= 1e6 else f"{value:#.{digits}g}"
    return text.rstrip(".").replace("-", MINUS)


def fixed(value: object, places: int = 3, *, sign: bool = False) -> str:
    """A column of like numbers: fixed decimals, a true minus, on request a plus."""
    found = finite(value)
    if found is None:
        return DASH
    return (f"{found:+.{places}f}" if sign else f"{found:.{places}f}").replace("-", MINUS)


def percent(value: float | None, places: int = 1) -> str:
    return DASH if value is None else f"{100 * value:.{places}f}%".replace("-", MINUS)


def level(row: Mapping[str, Any], key: str) -> str:
    """`before`, `after` or `reference` of a row."""
    value = finite(row.get(key))
    return percent(value) if is_share(row) else number(value)


def signed(row: Mapping[str, Any], value: float | None) -> str:
    """A difference with its sign; in points (hundredths) for shares."""
    if value is None:
        return DASH
    body = f"{100 * abs(value):.1f}" if is_share(row) else number(abs(value))
    sign = "" if float(body.replace(MINUS, "-")) == 0 else ("+" if value > 0 else MINUS)
    return sign + body


def interval(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The row's 95% interval of the oriented difference, or None."""
    ends = row.get("ci95")
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        return None
    low, high = finite(ends[0]), finite(ends[1])
    return None if low is None or high is None else (low, high)


def interval_text(row: Mapping[str, Any]) -> str:
    ends = interval(row)
    return DASH if ends is None else f"{signed(row, ends[0])} to {signed(row, ends[1])}"


def ends_text(row: Mapping[str, Any]) -> str:
    """The interval of the row's level, its `ends`, in the level's own unit."""
    low, high = (level({**row, "after": end}, "after") for end in row["ends"])
    return f"{low} to {high}"


def unit(row: Mapping[str, Any]) -> str:
    return "points" if is_share(row) else ""


def bound(row: Mapping[str, Any]) -> float:
    """The oriented difference that the interval's low end must exceed: min_gain or −margin."""
    if str(row.get("role")) == "target":
        return finite(row.get("min_gain")) or 0.0
    return -(finite(row.get("margin")) or 0.0)


def margin_text(row: Mapping[str, Any]) -> str:
    """`bound` in words."""
    share = is_share(row)
    least = f"{abs(bound(row)) * (100 if share else 1):.4g}" + (" points" if share else "")
    if str(row.get("role")) == "target":
        return "better" if bound(row) == 0 else f"better by {least}"
    worse = "worse than the reference" if row.get("against") == "reference" else "worse"
    return f"at most {least} {worse}"


def p_text(value: float | None) -> str:
    if value is None:
        return ""
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("0.", ".")


def count(value: object) -> str:
    """An integer with thin spaces between thousands; a dash when it is not a number."""
    value = finite(value)
    return DASH if value is None else f"{int(value):,}".replace(",", "\u202f")


def own_page(path: object) -> bool:
    """Whether a link to `path` stays in the folder of the page: a setting's own report."""
    return re.fullmatch(r"settings/[A-Za-z0-9][\w.-]*/report\.html", str(path)) is not None


def settling(row: Mapping[str, Any], needed: object) -> str:
    """How many items would settle a row of the ledger, and what that assumes."""
    from suture.ledger import assumed

    told = assumed(str(row.get("role")))
    return f"n ≈ {count(needed)} would settle it 4 times in 5, if {told}"


def size(nbytes: object) -> str:
    """Bytes in decimal units."""
    value = finite(nbytes)
    if value is None:
        return DASH
    for name in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {name}" if name == "bytes" else f"{value:.1f} {name}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def short(fingerprint: object, length: int = 12) -> str:
    """The head of a fingerprint; the whole one stands in the provenance."""
    text = str(fingerprint or "")
    return text[:length] if text else DASH


def glyph(verdict: str) -> str:
    """A sign beside the word, so that no verdict is told by colour alone."""
    return GLYPHS.get(verdict, "?")


def tone(verdict: str) -> str:
    """CSS class of a verdict: good, bad or open."""
    return {"✓": "good", "✕": "bad"}.get(glyph(verdict), "open")
