"""From the points of `unlearning_lab.py` to results, table and pictures.

Settings are chosen on the tuning side alone, by `overall` at the fixed epoch.
Intervals are over families: mean ± t·s/√n, and the same for paired differences to RKLD.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from unlearning_points import FIXED, WITH_RETAIN, Point, points

from suture.checkpoint import write_json
from suture.checkpoint.jsonfile import read_json
from suture.report.curves import curves
from suture.report.scatter import Point as Dot
from suture.report.scatter import tradeoff
from suture.report.svg import standalone
from suture.versions import versions

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "unlearning_lab.json"
TABLE = ROOT / "docs" / "generated" / "unlearning_lab.md"
IMAGES = ROOT / "docs" / "img"
PAIRED = ("forget_ks", "forget_probability", "model_utility_geometric", "overall")
OURS, RIVAL = "RKLD", "forward KL"
COLUMNS = {  # of the table; `overall` is worked out here
    "forget_ks": "KS distance D ↓",
    "forget_quality": "published p ↑",
    "forget_probability": "forget probability ↓",
    "forget_rouge": "forget ROUGE ↓",
    "model_utility_geometric": "utility ↑",
    "retain_probability": "retain probability ↑",
}


def value(found: dict[str, Any], epoch: int, metric: str) -> float:
    """What a trajectory says at an epoch; the worst where it diverged."""
    if found.get("diverged"):
        return 1.0 if metric == "forget_ks" else 0.0
    return float(
        next(e for e in found["epochs"] if e["epoch"] == epoch)["metrics"][f"tofu.{metric}"]
    )


def trajectory(home: Path, point: Point) -> dict[str, Any] | None:
    file = home / "points" / f"{point.folder}.epochs" / "trajectory.json"
    return read_json(file) if file.exists() else None


def epochs_of(found: Sequence[dict[str, Any] | None]) -> list[int]:
    """The epochs that every trajectory has measured."""
    held = [{e["epoch"] for e in one["epochs"]} for one in found if one]
    return sorted(set.intersection(*held)) if held else []


def landmark(home: Path, name: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((home / f"{name}.json").read_text("utf-8"))["metrics"]
    return found


def choose(cache: Path) -> dict[str, Point]:
    """Method to its setting, from the tuning side; methods with settings missing are left out."""
    home = cache / "tuning"
    before = landmark(home, "before")
    methods: dict[str, list[Point]] = {}
    for point in points():
        methods.setdefault(point.method, []).append(point)
    found: dict[str, Point] = {}
    for method, settings in methods.items():
        tried = {point: trajectory(home, point) for point in settings}
        if all(one is not None for one in tried.values()):
            scores = {point: overall(one, before) for point, one in tried.items() if one}
            found[method] = max(settings, key=lambda point: scores[point])
    return found


def overall(found: dict[str, Any], before: dict[str, float], epoch: int = FIXED) -> float:
    """Harmonic mean of the share of the way to the oracle, 1 − D / D before, and the share of the
    utility that is kept; 0 where one of them is."""
    way = 1 - value(found, epoch, "forget_ks") / before["forget_ks"]
    name = "model_utility_geometric"
    kept = min(1.0, value(found, epoch, name) / before[name])
    return 2 * way * kept / (way + kept) if way > 0 and kept > 0 else 0.0


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95% t-interval over families; no interval (NaN) for one."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def collect(cache: Path) -> dict[str, Any]:
    """Everything the table says, with the values of every family."""
    picked = choose(cache)
    homes = sorted(cache.glob("seed-*"), key=lambda p: int(p.name[5:]))
    whole = [h for h in homes if all(trajectory(h, p) for p in picked.values())]
    rows = []
    for method, point in picked.items():
        found = [trajectory(home, point) for home in whole]
        row: dict[str, Any] = {
            "method": method, "setting": point.label, "retain data": method in WITH_RETAIN,
        }  # fmt: skip
        for reading in ("fixed", "first_peak"):
            row[reading] = {
                metric: [value(one, one[reading], metric) for one in found if one]
                for metric in COLUMNS
            }
            row[reading]["overall"] = [
                overall(one, landmark(home, "before"), one[reading])
                for one, home in zip(found, whole, strict=True)
                if one
            ]
        row["epochs at first peak"] = [one["first_peak"] for one in found if one]
        row["curves"] = {
            metric: [
                (epoch, float(np.mean([value(one, epoch, metric) for one in found if one])))
                for epoch in epochs_of(found)
            ]
            for metric in ("forget_ks", "forget_probability", "model_utility_geometric")
        }
        rows.append(row)
    marks = {
        name: {metric: [landmark(home, name).get(metric) for home in whole] for metric in COLUMNS}
        for name in ("before", "oracle")
    }
    return {
        "fixed_epoch": FIXED,
        "families": [home.name for home in whole],
        "unfinished": [home.name for home in homes if home not in whole],
        "rows": rows,
        "landmarks": marks,
        "tuning": tuning_table(cache),
        "versions": versions(),
    }


def tuning_table(cache: Path) -> list[dict[str, Any]]:
    """Every setting that was tried, at the fixed epoch of the tuning side."""
    found = []
    for point in points():
        one = trajectory(cache / "tuning", point)
        if one is not None:
            numbers = {metric: float(f"{value(one, FIXED, metric):.4g}") for metric in COLUMNS}
            found.append({"method": point.method, "setting": point.label, **numbers})
    return found


def cell(values: Sequence[float]) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def markdown(found: dict[str, Any]) -> str:
    n = len(found["families"])
    if not n:
        left = "The families are not measured yet; settings are still being chosen."
        return "\n".join([left, "", *tried(found["tuning"])])
    lines = [
        f"n = {n} families (seeds), 100 of 200 rows asked; mean with 95% t-interval over families. "
        "The settings were chosen on other people and one family.",
        "",
    ]
    head = ["method", "setting", "retain rows", *COLUMNS.values(), "overall ↑"]
    for reading, title in (
        ("fixed", f"After epoch {FIXED}"),
        ("first_peak", "At the first peak of p (chosen on the number it reports)"),
    ):
        lines += [f"**{title}**", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name, marks in found["landmarks"].items():
            cells = [cell(v) if None not in v else "" for v in marks.values()]
            lines.append("| " + " | ".join([f"*{name}*", "", "", *cells, ""]) + " |")
        for row in found["rows"]:
            cells = [
                f"{np.median(values):.2g} (median)" if metric == "forget_quality" else cell(values)
                for metric, values in row[reading].items()
            ]
            told = "yes" if row["retain data"] else ""
            lines.append("| " + " | ".join([row["method"], row["setting"], told, *cells]) + " |")
        lines.append("")
    rows = {row["method"]: row for row in found["rows"]}
    if OURS in rows:
        lines += [f"**{OURS} less each other method, paired by family, epoch {FIXED}**", ""]
        lines += ["| against | D | forget probability | utility | overall |", "|---" * 5 + "|"]
        for name, row in rows.items():
            if name != OURS:
                cells = []
                for metric in PAIRED:
                    pairs = zip(rows[OURS]["fixed"][metric], row["fixed"][metric], strict=True)
                    cells.append(cell([a - b for a, b in pairs]))
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, *tried(found["tuning"])])


def tried(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every setting of the tuning side, folded."""
    if not rows:
        return []
    lines = [
        f'??? note "Every setting that was tried, after epoch {FIXED}, on the tuning side"',
        "",
    ]
    lines += [f"    | {' | '.join(rows[0])} |", f"    {'|---' * len(rows[0])}|"]
    return [*lines, *(f"    | {' | '.join(str(x) for x in row.values())} |" for row in rows), ""]


