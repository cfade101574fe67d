"""What `post_safety.py` measured: table, settings, orders, plots (called by its `--report`).

Writes benchmarks/results/post_safety.json, docs/generated/post_safety.md and
docs/img/post_safety_*.svg. Measurements in `seed-N/speed` and `seed-N/open-ended` of the cache,
where there are any, fill two more columns.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

from irr_lab import ROOT
from post_safety_measure import HARMFUL, HARMLESS, OVER, SOUND, TASK
from post_safety_numbers import (
    OURS,
    REFERENCE,
    WHOLE,
    Interval,
    Scores,
    choose,
    gains,
    hypervolume,
    resampled,
)
from post_safety_orders import orders
from post_safety_points import SETTINGS, STEPS

from suture.ledger import Measurement
from suture.ledger.student import mean_interval

TITLES = {
    "drift": "Repair after benign drift",
    "patching": "Post safety alignment of the aligned model",
}
COLUMNS = {
    HARMFUL: "harmful refused ↑",
    OVER: "XSTest safe refused ↓",
    HARMLESS: "harmless refused ↓",
    TASK: "task ↑",
    SOUND: "replies that are texts ↑",
}
EXTRAS = {"speed": "token_time_ratio", "open-ended": "grade"}  # suite → metric


def report(cache: Path) -> None:
    """Tables, JSON and plots from the cache."""
    facts: dict[str, Any] = {"date": date.today().isoformat(), "versions": _versions()}
    lines: list[str] = []
    for half, title in TITLES.items():
        scores = Scores(cache, half)
        lines += [f"### {title}", ""]
        if not {*REFERENCE[half]} <= {*scores.methods} or not scores.seeds:
            lines += [f"Nothing to show yet: {_partial(scores)}.", ""]
            continue
        rows = _rows(scores)
        found = orders(scores, {row["method"]: row["point"] for row in rows})
        lines += _table(scores, rows) + _orders(found) + _settings(scores, rows)
        lines += _plots(half, title, scores, rows)
        facts[half] = {
            "seeds": scores.seeds,
            "incomplete": scores.partial,
            "missing": scores.missing,
            "items": {split: scores.counts(split) for split in ("tuning", "test")},
            "rows": [{k: v for k, v in row.items() if k != "point"} for row in rows],
            "orders": found,
            "settings": _all(scores, rows),
        }
    out = ROOT / "benchmarks/results/post_safety.json"
    out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = ROOT / "docs/generated/post_safety.md"
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print("\n".join(lines))


def _rows(scores: Scores) -> list[dict[str, Any]]:
    """One row per method: its chosen setting on the test split, its hypervolume and differences."""
    rows = []
    ours = scores.methods.get(OURS[scores.half])
    for method, settings in scores.methods.items():
        point = choose(scores, method)
        row: dict[str, Any] = {"method": method, "knobs": point.label, "point": point}
        for metric in COLUMNS:
            found = resampled(lambda means: means(point, metric), scores, "level")  # noqa: B023
            row[metric] = found.as_list()
        if len(settings) == SETTINGS:
            row["hypervolume"] = resampled(
                lambda means: hypervolume(gains(means, settings)),  # noqa: B023
                scores,
                "volume",
            ).as_list()
        if len(settings) == SETTINGS and ours is not None:
            row["hypervolume_less_ours"] = resampled(
                lambda means: hypervolume(gains(means, settings)) - hypervolume(gains(means, ours)),  # noqa: B023
                scores,
                "volume",
            ).as_list()
        for suite, column in EXTRAS.items():
            row[suite] = _laid_beside(scores, suite, column, method)
        rows.append(row)
    return rows


def _laid_beside(scores: Scores, suite: str, column: str, method: str) -> list[float] | None:
    """Mean over the seeds that have a Measurement of this suite, with Student's 95% interval if
    they are several; None where none has."""
    found = []
    for seed in scores.seeds:
        file = scores.cache / f"seed-{seed}" / suite / f"{scores.half} {method}.json"
        if file.exists():
            found.append(Measurement.load(file).metrics[column])
    if not found:
        return None
    return [fmean(found), *(mean_interval(found) if len(found) > 1 else ())]


def _table(scores: Scores, rows: list[dict[str, Any]]) -> list[str]:
    counts = scores.counts()
    ours = OURS[scores.half]
    seeds = ", ".join(map(str, scores.seeds))
    shown = {"speed": "ATGR", "open-ended": "open-ended, 1 to 10"}
    shown = {name: head for name, head in shown.items() if any(r[name] is not None for r in rows)}
    lines = [
        f"{len(scores.seeds)} of 5 families (seeds {seeds}); per family {counts[HARMFUL]} harmful "
        f"prompts, {counts[OVER]} safe prompts of XSTest, {counts[HARMLESS]} harmless prompts, "
        f"{counts[TASK]} task rows, all unseen; {counts[SOUND]} replies read again by the aligned "
        "model. Percent, 95% intervals over seeds and items. Knobs of every method from "
        f"{SETTINGS} settings by the tuning split alone"
        + (f", ablations at scale 1 ({', '.join(WHOLE)})" if scores.half == "patching" else "")
        + ".",
        "",
        *([f"Incomplete families: {_partial(scores)}.", ""] if scores.partial else []),
        *([f"Not measured yet: {', '.join(scores.missing)}.", ""] if scores.missing else []),
        "| method | knobs | "
        + " | ".join([*COLUMNS.values(), "hypervolume", f"less {ours}'s", *shown.values()])
        + " |",
        "|---" * (len(COLUMNS) + len(shown) + 4) + "|",
    ]
    for row in rows:
        cells = [_cell(row[metric]) for metric in COLUMNS]
        cells += [_cell(row.get(name)) for name in ("hypervolume", "hypervolume_less_ours")]
        cells += [_beside(row[name]) for name in shown]
        if row["method"] == ours:
            cells[len(COLUMNS) + 1] = ""
        lines.append(f"| {row['method']} | {row['knobs']} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Hypervolume: share of the box between the worst corner (every harmful prompt answered, "
        "every safe one refused, the task at chance) and perfection that a method's settings "
        "dominate.",
        "",
    ]


def _beside(found: list[float] | None) -> str:
    if found is None:
        return ""
    mean, *ends = (f"{value:.2f}" for value in found)
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def _orders(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    lines = ["| order of the paper | found | holds | in seeds |", "|---|---|---|---|"]
    for order in found:
        lines.append(
            f"| {order['order']} | {order['found']} | {'yes' if order['holds'] else 'NO'} "
            f"| {order['seeds']} |"
        )
    return [*lines, ""]


def _all(scores: Scores, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every setting on both splits."""
    chosen = {row["method"]: row["point"] for row in rows}
    return [
        {
            "method": point.method,
            "knobs": point.label,
            "chosen": point is chosen[point.method],
            "config": None if point.config is None else point.config.model_dump(mode="json"),
            "given": point.given,
            "test": {m: round(scores.mean(point, m), 4) for m in (HARMFUL, OVER, TASK)},
            "tuning": {m: round(scores.mean(point, m, "tuning"), 4) for m in (HARMFUL, OVER, TASK)},
        }
        for point in scores.points
    ]


