"""The numbers of a measurement: of each task, of its variants, of each aspect.

With several paraphrases or orders of the labels, TASK.METRIC is over all answers of all variants;
TASK.METRIC.p0o1 is that of one variant alone, `.mean`, `.sd` and `.worst` are over these.
ASPECT.mean averages the headlines of at least two of its tasks, where higher is better; tasks held
out are averaged apart. Means are made anew in each bootstrap draw, so that they are paired as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from suture.ledger import Row, derive
from suture.suites.common import QUALITY
from suture.suites.tasks.metrics import READING, derived, metric, reported
from suture.suites.tasks.spec import TaskSpec

Derived = dict[str, dict[str, Any]]
_QUALITY_TOLD = {
    "ends_properly": "share of replies that ended by themselves and say something",
    "distinct_2": "share of different word pairs in a reply",
    "repetition": "share of a reply's words inside a loop",
    "logprob_before": "mean log-probability per token of a reply under the before model",
}


def summarise(
    specs: Iterable[TaskSpec],
    rows: Sequence[Row],
    *,
    told: str,
    variants: dict[str, list[tuple[int, int]]],
) -> Derived:
    """All numbers behind which these rows stand. `told`: how answers were read; `variants`: of each
    task, (paraphrase, order) in turn."""
    found: Derived = {}
    specs = list(specs)
    for spec in specs:
        own = [row for row in rows if f"{spec.name}.unended" in row.scores]
        if not own:
            continue
        numbers = derived(spec, own, told=told)
        found |= {f"{spec.name}.{name}": about for name, about in numbers.items()}
        if len(variants[spec.name]) > 1:
            found |= _sensitivity(spec, own, variants[spec.name], told)
        for name, (better, definition) in READING.items():
            column = f"{spec.name}.{name}"
            found[column] = derive(own, "mean", [column], definition=definition, better=better)
    found |= _aspects(specs, rows, found)
    for name, better in QUALITY.items():
        if any(name in row.scores for row in rows):
            said = _QUALITY_TOLD[name]
            found[name] = derive(rows, "mean", [name], definition=said, better=better)
    return found


def variant(paraphrase: int, order: int) -> str:
    """What a variant is called: p0o1."""
    return f"p{paraphrase}o{order}"


def _sensitivity(
    spec: TaskSpec, rows: Sequence[Row], variants: Sequence[tuple[int, int]], told: str
) -> Derived:
    """How far the numbers hang on the wording and on the order of the labels."""
    each: dict[str, Derived] = {}
    for paraphrase, order in variants:
        where = {f"{spec.name}.paraphrase": float(paraphrase), f"{spec.name}.order": float(order)}
        name = variant(paraphrase, order)
        each[name] = derived(spec, rows, told=f"{told}; variant {name} alone", where=where)
    found: Derived = {}
    for asked in reported(spec):
        better, name = metric(spec, asked).better, f"{spec.name}.{asked.name}"
        alone = {key: about[asked.name] for key, about in each.items() if asked.name in about}
        if len(alone) < 2:
            continue
        values = [about["value"] for about in alone.values()]
        count = f"{len(values)} variants"
        found[f"{name}.mean"] = derive(
            rows,
            "mean_of",
            [],
            definition=f"mean of the {count}' own numbers",
            better=better,
            parts=[about["statistic"] for about in alone.values()],
        )
        worst = min(values) if better == "higher" else max(values)
        found[f"{name}.sd"] = _about(
            statistics.stdev(values), f"standard deviation over {count}", "lower", len(values)
        )
        found[f"{name}.worst"] = _about(worst, f"worst of {count}", better, len(values))
        found |= {f"{name}.{key}": about for key, about in alone.items()}
    return found


def _aspects(specs: Sequence[TaskSpec], rows: Sequence[Row], found: Derived) -> Derived:
    means: Derived = {}
    for held_out, ending in ((False, "mean"), (True, "held_out_mean")):
        groups: dict[str, list[str]] = {}
        for spec in specs:
            headline = f"{spec.name}.{spec.headline}"
            known = found.get(headline, {}).get("direction") == "higher"
            if known and spec.aspect and spec.held_out == held_out:
                groups.setdefault(spec.aspect, []).append(headline)
        for aspect, headlines in groups.items():
            if len(headlines) > 1:
                means[f"{aspect}.{ending}"] = derive(
                    rows,
                    "mean_of",
                    [],
                    definition=f"mean of {', '.join(headlines)}",
                    better="higher",
                    parts=[found[headline]["statistic"] for headline in headlines],
                )
    return means


def _about(value: float, definition: str, direction: str, n: int) -> dict[str, Any]:
    return {"value": value, "definition": definition, "direction": direction, "n": n}