def pictures(found: dict[str, Any]) -> None:
    """Forgetting against utility, and how both went over the epochs."""
    dots = [
        Dot(
            x=float(np.mean(row["fixed"]["forget_ks"])),
            y=float(np.mean(row["fixed"]["model_utility_geometric"])),
            series=row["method"],
            label=row["method"],
        )
        for row in found["rows"]
    ]
    chart = tradeoff(
        dots, x_label="KS distance to the oracle", y_label="model utility", better_x="lower",
        title="Forgetting against utility", label_all=True, as_percent=False,
    )  # fmt: skip
    (IMAGES / "unlearning_tradeoff.svg").write_text(standalone(chart), "utf-8")
    shown = [row for row in found["rows"] if row["method"] in
             (OURS, RIVAL, "GA", "GradDiff", "NPO", "SimNPO", "UNDIAL")]  # fmt: skip
    for metric, words in (("forget_probability", "probability of what is to be forgotten"),
                          ("model_utility_geometric", "model utility")):  # fmt: skip
        lines = {row["method"]: row["curves"][metric] for row in shown}
        chart = curves(lines, title=words, x_label="epoch", y_label=words, as_percent=False)
        (IMAGES / f"unlearning_{metric}.svg").write_text(standalone(chart), "utf-8")


def report(cache: Path) -> None:
    """Write results, table and pictures."""
    found = collect(cache)
    write_json(RESULT, found)
    TABLE.write_text(markdown(found) + "\n", "utf-8")
    if found["families"]:
        pictures(found)
    print(markdown(found))
