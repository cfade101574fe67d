"""From the measurements of `architectures.py` to results, table and pictures.

Everything is compared twice: at the lowest dev loss that all runs of a seed reached, and after
their last step. Intervals are Student's over seeds, of the difference to the baseline within each
seed. A sign is told only where the interval leaves out 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.checkpoint import write_json
from suture.checkpoint.jsonfile import write_atomic
from suture.report.curves import curves
from suture.report.svg import standalone
from suture.runs.aligned import Arm, Point, combined, compare, table
from suture.training.record import Record
from suture.versions import versions

if TYPE_CHECKING:
    from architectures import Run

ROOT = Path(__file__).parent.parent
SHOWN = {
    "out_loss": "OOD loss ↓",
    "in_loss": "in-distribution loss ↓",
    "transfer_accuracy": "transfer ↑",
    "accuracy_norm": "few-shot ↑",
    "ffn_share_tp": "FFN's share, TP",
    "ffn_share_tp_held_out": "the same on other states",
    "ffn_share_mi_corrected": "FFN's share, MI",
}


def arms_of(wanted: Mapping[Run, Sequence[int]]) -> list[Arm]:
    """The measured checkpoints of every run."""
    found = {}
    for run, steps in wanted.items():
        for step in steps:
            files = sorted(run.measured(step, "base").parent.glob(f"{step:06d}-*.json"))
            if files:
                read = ((file, json.loads(file.read_text(encoding="utf-8"))) for file in files)
                found[run, step] = [
                    (file.stem.split("-")[-1], one["metrics"]) for file, one in read
                ]
    values = combined(found)
    arms = []
    for run, steps in wanted.items():
        dev = dict(run.dev())
        points = [Point(s, dev[s], values[run, s]) for s in steps if (run, s) in values]
        arms.append(Arm(run.arm, run.seed, tuple(points)))
    return arms


def report(
    runs: Sequence[Run], wanted: Mapping[Run, Sequence[int]], name: str, baseline: str
) -> list[str]:
    """Write result, table and curves under `name`; gives the table's lines."""
    arms = arms_of(wanted)
    facts: dict[str, Any] = {"name": name, "versions": versions(), "runs": []}
    for run in runs:
        if (run.steps / "report.json").is_file():
            one = json.loads((run.steps / "report.json").read_text(encoding="utf-8"))
            own = {key: one[key] for key in ("parameters", "steps", "dev")}
            facts["runs"].append({"arm": run.arm, "seed": run.seed, **own})
    text = []
    for how in ("loss", "steps"):
        found = compare(arms, how=how, baseline=baseline)  # type: ignore[arg-type]
        facts[how] = {
            "places": found.places,
            "levels": [{**vars(one), "mean": one.mean} for one in found.levels],
            "gaps": [vars(gap) for gap in found.gaps],
        }
        text += table(found, SHOWN)
    write_json(ROOT / "benchmarks" / "results" / f"architectures_{name}.json", facts)
    write_atomic(ROOT / "docs" / "generated" / f"architectures_{name}.md", "\n".join(text).encode())
    draw(runs, name)
    return text


def draw(runs: Sequence[Run], name: str) -> None:
    """Dev loss over steps, the mean over the seeds of each architecture."""
    by_arm: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for step, value in Record(run.steps / "record.jsonl").curve("dev"):
            by_arm.setdefault(run.arm, {}).setdefault(step, []).append(value)
    lines = {
        arm: [(step, sum(values) / len(values)) for step, values in points.items()]
        for arm, points in by_arm.items()
    }
    drawn = curves(
        lines, title="Dev loss of the architectures", x_label="step", y_label="dev loss in nats",
        as_percent=False,
    )  # fmt: skip
    if drawn:
        file = ROOT / "docs" / "img" / f"architectures_{name}.svg"
        write_atomic(file, standalone(drawn).encode())
