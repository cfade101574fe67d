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
from suture.runs.aligned import Aligned, Arm, Point, compare
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
    "ffn_share_mi_corrected": "FFN's share, MI",
}


def arms_of(wanted: Mapping[Run, Sequence[int]]) -> list[Arm]:
    """The measured checkpoints of every run."""
    found = []
    for run, steps in wanted.items():
        dev = dict(run.dev())
        points = []
        for step in steps:
            values: dict[str, float] = {}
            for file in sorted(run.measured(step, "base").parent.glob(f"{step:06d}-*.json")):
                metrics = json.loads(file.read_text(encoding="utf-8"))["metrics"]
                task = file.stem.partition("transfer-")[2]
                if task:
                    metrics = {f"{task}_accuracy": metrics["transfer_accuracy"]}
                values |= metrics
            tasks = [value for name, value in values.items() if name.endswith("_accuracy")]
            if tasks:
                values["transfer_accuracy"] = sum(tasks) / len(tasks)
            if values:
                points.append(Point(step, dev[step], values))
        if points:
            found.append(Arm(run.arm, run.seed, tuple(points)))
    return found


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
        text += table(found)
    write_json(ROOT / "benchmarks" / "results" / f"architectures_{name}.json", facts)
    write_atomic(ROOT / "docs" / "generated" / f"architectures_{name}.md", "\n".join(text).encode())
    draw(runs, name)
    return text


def table(found: Aligned) -> list[str]:
    """Levels per architecture, each with its difference to the baseline."""
    places = ", ".join(
        f"{value:.3f}" if found.how == "loss" else f"{value:.0f}" for value in found.places.values()
    )
    seeds = len(found.places)
    head = "equal dev loss" if found.how == "loss" else "equal steps"
    metrics = [name for name in SHOWN if any(one.metric == name for one in found.levels)]
    lines = [
        f"At {head} ({places} by seed, {seeds} seeds); in brackets the difference to "
        f"{found.baseline} with its 95% interval over seeds, bold where it leaves out 0:",
        "",
        "| architecture | " + " | ".join(SHOWN[name] for name in metrics) + " |",
        "|---|" + "---|" * len(metrics),
    ]
    for arm in dict.fromkeys(one.arm for one in found.levels):
        cells = []
        for name in metrics:
            here = [one for one in found.levels if (one.arm, one.metric) == (arm, name)]
            gap = [one for one in found.gaps if (one.arm, one.metric) == (arm, name)]
            cell = f"{here[0].mean:.3f}" if here else "–"
            if gap and gap[0].ends is not None:
                low, high = gap[0].ends
                told = f"{gap[0].mean:+.3f}, {low:+.3f} to {high:+.3f}"
                cell += f" (**{told}**)" if gap[0].settled else f" ({told})"
            elif gap:
                cell += f" ({gap[0].mean:+.3f})"
            cells.append(cell.replace("-", "−"))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return [*lines, ""]


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