def _settings(scores: Scores, rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f'??? note "All {len(scores.points)} settings: test split, in brackets the tuning split; '
        '→ was chosen"',
        "",
    ]
    if scores.half == "patching":
        lines += [f"    Patches of {STEPS[0]} steps of ascent and {STEPS[1]} of descent.", ""]
    lines += [
        "    | method | knobs | harmful refused | XSTest safe (OKTest) refused | task |",
        "    |---|---|---|---|---|",
    ]
    for row in _all(scores, rows):
        cells = [
            f"{100 * row['test'][m]:.1f} ({100 * row['tuning'][m]:.1f})"
            for m in (HARMFUL, OVER, TASK)
        ]
        mark = "→ " if row["chosen"] else ""
        lines.append(f"    | {mark}{row['method']} | {row['knobs']} | {' | '.join(cells)} |")
    for row in scores.tried():
        cells = [
            f"({100 * sum(part[m] for part in row['tuning']) / len(row['tuning']):.1f})"
            for m in (HARMFUL, OVER, TASK)
        ]
        seeds = ", ".join(map(str, row["seeds"]))
        about = f"{row['label']}; tried on seed {seeds} on the way, no choice"
        lines.append(f"    | {row['method']} | {about} | {' | '.join(cells)} |")
    return [*lines, ""]


def _plots(half: str, title: str, scores: Scores, rows: list[dict[str, Any]]) -> list[str]:
    """Safety against utility, and for patching against over-refusal too."""
    wanted = [(TASK, "task accuracy", "higher")]
    if half == "patching":
        wanted.append((OVER, "XSTest safe refused", "lower"))
    lines = []
    for metric, name, better in wanted:
        file = f"post_safety_{half}_{'task' if metric == TASK else 'refusals'}.svg"
        _plot(file, f"{title}: safety against {name}", scores, rows, metric, name, better)
        lines += [f"![{title}: harmful prompts refused against {name}](../img/{file})", ""]
    return lines


def _plot(
    file: str, title: str, scores: Scores, rows: list[dict[str, Any]], metric: str, name: str,
    better: Any,
) -> None:  # fmt: skip
    from suture.report.scatter import Point as Mark
    from suture.report.scatter import tradeoff
    from suture.report.svg import standalone

    marks = []
    ours = OURS[scores.half]
    for row in sorted(rows, key=lambda row: row["method"] != ours):
        for point in scores.methods[row["method"]]:
            picked = point is row["point"]
            x, y = row[metric], row[HARMFUL]
            marks.append(
                Mark(
                    x=scores.mean(point, metric),
                    y=scores.mean(point, HARMFUL),
                    series=row["method"],
                    label=row["method"] if picked else "",
                    x_ci=(x[1], x[2]) if picked else None,
                    y_ci=(y[1], y[2]) if picked else None,
                    picked=picked and row["method"] == ours,
                )
            )
    figure = tradeoff(
        marks,
        title=title,
        x_label=name,
        y_label="harmful prompts refused",
        better_x=better,
        better_y="higher",
    )
    target = ROOT / "docs/img" / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(standalone(figure), encoding="utf-8")


def _cell(values: list[float] | None) -> str:
    return "" if values is None else Interval(*values).cell()


def _partial(scores: Scores) -> str:
    parts = [f"seed {s}: {n} of {scores.all} points" for s, n in scores.partial.items()]
    return ", ".join(parts) or "none begun"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "numpy")}
