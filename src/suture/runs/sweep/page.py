"""The page of a sweep: that of the chosen setting's own run, with the trade-off on it.

Everything comes from the folder, so `suture report` writes the same page again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from suture.report import (
    Point,
    Provenance,
    ReportFacts,
    SweepFacts,
    SweptSetting,
    Tradeoff,
    facts_from_run,
    figures,
    write_report,
)
from suture.runs.sweep.choose import Bound, Side, parse_where
from suture.runs.sweep.facts import Facts, Reported, SettingFacts
from suture.runs.sweep.outcome import FILE, read_facts

_MODELS = "model as it is"  # the series of landmarks


def is_sweep_folder(folder: str | Path) -> bool:
    """Whether a folder is that of a finished sweep."""
    return (Path(folder) / FILE).is_file()


def page_facts(folder: str | Path, *, redact: bool = False) -> ReportFacts:
    """What the page of a sweep says. Raises SutureError E740 for another folder."""
    folder = Path(folder)
    facts = read_facts(folder)
    picked = next((row for row in facts["settings"] if row["key"] == facts["picked"]), None)
    swept = sweep_facts(facts)
    if picked is None:
        return ReportFacts(
            title=facts["title"],
            verdict="not chosen",
            before={"name": facts["models"]["before"]},
            sweep=swept,
            provenance=Provenance(recipe=facts["name"], command=facts["command"]),
            redact=redact,
        )
    title = f"{facts['title']}: setting {picked['number']}, {picked['label']}"
    if picked["report"] is None:
        line = (
            f"setting {picked['number']} has not been measured on other rows: run its recipe, or "
            "the sweep with these constraints"
        )
        return ReportFacts(
            title=title,
            verdict="not measured",
            before={"name": facts["models"]["before"]},
            patch=picked["patch"],
            missing=(line,),
            sweep=swept,
            provenance=Provenance(
                recipe=facts["name"],
                command=facts["command"],
                method=picked["method"],
                config=picked["knobs"],
            ),
            redact=redact,
        )
    own = facts_from_run(folder / "settings" / picked["key"], redact=redact)
    provenance = replace(own.provenance, command=facts["command"] or own.provenance.command)
    return replace(own, title=title, sweep=swept, provenance=provenance)


def write_page(folder: str | Path, out: str | Path | None = None, *, redact: bool = False) -> Path:
    """Write report.html, report.json and report.md of a sweep; the path of the first."""
    return write_report(page_facts(folder, redact=redact), Path(out or folder))["html"]


def sweep_facts(facts: Facts) -> SweepFacts:
    """Settings, planes and landmarks for the page, from the content of sweep.json."""
    told = [row["report"] for row in facts["settings"] if row["report"]]
    landmarks = [
        SweptSetting(
            number=0,
            label=str(facts["models"][side]),
            series=side,
            mark="",
            selection=_rows(facts, scores, {}),
            reported=_rows(facts, _side(told[0], side), {}) if told else {},
        )
        for side, scores in facts["sides"].items()
    ]
    return SweepFacts(
        settings=tuple(_setting(facts, row) for row in facts["settings"]),
        plots=tuple(_plots(facts)),
        metrics=tuple((metric, facts["better"][metric]) for metric in facts["axes"]),
        landmarks=tuple(landmarks),
        by=facts["why"] or "",
        n={"selection": facts["n"], "reported": told[0]["n"] if told else {}},
    )


def _side(told: Reported, side: Side) -> Mapping[str, float]:
    return told["before"] if side == "before" else told.get("reference", {})


def _setting(facts: Facts, row: SettingFacts) -> SweptSetting:
    chosen, found, told = row["key"] == facts["picked"], row["selection"], row["report"]
    several = len({one["method"] for one in facts["settings"]}) > 1
    return SweptSetting(
        number=row["number"],
        label=row["label"],
        series=row["method"] if several else "",
        mark="picked" if chosen else "front" if row["front"] else "",
        selection=_rows(facts, found["scores"], found["ci95"]) if found else {},
        reported=_rows(facts, told["scores"], told["ci95"], told["before"]) if told else {},
        against=row["against"],
        verdict=told["verdict"] if told else None,
        note=row["failed"] or (f"degenerate: {row['junk']}" if row["junk"] else ""),
        page=f"settings/{row['key']}/report.html" if told else None,
    )


def _rows(
    facts: Facts,
    scores: Mapping[str, float],
    ends: Mapping[str, Any],
    before: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """By metric what `figures` needs to show a level."""
    start = facts["sides"]["before"] if before is None else before
    return {
        metric: {
            "metric": metric.split(".", 1)[1],
            "before": start.get(metric),
            "after": scores[metric],
            "ends": ends.get(metric),
        }
        for metric in facts["axes"]
        if metric in scores
    }


def _plots(facts: Facts) -> list[Tradeoff]:
    """The first target against every other metric of the roles."""
    y, *others = facts["axes"]
    bounds = parse_where(facts["limits"] or "", list(facts["better"]), facts["axes"])
    plots = []
    for x in others:
        share = all(figures.is_share(_rows(facts, facts["sides"]["before"], {})[m]) for m in (x, y))
        plots.append(
            Tradeoff(
                points=tuple(_points(facts, x, y)),
                x_label=x,
                y_label=y,
                better_x=facts["better"][x],
                better_y=facts["better"][y],
                as_percent=share,
                x_limit=_limit(facts, bounds, x),
                y_limit=_limit(facts, bounds, y),
            )
        )
    return plots


def _points(facts: Facts, x: str, y: str) -> list[Point]:
    points = []
    for row in facts["settings"]:
        if row["selection"] is None:
            continue
        scores, ends = row["selection"]["scores"], row["selection"]["ci95"]
        points.append(
            Point(
                scores[x],
                scores[y],
                row["method"] if row["junk"] is None else "degenerate replies",
                str(row["number"]),
                _pair(ends.get(x)),
                _pair(ends.get(y)),
                picked=row["key"] == facts["picked"],
                landmark=row["junk"] is not None,
                about=f"setting {row['number']}, {row['label']}",
            )
        )
    for side, scores in facts["sides"].items():
        name = str(facts["models"][side])
        points.append(Point(scores[x], scores[y], _MODELS, name, landmark=True, about=name))
    return points


def _pair(ends: Any) -> tuple[float, float] | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _limit(facts: Facts, bounds: tuple[Bound, ...], metric: str) -> float | None:
    """The level that the first constraint on `metric` asks for."""
    own = [bound for bound in bounds if bound.metric == metric]
    return own[0].wanted(facts["sides"]) if own else None
