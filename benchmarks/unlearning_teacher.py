"""Where RKLD's student stands on the way to its teacher: longer trainings, other strengths.

    python benchmarks/unlearning_teacher.py --family lab/seed-0 --cache lab/unlearning [--only N]
    python benchmarks/unlearning_teacher.py --cache lab/unlearning --report

The teacher of strength α answers by itself as `who's Harry Potter` at the same α, so its numbers
are the end that the student trains towards. Asked on the tuning side alone, whose people are not
those of the table: nothing here chooses a setting of it. Resumable.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unlearning_lab import Bench
from unlearning_points import AUGMENT_RATE, FIXED, Point
from unlearning_report import landmark, trajectory, value

from suture.checkpoint import write_json
from suture.lab.family import open_family
from suture.versions import versions

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "unlearning_teacher.json"
TABLE = ROOT / "docs" / "generated" / "unlearning_teacher.md"
COLUMNS = {
    "forget_ks": "KS distance D ↓",
    "forget_probability": "forget probability ↓",
    "model_utility_geometric": "utility ↑",
    "retain_probability": "retain probability ↑",
}
CHOSEN = 5e-4  # RKLD's learning rate in the table
SETTINGS = (  # α, epochs, learning rate
    (8.0, 30, CHOSEN),
    (8.0, 60, CHOSEN),
    (8.0, 30, 2.5e-4),
    (8.0, 30, 1e-3),
    (4.0, 30, CHOSEN),
    (12.0, 30, CHOSEN),
)


def point(alpha: float, epochs: int, rate: float) -> Point:
    objective = {"name": "rkld", "augment_rate": AUGMENT_RATE, "alpha": alpha}
    return Point(f"RKLD a{alpha:g} e{epochs}", f"{rate:g}", objective, rate=rate, epochs=epochs)


def rows(cache: Path) -> list[dict[str, Any]]:
    """A student each, the one of the table first, with its teacher's numbers beside it."""
    home = cache / "tuning"
    found = []
    for alpha, epochs, rate in ((8.0, FIXED, CHOSEN), *SETTINGS):
        usual = (alpha, epochs) == (8.0, FIXED)
        student = Point("RKLD", f"{rate:g}") if usual else point(alpha, epochs, rate)
        made = trajectory(home, student)
        teacher = trajectory(home, Point("WHP teacher", f"{alpha:g}"))
        if made is None or teacher is None:
            continue
        found.append(
            {
                "alpha": alpha, "epochs": epochs, "rate": rate,
                "student": {name: value(made, epochs, name) for name in COLUMNS},
                "teacher": {name: value(teacher, FIXED, name) for name in COLUMNS},
            }
        )  # fmt: skip
    return found


def report(cache: Path) -> list[str]:
    """Write results and table."""
    found = rows(cache)
    marks = {
        name: {column: landmark(cache / "tuning", name).get(column) for column in COLUMNS}
        for name in ("before", "oracle")
    }
    write_json(RESULT, {"rows": found, "landmarks": marks, "versions": versions()})
    lines = [
        "One family, one seed, 100 rows to forget and 40 to keep; no intervals.",
        "",
        "| α | epochs | learning rate | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for row in found:
        cells = [f"{row['student'][c]:.3f} ({row['teacher'][c]:.3f})" for c in COLUMNS]
        lines.append(
            f"| {row['alpha']:g} | {row['epochs']} | {row['rate']:g} | {' | '.join(cells)} |"
        )
    before = [f"{marks['before'][c]:.3f}" for c in COLUMNS]
    lines += [f"| *before* | | | {' | '.join(before)} |", "", "In brackets: the teacher itself."]
    TABLE.write_text("\n".join(lines) + "\n", "utf-8")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of settings, from 0")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.family is not None:
        bench = Bench(open_family(args.family), args.cache, tuning=True)
        for number, setting in enumerate(SETTINGS):
            if args.only is None or number in args.only:
                bench.train(point(*setting))
    if args.report:
        print("\n".join(report(args.cache)))


if __name__ == "__main__":
    main()
