"""Which estimator finds the truth: crowds whose true poles are known, drawn anew for every seed.

    python benchmarks/labels_truth.py [--seeds 10]

Two poles with two grades; annotator k is right with a probability of its own, and sure of itself
more often when right, so that grades tell something that poles do not. Suture's two procedures see
the grades; majority vote, Dawid-Skene, GLAD and MACE (crowd-kit, their defaults) see the poles.
Told are accuracy of the hard label and Brier score of the posterior (0 to 2, lower is better), as
means over seeds with 95% intervals. Results: benchmarks/results/labels_truth.json and
docs/generated/labels_truth.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from suture.labels import Scale, Votes, compare_estimators
from suture.labels.peers import OURS, PEERS

ROOT = Path(__file__).parents[1]
FIRST = 1_000  # seeds from here on; smaller ones served to choose the smoothing
T = {10: 2.262}  # Student's t at 97.5%, for the number of seeds reported


@dataclass(frozen=True)
class Crowd:
    """`skill`: range of the probability to be right; `guessing`: annotators who only guess;
    `missing`: share of votes left out; `second`: share of items of the second pole."""

    name: str
    items: int
    annotators: int
    skill: tuple[float, float] = (0.6, 0.9)
    guessing: int = 0
    missing: float = 0.0
    second: float = 0.45


CROWDS = (
    Crowd("three annotators, as in MBTIBench", 286, 3),
    Crowd("five, two of them guess", 300, 5, guessing=2),
    Crowd("ten, half of the votes missing", 300, 10, missing=0.5),
    Crowd("three, one item in ten of the second pole", 286, 3, second=0.1),
)


def draw(crowd: Crowd, seed: int) -> tuple[Votes, list[dict[str, str]]]:
    """Votes and the true pole of each item."""
    import numpy as np

    rng = np.random.default_rng([seed, CROWDS.index(crowd)])
    shape = (crowd.items, crowd.annotators)
    truth = (rng.random(crowd.items) < crowd.second).astype(int)
    skill = rng.uniform(*crowd.skill, crowd.annotators)
    skill[: crowd.guessing] = 0.5
    right = rng.random(shape) < skill
    sure = rng.random(shape) < np.where(right, 0.45, 0.2)
    sure[:, : crowd.guessing] = rng.random((crowd.items, crowd.guessing)) < 0.45
    pole = np.where(right, truth[:, None], 1 - truth[:, None])
    cells = np.where(pole == 0, np.where(sure, 0, 1), np.where(sure, 3, 2))
    gone = rng.random(shape) < crowd.missing
    gone[np.arange(crowd.items), rng.integers(0, crowd.annotators, crowd.items)] = False
    scale = Scale.named("A/B")
    assert scale is not None
    return Votes.of_table(np.where(gone, -1, cells), scale), [{"A/B": "AB"[t]} for t in truth]


def measure(seeds: int) -> list[dict[str, Any]]:
    rows = []
    for crowd in CROWDS:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in (*OURS, *PEERS)}
        for seed in range(seeds):
            votes, truth = draw(crowd, FIRST + seed)
            for row in compare_estimators(votes, "A/B", truth=truth):
                found[row["estimator"]].append(row)
            print(crowd.name, seed, file=sys.stderr, flush=True)
        for name, runs in found.items():
            rows.append(
                {
                    "crowd": asdict(crowd),
                    "estimator": name,
                    "seeds": seeds,
                    **{key: with_interval([r[key] for r in runs]) for key in ("accuracy", "brier")},
                    "runs": [{key: r[key] for key in ("accuracy", "brier")} for r in runs],
                    "date": date.today().isoformat(),
                    "crowd-kit": version("crowd-kit"),
                }
            )
    return rows


def with_interval(values: list[float]) -> dict[str, float]:
    half = T.get(len(values), 1.96) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean(values), "low": mean(values) - half, "high": mean(values) + half}


def page(rows: list[dict[str, Any]]) -> str:
    names = (*OURS, *PEERS)
    head = " | ".join(f"`{name}`" if name in OURS else name for name in names)
    lines = [f"| crowd | | {head} |", "|---|---|" + "---|" * len(names)]
    for crowd in CROWDS:
        here = {row["estimator"]: row for row in rows if row["crowd"]["name"] == crowd.name}
        for key, word, unit in (("accuracy", "accuracy, %", 100), ("brier", "Brier", 1)):
            cells = []
            for name in names:
                value = here[name][key]
                digits = 1 if unit == 100 else 3
                half = (value["high"] - value["low"]) / 2
                cells.append(f"{value['mean'] * unit:.{digits}f} ± {half * unit:.{digits}f}")
            lines.append(f"| {crowd.name} | {word} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{rows[0]['seeds']} seeds, 95% intervals."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--dry", action="store_true", help="print, and write no results")
    args = parser.parse_args()
    rows = measure(args.seeds)
    print(page(rows))
    if not args.dry:
        results = ROOT / "benchmarks/results/labels_truth.json"
        results.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
        (ROOT / "docs/generated/labels_truth.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
