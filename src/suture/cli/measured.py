"""How a measurement is written and shown: its averages, their intervals, what stands out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suture.cli.terminal import emit, emit_json, table
from suture.errors import some

if TYPE_CHECKING:
    from suture.ledger import Measurement

_COUNTED = {
    **dict.fromkeys(("sentiment", "emotion"), "parser and policy"),
    "personality": "parser and unread",
    "stress": "parser",
}
_TOO_MANY = 0.05  # share of unread verdicts that is worth a line
_HARDLY = 0.05  # share of replies in the form asked for, below which numbers are of little else


def save(measurement: Measurement, out: Path | None, *, redact: bool = False) -> bool:
    """Write a measurement, if it is to be written; whether it replaces an older file."""
    if out is None:
        return False
    old = out.exists()
    measurement.save(out, redact=redact)
    return old


def show(
    measurement: Measurement,
    out: Path | None,
    as_json: bool,
    *,
    replaced: bool = False,
    seconds: float | None = None,
) -> None:
    """The averages with their 95% intervals, and where the judge's words lie.

    `seconds`: what was spent now, where that is not what the measurement took."""
    from suture.ledger import interval_of, is_trivial, judged_path, stands_on

    intervals = {name: interval_of(measurement, name) for name in measurement.metrics}
    if as_json:
        head = {k: v for k, v in measurement.as_dict().items() if k != "rows"}
        known = {name: ends for name, ends in intervals.items() if ends is not None}
        file = {"file": None if out is None else str(out), "replaced": replaced}
        emit_json({**head, "ci95": known, **file})
        return
    rows = [
        (
            name,
            f"{value:.3e}" if _tiny(value) else f"{value:.4f}",
            ends(intervals[name], value),
            stands_on(measurement, name),
            _direction(measurement, name),
        )
        for name, value in measurement.metrics.items()
        if name in measurement.better and not is_trivial(measurement, name)
    ]
    emit(table(rows))
    if blank := [row[0] for row in rows if intervals[row[0]] is None]:
        emit(_why_none(measurement, blank))
    for line in unread(measurement):
        emit(line)
    if out is not None:
        word = "replaced" if replaced else "wrote"
        spent = measurement.seconds if seconds is None else seconds
        emit(f"{word} {out}: {measurement.n} rows in {spent:.1f} s")
    if out is not None and judged_path(out).is_file():
        emit(f"the judge's own words: {judged_path(out)}")
    for name, value in measurement.metrics.items():
        if name.endswith("_unparsed") and value > _TOO_MANY:
            emit(f"{name}: the judge's words could not be read for {value:.0%} of the replies")


def ends(interval: tuple[float, float] | None, value: float) -> str:
    """The interval of `value`; where the value needs an exponent, its ends have one too."""
    if interval is None:
        return "no interval"
    low, high = (
        f"{end:.3e}" if _tiny(end) or (_tiny(value) and end) else f"{end:.3f}" for end in interval
    )
    return f"{low} to {high}"


def _tiny(value: float) -> bool:
    """Whether fixed decimals would show next to nothing of it."""
    return 0 < abs(value) < 0.001


def _direction(measurement: Measurement, name: str) -> str:
    best = measurement.derived.get(name, {}).get("best")
    return f"{measurement.better[name]} is better" if best is None else f"{best:g} is best"


def _why_none(measurement: Measurement, names: Sequence[str]) -> str:
    """Why some metrics have no interval; the table above names them all."""
    from suture.ledger import without_interval

    why: dict[str, list[str]] = {}
    for name in names:
        why.setdefault(without_interval(measurement, name), []).append(name)
    told = "; ".join(f"{some(group)}: {reason}" for reason, group in why.items())
    return f"no interval for {told}"


def unread(measurement: Measurement) -> list[str]:
    """A line for each metric that says hardly any reply had the form asked for."""
    lines = []
    for name, share in measurement.metrics.items():
        about, dot, end = name.rpartition(".")
        rows = [row.scores for row in measurement.rows if name in row.scores]
        if end != "parsed_strict" or not rows or share >= _HARDLY:
            continue
        had = round(share * len(rows))
        line = f"{had} of {len(rows)} replies had the form asked for"
        loose = measurement.metrics.get(f"{about}{dot}parsed_lenient")
        if loose is not None:
            line += f", in {round(loose * len(rows))} an answer could be found"
        if measurement.suite in _COUNTED:
            line += f"; how the rest counts is said by the options {_COUNTED[measurement.suite]}"
        lines.append(f"{about}: {line}" if about else line)
    return lines
