"""The gates of lab families as a table.

    python benchmarks/lab_gates.py lab/seed-0 lab/seed-1 lab/seed-2

Reads each family's gates.json and memory-gates.json (`suture lab build`, `suture lab gates`) and
writes benchmarks/results/lab_gates.json and docs/generated/lab_gates.md.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(folders: list[str]) -> None:
    found, memory = (outcomes(folders, name) for name in ("gates.json", "memory-gates.json"))
    facts = {
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        "families": found,
        "memory": memory,
    }
    out = ROOT / "benchmarks/results/lab_gates.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "docs/generated/lab_gates.md"
    page.parent.mkdir(exist_ok=True)
    text = "\n".join([*table(found), "", *table(memory)]) + "\n"
    page.write_text(text, encoding="utf-8")
    print(text)


def outcomes(folders: list[str], name: str) -> list[dict]:  # type: ignore[type-arg]
    """One outcome a family, with the gates that all families have."""
    found = [json.loads((Path(f) / name).read_text(encoding="utf-8")) for f in folders]
    if len({family["gates"] for family in found}) != 1:
        raise SystemExit(f"these families were held against different gates: {name}")
    common = set.intersection(*({row["gate"] for row in family["rows"]} for family in found))
    for family in found:
        family["rows"] = [row for row in family["rows"] if row["gate"] in common]
    return found


def table(found: list[dict]) -> list[str]:  # type: ignore[type-arg]
    """One line per gate, one column per seed; a missed one is bold."""
    seeds = " | ".join(f"seed {family['seed']}" for family in found)
    lines = [f"| gate | bound | {seeds} |", "|---|---|" + "---|" * len(found)]
    for rows in zip(*(family["rows"] for family in found), strict=True):
        sign = "≥" if rows[0]["at_least"] else "≤"
        cells = " | ".join(
            f"{row['found']:.3f}" if row["passed"] else f"**{row['found']:.3f} missed**"
            for row in rows
        )
        lines.append(
            f"| {rows[0]['gate']} (n = {rows[0]['n']}) | {sign} {rows[0]['bound']:g} | {cells} |"
        )
    passed = sum(family["passed"] for family in found)
    return [
        *lines,
        "",
        f"{passed} of {len(found)} families pass. Gates hash {found[0]['gates'][:16]}.",
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
