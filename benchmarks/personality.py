"""What a CPU reaches on MBTIBench without a language model, and its released stress logs again.

    python benchmarks/personality.py --data ../shared/data [--converged LABELS.jsonl] [--seeds 5]

Constant answers and words alone (`suture.suites.mbti.baselines`), soft and hard, on the 286 people:
words are fitted on four fifths and asked about the rest, once per seed. `--converged`: soft labels
of `suture labels estimate --mode converged`, measured against besides. The logs are read as the
paper's code reads them; beside Welch's test over rounds stands the difference with the posts drawn
anew. Results: benchmarks/results/personality.json and docs/generated/personality.md. No text of
any person is written, only numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from suture.ledger import Measurement, Role, compare
from suture.report.figures import fixed
from suture.report.seeds import Table, tabulate
from suture.report.tables import as_markdown
from suture.suites import measure, measure_log
from suture.suites.answerers import Baseline

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "personality.json"
PAGE = ROOT / "docs" / "generated" / "personality.md"
CONDITIONS = ("none", "hard", "soft")
SHOWN = {"soft": ["personality.*.s_rmse", "personality.*.s_mae"]}
SHOWN["hard"] = ["personality.*.accuracy", "personality.*.macro_f1"]


def table(file: Path, form: str, seeds: int, labels: Path | None) -> Table:
    """The constant answer and words alone, against these labels."""
    options = {"form": form, **({} if labels is None else {"labels": str(labels)})}

    def run(name: str, seed: int) -> Measurement:
        baseline = Baseline(name, {"seed": seed})
        return measure("personality", baseline, data=file, options=options)

    words = [run("tf-idf", seed) for seed in range(seeds)]
    return tabulate({"words alone": words}, SHOWN[form])


def stress(folder: Path) -> dict[str, Any]:
    """Each condition as published, and against none with the posts drawn anew."""
    found: dict[str, Any] = {}
    logs = {name: folder / f"{name}.jsonl.gz" for name in CONDITIONS}
    runs = {
        name: measure_log("stress", logs[name], options={"parser": "released"}) for name in logs
    }
    for name, run in runs.items():
        shown = ("accuracy", "accuracy_sd", "macro_f1")
        found[name] = {key: run.metrics[key] for key in shown}
        for other in CONDITIONS[: CONDITIONS.index(name)]:
            options = {"parser": "released", "reference": str(logs[other])}
            p_value = measure_log("stress", logs[name], options=options).metrics["accuracy_p"]
            role = Role.target("stress.accuracy:higher")
            row = compare([runs[other]], [run], [], [role]).rows[0]
            found[name][f"to {other}"] = {
                "welch_p": p_value,
                "difference": row.difference,
                "ci95": list(row.ci95),
                "verdict": row.verdict,
            }
    return found


def stress_page(found: dict[str, Any]) -> str:
    """The conditions as a Markdown table."""
    head = "| condition | accuracy | sd over rounds | macro-F1 | to | Welch's p over rounds |"
    lines = [f"{head} difference in points, posts drawn anew | verdict |", "|---" * 8 + "|"]
    for name, one in found.items():
        level = [fixed(100 * one[key], 2) for key in ("accuracy", "accuracy_sd", "macro_f1")]
        others = [key for key in one if key.startswith("to ")]
        for place, key in enumerate(others or [""]):
            about = one.get(key)
            cells = [name, *level] if place == 0 else [""] * 4
            if about is None:
                cells += [""] * 4
            else:
                ends = [fixed(100 * end, 1, sign=True) for end in about["ci95"]]
                moved = fixed(100 * about["difference"], 1, sign=True)
                cells += [key.removeprefix("to "), f"{about['welch_p']:.3f}"]
                cells += [f"{moved} ({ends[0]} to {ends[1]})", about["verdict"]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--converged", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args(argv)
    people = asked.data / "mbtibench" / "mbtibench.jsonl.gz"
    tables = {
        "Soft answers, released labels": table(people, "soft", asked.seeds, None),
        "Hard answers": table(people, "hard", asked.seeds, None),
    }
    if asked.converged is not None:
        name = "Soft answers, converged labels"
        tables[name] = table(people, "soft", asked.seeds, asked.converged)
    logs = stress(asked.data / "mbtibench_dreaddit_logs")
    made = date.today().isoformat()
    content = {"made": made, "tables": {k: v.as_dict() for k, v in tables.items()}, "stress": logs}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    parts = []
    for name, one in tables.items():
        hard = name == "Hard answers"
        shown = as_markdown(one, digits=1 if hard else 2, percent=hard)
        parts.append(f"**{name}**\n\n{shown}")
    page = [*parts, f"**The released stress logs**\n\n{stress_page(logs)}\n", f"Made {made}.\n"]
    PAGE.write_text("\n".join(page), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
