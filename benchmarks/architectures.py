"""Vanilla, FFN-Wider and CEA from nothing, and what they can do at equal pre-training; resumable.

    python benchmarks/architectures.py --data DATA --cache runs/base --train
    python benchmarks/architectures.py --data DATA --cache runs/base --measure
    python benchmarks/architectures.py --cache runs/base --report
    python benchmarks/architectures.py --data DATA --cache runs/base --train --measure --report \
        --kind encoder --arms vanilla moe-outer moe-tcd moe-random --baseline moe-outer --name tcd

`--train` makes every arm under every seed by `recipes/pretrain_KIND.yaml`; on a machine with two
cores `--lane 0/2` and `--lane 1/2` share the runs. `--measure` reads the checkpoints that a
comparison at equal dev loss and at equal steps needs, and no others. Each part skips what is there,
so the same command goes on after a kill. `architectures_report.py` makes the tables.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from architectures_report import report

from suture.checkpoint import write_json
from suture.lab.family import write_lines
from suture.lab.sources import goemotions, read_json, read_text
from suture.patch import open_model
from suture.progress import note
from suture.runs.aligned import bracketing
from suture.runs.pretraining import run_with_curves
from suture.suites import measure
from suture.training.pretrain import read_pretraining
from suture.training.record import Record

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ARMS = ("vanilla", "wide", "cea")
TEACHER = "vanilla"
READ = {"passages": 16, "length": 1500}  # of each domain: fiction has 19 that were held out
STATES = 15_000  # of the 64 passages' tokens
TRAINED_ON, MEASURED = 2000, 1000  # rows of a task
TASKS = ("sst2", "goemotions")
SHORT = 160  # characters of a question with its options


@dataclass(frozen=True)
class Taught:
    """An arm of the recipe with a teacher: its step (by default the last), and what is matched."""

    student: str = "moe-outer"
    teacher_step: int | None = None
    distil: dict[str, Any] = field(default_factory=dict)


# TCD, its controls and the ablation of its sites (specification of TCD, section 4)
TAUGHT = {
    "moe-tcd": Taught(),
    "moe-logits": Taught(distil={"match": "logits"}),
    "moe-hidden": Taught(distil={"match": "hidden"}),
    "moe-random": Taught(teacher_step=0),
    "moe-trunk": Taught(distil={"inner": 0, "attention": 0}),
    "moe-inner": Taught(distil={"trunk": 0, "attention": 0}),
    "moe-attention": Taught(distil={"trunk": 0, "inner": 0}),
    "vanilla-tcd": Taught("vanilla"),
    "cea-tcd": Taught("cea"),
}


@dataclass(frozen=True)
class Run:
    """One architecture under one seed."""

    arm: str
    seed: int
    home: Path

    @property
    def output(self) -> Path:
        return self.home / f"{self.arm}-{self.seed}"

    @property
    def steps(self) -> Path:
        return self.home / f"{self.arm}-{self.seed}.steps"

    def dev(self) -> list[tuple[int, float]]:
        """(step, dev loss) so far."""
        return Record(self.steps / "record.jsonl").curve("dev")

    def measured(self, step: int, suite: str) -> Path:
        return self.home / "measured" / f"{self.arm}-{self.seed}" / f"{step:06d}-{suite}.json"


def runs_of(home: Path, arms: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Seed by seed, so that the first comparison can be made early; who is taught, after all
    teachers."""
    alone = [arm for arm in arms if arm not in TAUGHT]
    taught = [arm for arm in arms if arm in TAUGHT]
    return [Run(arm, seed, home) for part in (alone, taught) for seed in seeds for arm in part]


def lesson(run: Run, seeds: Sequence[int]) -> list[str]:
    """What a run changes of the recipe: its arm and its teacher.

    The teacher is of the next seed: one of the same seed began with the student's own numbers.
    """
    if run.arm not in TAUGHT:
        return [f"arm={run.arm}"]
    taught = TAUGHT[run.arm]
    teacher = Run(TEACHER, seeds[(seeds.index(run.seed) + 1) % len(seeds)], run.home)
    step = taught.teacher_step
    folder = teacher.output if step is None else teacher.steps / f"step-{step:06d}"
    if not folder.exists():
        raise SystemExit(f"{run.arm} has no teacher at {folder}: train {TEACHER} first (--arms)")
    told = [f"distil.{key}={value}" for key, value in taught.distil.items()]
    return [f"arm={taught.student}", f"distil.teacher={folder}", *told]


def train(run: Run, kind: str, data: Path, seeds: Sequence[int], sets: Sequence[str]) -> None:
    """Train one run, or go on with it."""
    if run.output.exists():
        return
    changes = [
        f"pretrain.root={data}", f"train.seed={run.seed}", f"output={run.output}",
        *lesson(run, seeds), *sets,
    ]  # fmt: skip
    made = run_with_curves(read_pretraining(RECIPES / f"pretrain_{kind}.yaml", changes))
    write_json(run.steps / "report.json", made.as_dict())
    note(f"{run.arm} seed {run.seed}: dev {made.dev[-1][1]:.4f}, {made.seconds:.0f} s here")


