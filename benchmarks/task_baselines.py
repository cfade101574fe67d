"""What a CPU reaches on every text task without a language model.

    python benchmarks/task_baselines.py --data ../shared/data [--task NAME]... [--seeds 3]

Every shipped task whose training and test split lie in the folder, and each of the baselines:
majority, lexicon, tf-idf and embedding (`suture.suites.tasks.learning`). Each learns from the whole
training split and answers the whole test split; the intervals are the ledger's, 95%, with tweets
and conversations drawn whole. The seeds tell another thing, how much hangs on the training set: per
seed the headline once more, after learning from a bootstrap sample of the training clusters.

Results are kept after every baseline, so the same command goes on: they are in
benchmarks/results/task_baselines.json and docs/generated/task_baselines.md. No text of any data set
is written, only numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from suture.data.tasks.datasets import dataset, read_split
from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.ledger import ReplyRow
from suture.ledger.statistics import Statistic
from suture.rng import generator
from suture.suites import load_suite
from suture.suites.tasks.learning import BASELINES, learn
from suture.suites.tasks.metrics import metric
from suture.suites.tasks.rendering import canonical
from suture.suites.tasks.spec import TaskSpec, load_task, shipped

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "task_baselines.json"
PAGE = ROOT / "docs" / "generated" / "task_baselines.md"


class Bench:
    """One task: its training records, its items, and what a list of answers is worth."""

    def __init__(self, spec: TaskSpec, data: Path) -> None:
        self.spec = spec
        self.suite: Any = load_suite(spec.suite, {"task": [spec.name]})
        self.train = read_split(spec.dataset or "", data, "train")
        self.items = self.suite.read([data], None)

    def rows(self, baseline: str, train: Sequence[Record], seed: int) -> list[Any]:
        """Scored rows of a baseline that learned from `train`."""
        asked = [item.record for item in self.items]
        said = learn(baseline, self.spec, train, asked, seed=seed)
        replies = [
            ReplyRow(item.id, item.prompt, canonical(self.spec.answer, value), True, 0)
            for item, value in zip(self.items, said, strict=True)
        ]
        rows: list[Any] = self.suite.score(self.items, replies)
        return rows

    def run(self, baseline: str, seeds: int) -> dict[str, Any]:
        """The entry of the results."""
        began = time.perf_counter()
        rows = self.rows(baseline, self.train, 0)
        seconds = time.perf_counter() - began
        found = self.suite.derived(rows)
        metrics = {
            one.name: {key: found[f"{self.spec.name}.{one.name}"].get(key) for key in KEPT}
            for one in self.spec.metrics
        }
        return {
            "task": self.spec.name,
            "suite": self.spec.suite,
            "aspect": self.spec.aspect,
            "held_out": self.spec.held_out,
            "dataset": self.spec.dataset,
            "baseline": baseline,
            "train": len(self.train),
            "test": len(self.items),
            "clusters": len({row.cluster or row.item for row in rows}),
            "headline": self.spec.headline,
            "metrics": metrics,
            "seeds": [self.resampled(baseline, seed) for seed in range(1, seeds + 1)],
            "seconds": round(seconds, 2),
            "date": str(date.today()),
        }

    def resampled(self, baseline: str, seed: int) -> float:
        """The headline after learning from a bootstrap sample of the training clusters."""
        by_cluster: dict[str, list[Record]] = {}
        for record in self.train:
            by_cluster.setdefault(record.cluster or record.id, []).append(record)
        clusters = list(by_cluster.values())
        drawn = generator(seed, "training clusters").integers(len(clusters), size=len(clusters))
        rows = self.rows(baseline, [r for k in drawn for r in clusters[int(k)]], seed)
        asked = next(one for one in self.spec.metrics if one.name == self.spec.headline)
        about = metric(self.spec, asked)
        columns = tuple(f"{self.spec.name}.{name}" for name in about.columns)
        found = Statistic(about.kind, columns, about.options)
        return found.of([row for row in rows if found.takes(row)])


KEPT = ("value", "interval", "direction", "n")


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the documentation: a row per task, a column per baseline."""
    tasks = sorted({row["task"] for row in rows}, key=lambda name: _place(rows, name))
    lines = [
        f"| task | headline | test | {' | '.join(BASELINES)} |",
        f"|---|---|---|{'---|' * len(BASELINES)}",
    ]
    for task in tasks:
        own = {row["baseline"]: row for row in rows if row["task"] == task}
        one = next(iter(own.values()))
        cells = [_cell(own.get(name)) for name in BASELINES]
        lines.append(f"| {task} | {one['headline']} | {one['test']:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _place(rows: Sequence[dict[str, Any]], task: str) -> tuple[str, str, str]:
    row = next(row for row in rows if row["task"] == task)
    return row["suite"], row["aspect"] or "", task


def _cell(row: dict[str, Any] | None) -> str:
    """value [low, high] ± sd over seeds, in hundredths where it is a share."""
    if row is None:
        return "–"
    about = row["metrics"][row["headline"]]
    low, high = about["interval"] or (None, None)
    text = f"{100 * about['value']:.1f}"
    text += f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None else ""
    if len(row["seeds"]) > 1:
        text += f" ± {100 * statistics.stdev(row['seeds']):.1f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--task", action="append", help="only these")
    parser.add_argument("--baseline", action="append", choices=BASELINES, help="only these")
    parser.add_argument("--seeds", type=int, default=3, help="resampled trainings of each")
    parser.add_argument("--again", action="store_true", help="also what the results have")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if RESULTS.is_file():
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    for name in args.task or shipped():
        spec = load_task(name)
        there = dataset(spec.dataset or "").on_disk(args.data)
        if not {"train", "test"} <= there.keys():
            continue
        bench = None
        for baseline in args.baseline or BASELINES:
            kept = [row for row in rows if (row["task"], row["baseline"]) != (name, baseline)]
            if len(kept) < len(rows) and not args.again:
                continue
            bench = bench or Bench(spec, args.data)
            try:
                row = bench.run(baseline, args.seeds)
            except SutureError as error:
                if error.code != "E583":  # this baseline says nothing on such answers
                    raise
                continue
            rows = [*kept, row]
            rows.sort(key=lambda one: (one["task"], BASELINES.index(one["baseline"])))
            RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
            PAGE.write_text(page(rows), encoding="utf-8")
            value = row["metrics"][row["headline"]]["value"]
            print(f"{name} {baseline} {value:.4f} {row['seconds']} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
