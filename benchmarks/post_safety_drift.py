"""Why RESTA stays ahead of IRR on the lab's families after benign drift: what each adds of v.

    python benchmarks/post_safety_drift.py --families lab/seed-0 lab/seed-1 --data DATA_DIR \\
        --cache lab/post-safety

RESTA adds the safety vector v = aligned − unaligned. IRR takes away what fine-tuning did against v
and keeps what it did along v, so the model it leaves lies beyond `aligned` on that line. How far,

    ⟨θ̂ − θ_A, v⟩ / ⟨v, v⟩ over the matrices of the blocks,

stands here beside what a model refuses, with settings that the table has not: larger γ, entries
removed at random, and no recalibration. Nothing is chosen by these rows. Writes
benchmarks/results/post_safety_drift.json and the page of that name in docs/generated; models are
measured by `post_safety.py`'s protocol, into its cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from irr_lab import ROOT
from post_safety import measured
from post_safety_measure import HARMFUL, OVER, TASK, Protocol
from post_safety_points import Point, Workshop

from suture.checkpoint import write_json
from suture.lab.family import open_family
from suture.ledger.student import mean_interval
from suture.methods.irr import IRR
from suture.methods.resta import RESTA

RESTED, REMOVED = (1.0, 2.0, 3.0, 4.0), (0.6, 1.0)
METRICS = {HARMFUL: "harmful refused", OVER: "XSTest safe refused", TASK: "task"}


def looked_at() -> list[Point]:
    """The models of the page, those of the table among them."""
    found = [Point("drift", "aligned"), Point("drift", "SFT")]
    found += [Point("drift", "RESTA", f"γ {g}", RESTA(gamma=g)) for g in RESTED]
    found += [Point("drift", "IRR", f"removed {r}", IRR(removed=r)) for r in REMOVED]
    found += [
        Point("drift", "IRR, no recalibration", f"removed {r}", IRR(removed=r, solver="none"))
        for r in REMOVED
    ]
    found += [
        Point("drift", "random removal", f"removed {r}", IRR(removed=r, variant="random"))
        for r in (0.3, 0.5)
    ]
    return found


def along(shop: Workshop, source: Any) -> float:
    """⟨θ̂ − θ_A, v⟩ / ⟨v, v⟩ over the matrices that the methods edit."""
    edited = [name for name in shop.aligned.tensors if ".layers." in name and "proj" in name]
    inner = whole = 0.0
    for name in edited:
        aligned = shop.aligned.read(name).double()
        v = aligned - shop.unaligned.read(name).double()
        inner += float(((source.read(name).double() - aligned) * v).sum())
        whole += float((v * v).sum())
    return inner / whole


def rows_of(shop: Workshop, home: Path, protocol: Protocol) -> list[dict[str, Any]]:
    found = []
    for point in looked_at():
        source = shop.model(point)
        scores = measured(home, protocol, source, shop)["scores"]["test"]
        row = {"model": f"{point.method} {point.label}".strip(), "along": along(shop, source)}
        row |= {metric: float(np.mean(scores[metric])) for metric in METRICS}
        found.append(row)
        print(f"seed {shop.family.seed}: {row}", flush=True)
    return found


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the families with Student's 95% interval."""
    lines = [
        f"Test split, {len(found)} families (seeds {', '.join(found)}), 95% intervals over seeds.",
        "",
        "| model | beyond `aligned` along v | " + " | ".join(METRICS.values()) + " |",
        "|---|---|" + "---|" * len(METRICS),
    ]
    for number, first in enumerate(next(iter(found.values()))):
        rows = [rows[number] for rows in found.values()]
        cells = [_cell([row["along"] for row in rows], 2)]
        cells += [_cell([100 * row[metric] for row in rows], 1) for metric in METRICS]
        lines.append(f"| {first['model']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    low, high = mean_interval(values)
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--families", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    protocol = Protocol(args.data)
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in args.families:
        family = open_family(folder)
        home = args.cache / f"seed-{family.seed}"
        found[str(family.seed)] = rows_of(Workshop(family, home), home, protocol)
    write_json(ROOT / "benchmarks/results/post_safety_drift.json", found)
    text = page(found)
    (ROOT / "docs/generated/post_safety_drift.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