def wanted(runs: Sequence[Run]) -> dict[Run, tuple[int, ...]]:
    """Of each run the steps to measure: around the lowest dev loss that all runs of its seed
    reached, and the last. Seeds that are not trained through are left out."""
    found: dict[Run, tuple[int, ...]] = {}
    for seed in {run.seed for run in runs}:
        own = [run for run in runs if run.seed == seed]
        if not all(run.output.exists() for run in own):
            continue
        loss = max(min(value for _, value in run.dev()) for run in own)
        for run in own:
            last = run.dev()[-1][0]
            found[run] = tuple(sorted({*bracketing(run.dev(), loss), last}))
    return found


def measurements(kind: str) -> list[str]:
    """The names of all that is measured of a checkpoint."""
    few = ["few"] if kind == "decoder" else []
    return ["base", "contribution", *(f"transfer-{task}" for task in TASKS), *few]


def complete(wanted: Mapping[Run, tuple[int, ...]], kind: str) -> dict[Run, tuple[int, ...]]:
    """Of `wanted` the seeds in which every run is measured in every way; the others are named."""
    lacking = {
        run.seed
        for run, steps in wanted.items()
        for step in steps
        if not all(run.measured(step, name).is_file() for name in measurements(kind))
    }
    for seed in sorted(lacking):
        note(f"seed {seed} is left out: not all of it is measured yet")
    return {run: steps for run, steps in wanted.items() if run.seed not in lacking}


def suites(
    kind: str, data: Path, home: Path
) -> Iterator[tuple[str, str, list[Path], dict[str, Any]]]:
    """(name of the file, suite, data, options) of everything that is measured."""
    trained = RECIPES / "data" / "texts.yaml"
    domains = [RECIPES / "data" / "domains.yaml"]
    shared = {"root": str(data), "trained": str(trained)}
    yield "base", "base-capability", domains, {**shared, **READ}
    texts = {"root": str(data), **READ, "states": STATES}
    yield "contribution", "contribution", [trained], texts
    for task in TASKS:
        train, test = rows_of_task(task, data, home / "tasks")
        yield f"transfer-{task}", "transfer", [test], {"train": str(train), "limit": TRAINED_ON}
    if kind == "decoder":
        questions = few_shot_rows(data, home / "tasks" / "arc-easy.jsonl")
        yield "few", "utility", [questions], {"style": "plain", "shots": 1}


def few_shot_rows(data: Path, file: Path) -> Path:
    """ARC-Easy's questions that are short enough for an example and a question in 128 tokens."""
    if not file.exists():
        rows = []
        for row in read_json(data, "commonsense_qa/ARC-Easy_test.json"):
            body = row["instruction"].split("question:", 1)[1].split("Answer format:")[0]
            prompt, *rest = re.split(r"Answer\d:", body)
            options = [" ".join(text.split()) for text in rest]
            answer = int(row["answer"].removeprefix("answer")) - 1
            if len(body) <= SHORT and 0 <= answer < len(options):
                prompt = " ".join(prompt.split())
                rows.append({"prompt": prompt, "options": options, "answer": answer})
        write_lines(file, rows)
    return file


def rows_of_task(task: str, data: Path, folder: Path) -> tuple[Path, Path]:
    """Rows {"text", "label"} to train on and to measure, written once: SST-2's two polarities, and
    GoEmotions' three."""
    found = (folder / f"{task}-train.jsonl", folder / f"{task}-test.jsonl")
    for part, file in zip(("train", "dev"), found, strict=True):
        if file.exists():
            continue
        if task == "sst2":
            lines = read_text(data, f"sst2/{part}.tsv").splitlines()
            rows = [tuple(line.split("\t")) for line in lines if line]
        else:
            rows = goemotions(data, part)
        write_lines(file, ({"text": text, "label": label} for text, label in rows))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--kind", choices=("decoder", "encoder"), default="decoder")
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--baseline", default="wide", help="arm the others are compared with")
    parser.add_argument("--name", help="of the results; default: the kind")
    parser.add_argument("--lane", default="0/1", help="K/N: every N-th run, from number K")
    parser.add_argument("--set", dest="sets", nargs="*", default=[], help="of the recipe")
    for stage in ("train", "measure", "report"):
        parser.add_argument(f"--{stage}", action="store_true")
    asked = parser.parse_args()
    home = asked.cache / asked.kind
    runs = runs_of(home, asked.arms, asked.seeds)
    lane, lanes = (int(part) for part in asked.lane.split("/"))
    if asked.train:
        home.mkdir(parents=True, exist_ok=True)
        for run in runs[lane::lanes]:
            train(run, asked.kind, asked.data, asked.seeds, asked.sets)
    if asked.measure:
        jobs = [(run, step) for run, steps in wanted(runs).items() for step in steps]
        for run, step in jobs[lane::lanes]:
            for name, suite, files, options in suites(asked.kind, asked.data, asked.cache):
                out = run.measured(step, name)
                if not out.exists():
                    note(f"{run.arm} seed {run.seed}, step {step}: {name}")
                    source = open_model(run.steps / f"step-{step:06d}")
                    limit = MEASURED if suite == "transfer" else None
                    found = measure(suite, source, data=files, options=options, limit=limit)
                    out.parent.mkdir(parents=True, exist_ok=True)
                    found.save(out)
    if asked.report:
        found = complete(wanted(runs), asked.kind)
        if not found:
            raise SystemExit("no seed is trained and measured through: nothing to report")
        print("\n".join(report(runs, found, asked.name or asked.kind, asked.baseline)))


if __name__ == "__main__":
    main()
