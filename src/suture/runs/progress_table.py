"""What a continual run came to: scores after every step, their means, and what was forgotten.

Forgetting of a category, for a metric that should be high (Chaudhry et al., ECCV 2018): the best
score at any step since the category's own, less the score after the last step. For one that should
be low the signs turn. 0 or below: nothing was forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suture.ledger import Measurement

Scores = Mapping[str, Any]  # metrics, categories, better: of one model


def category_scores(
    label: str, measured: Measurement, items: Sequence[Any], categories: Sequence[str]
) -> dict[str, dict[str, float]]:
    """`label.metric` → category → mean, where items say which of `categories` they belong to."""
    kind = {item.id: getattr(item, "category", None) for item in items}
    found: dict[str, dict[str, float]] = {}
    for metric in measured.better:
        sums: dict[str, list[float]] = {}
        for row in measured.rows:
            category = kind.get(row.item)
            if category in categories and metric in row.scores:
                sums.setdefault(str(category), []).append(row.scores[metric])
        if sums:
            found[f"{label}.{metric}"] = {c: fmean(sums[c]) for c in categories if c in sums}
    return found


def forgetting(steps: Sequence[Scores], metric: str, categories: Sequence[str]) -> dict[str, float]:
    """Of every category but the last, by name; only those that `metric` is measured on."""
    sign = 1.0 if steps[0]["better"][metric] == "higher" else -1.0
    lost = {}
    for number, category in enumerate(categories[:-1]):
        scores = [
            sign * step["categories"][metric][category]
            for step in steps[number:]
            if category in step["categories"].get(metric, {})
        ]
        if len(scores) > 1:
            lost[category] = max(scores[:-1]) - scores[-1]
    return lost


def facts_of(
    name: str,
    categories: Sequence[str],
    base: Scores,
    approaches: Mapping[str, Sequence[Scores]],
) -> dict[str, Any]:
    """Everything as one JSON object."""
    found: dict[str, Any] = {}
    for approach, steps in approaches.items():
        metrics = list(base["metrics"])
        forgotten = {
            metric: lost
            for metric in base["categories"]
            if (lost := forgetting(steps, metric, categories))
        }
        found[approach] = {
            "steps": [
                {
                    "category": category,
                    "changed": s["changed"],
                    "metrics": s["metrics"],
                    "categories": s["categories"],
                    "main": s.get("main", {}),
                }
                for category, s in zip(categories, steps, strict=True)
            ],
            "mean": {m: fmean(step["metrics"][m] for step in steps) for m in metrics},
            "last": {m: steps[-1]["metrics"][m] for m in metrics},
            "forgetting": forgotten,
            "mean_forgetting": {m: fmean(lost.values()) for m, lost in forgotten.items()},
        }
    return {
        "name": name,
        "categories": list(categories),
        "better": dict(base["better"]),
        "base": {key: base.get(key, {}) for key in ("metrics", "categories", "main")},
        "approaches": found,
    }


def markdown(facts: Mapping[str, Any]) -> str:
    """Two tables: every step, and means with forgetting."""
    metrics = list(facts["base"]["metrics"])
    lines = [f"# {facts['name']}", "", "| approach | after | " + " | ".join(metrics) + " |"]
    lines.append("|---" * (len(metrics) + 2) + "|")

    def row(*cells: str, values: Mapping[str, float]) -> str:
        shown = (f"{values[m]:.3f}" if m in values else "–" for m in metrics)
        return "| " + " | ".join([*cells, *shown]) + " |"

    lines.append(row("before", "–", values=facts["base"]["metrics"]))
    for name, found in facts["approaches"].items():
        for number, step in enumerate(found["steps"], 1):
            note = "" if step["changed"] else " (nothing changed)"
            lines.append(row(name, f"{number} {step['category']}{note}", values=step["metrics"]))
        lines.append(row(name, "mean", values=found["mean"]))
    graded = [m for m in metrics if m in facts["base"]["categories"]]
    if graded:
        lines += ["", "Forgetting of earlier categories (best since its step, less the last):", ""]
        lines += ["| approach | " + " | ".join(graded) + " |", "|---" * (len(graded) + 1) + "|"]
        for name, found in facts["approaches"].items():
            lost = found["mean_forgetting"]
            cells = [f"{lost[m]:.3f}" if m in lost else "–" for m in graded]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    lines += [line for note in facts.get("notes", ()) for line in ("", note)]
    return "\n".join(lines) + "\n"


def main_rows(facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table for a terminal: the first metric of each suite, with intervals."""
    metrics = facts["base"]["main"]

    def shown(main: Mapping[str, Any]) -> list[str]:
        cells = []
        for metric in metrics:
            ends = main[metric]["ci95"]
            around = "" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"
            cells.append(f"{main[metric]['value']:.3f}{around}")
        return cells

    head = ["approach", "after", *(f"{name}, {about['n']}" for name, about in metrics.items())]
    rows = [["before", "", *shown(metrics)]]
    for name, found in facts["approaches"].items():
        for number, step in enumerate(found["steps"], 1):
            note = "" if step["changed"] else " (nothing changed)"
            rows.append([name, f"{number} {step['category']}{note}", *shown(step["main"])])
    return head, rows
