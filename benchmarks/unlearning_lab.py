"""The table of unlearning: every method on every lab family, epoch by epoch, resumable.

    python benchmarks/unlearning_lab.py --families lab/seed-0 --cache lab/unlearning --tune
    python benchmarks/unlearning_lab.py --families lab/seed-0 lab/seed-1 --cache lab/unlearning
    python benchmarks/unlearning_lab.py --cache lab/unlearning --report

`--tune` fills the tuning side: every setting on the first family's `remembering-tuning`, measured
at the fixed epoch alone. Without it the chosen settings run on every family's `remembering`,
measured after each epoch. A point is one training (`suture.runs.trajectory`), kept under its own
folder; the same command goes on after the last one. `unlearning_report.py` makes the table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from irr_lab import Edited
from unlearning_points import AUGMENT_RATE, BATCH_ROWS, EPOCHS, FIXED, PEAK, Point, points

from suture.checkpoint import write_json
from suture.errors import SutureError
from suture.inference.decoding.whos_harry_potter import WhosHarryPotter
from suture.lab.family import Family, open_family
from suture.methods.task_arithmetic import TaskArithmetic
from suture.patch import open_model
from suture.runs.recipe import SuiteSpec
from suture.runs.trajectory import MeasuredTraining, MeasureSpec, run_training
from suture.suites import measure
from suture.training.loop import TrainConfig
from suture.training.recipe import DataFile

EVERY = 2  # epochs from one measuring to the next; the fixed one is measured besides
LONGEST = 80  # tokens of a reply: no answer has more
SHOWN = ("forget_ks", "forget_probability", "retain_probability", "model_utility_geometric")
OPTIONS = {"utility": ["retain"], "authors": 10}  # the lab knows no real authors; 10 of 20 rows
THIN = {"forget": 2, "retain": 10}  # every so many-th row is asked


class Bench:
    """One family's side of the table: its model, rows, oracle and folder of points."""

    def __init__(self, family: Family, cache: Path, *, tuning: bool) -> None:
        self.family, self.tuning = family, tuning
        self.member = "remembering-tuning" if tuning else "remembering"
        self.part = "forget_tuning" if tuning else "forget"
        self.home = cache / ("tuning" if tuning else f"seed-{family.seed}")
        self.files = self._files()
        self.reference = self.home / "oracle.json"

    def _files(self) -> list[Path]:
        """The rows that are asked: half of those to be forgotten, a tenth of the others."""
        found = []
        for name, every in THIN.items():
            part = self.part if name == "forget" else name
            source = self.family.rows(f"{part}_perturbed")
            out = self.home / "rows" / f"{name}_perturbed.jsonl"
            lines = source.read_text("utf-8").splitlines(keepends=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text("".join(lines[::every]), "utf-8")
            found.append(out)
        return found

    def landmarks(self) -> None:
        """The oracle, which never knew, and the model that knows."""
        base = open_model(self.family.aligned)
        for name, member in (("oracle", "remembering-oracle"), ("before", self.member)):
            out = self.home / f"{name}.json"
            if not out.exists():
                source = open_model(self.family.member(member), base=base)
                reference = "none" if name == "oracle" else str(self.reference)
                found = measure(
                    "tofu", source, data=self.files, max_new_tokens=LONGEST, dtype="bfloat16",
                    options={"reference": reference, **OPTIONS},
                )  # fmt: skip
                found.save(out, redact=True)

    def train(self, point: Point) -> dict[str, Any]:
        """The point's trajectory; from disk where it has been made."""
        out = self.home / "points" / point.folder
        result = out.with_name(f"{out.name}.epochs") / "trajectory.json"
        if not result.exists() and point.strength:
            metrics = {f"tofu.{k}": v for k, v in self.still(point).items()}
            epochs = [{"epoch": FIXED, "metrics": metrics}]
            result.parent.mkdir(parents=True, exist_ok=True)
            write_json(result, {"fixed": FIXED, "first_peak": FIXED, "epochs": epochs})
        if not result.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            try:
                run_training(self.recipe(point, out))
            except SutureError as error:
                if error.code != "E902":
                    raise
                write_json(result, {"diverged": error.message, "epochs": []})
        found: dict[str, Any] = json.loads(result.read_text("utf-8"))
        return found

    def still(self, point: Point) -> dict[str, float]:
        """The metrics of a method without a training of its own: the teacher itself, or the task
        vector of the augmented model taken away. Both see the model trained further once."""
        before = open_model(self.family.member(self.member))
        augmented = self.home / "augmented"
        if not augmented.exists():
            plain = Point("augmented", "", {"name": "next-token"}, rate=AUGMENT_RATE)
            again = {"patch": None, "output": augmented, "measure": None}
            run_training(self.recipe(plain, augmented).model_copy(update=again))
        options = {"reference": str(self.reference), **OPTIONS}
        asked: dict[str, Any] = {"data": self.files, "max_new_tokens": LONGEST, "options": options}
        if point.method == "WHP teacher":
            wrapped = WhosHarryPotter(augmented=augmented, alpha=point.strength)
            return measure("tofu", before, decoding=wrapped, dtype="bfloat16", **asked).metrics
        negated = TaskArithmetic(weight=(-point.strength,))
        edited = Edited(before, negated.derive(base=before, donors=[open_model(augmented)]))
        return measure("tofu", edited, dtype="bfloat16", **asked).metrics

    def recipe(self, point: Point, out: Path) -> MeasuredTraining:
        """As a user would write it, but that nothing is kept besides the numbers."""
        rkld = point.objective["name"] == "rkld"
        shared = {"cache": self.home / "teacher"} if rkld else {}
        suite = SuiteSpec(
            data=tuple(self.files),
            max_new_tokens=LONGEST,
            options={"reference": str(self.reference), **OPTIONS},
        )
        return MeasuredTraining(
            model=self.family.member(self.member),
            data=(DataFile(file=self.family.rows(self.part)),),
            retain=(DataFile(file=self.family.rows("retain")),),
            patch=out,
            objective=point.objective | shared,
            train=TrainConfig(
                epochs=point.epochs,
                batch_rows=BATCH_ROWS,
                batch_tokens=4096,
                learning_rate=point.rate,
                warmup="epoch",
                schedule="linear",
                final_share=0.0,
                beta2=0.999,
                seed=self.family.seed,
            ),
            measure=MeasureSpec(
                suites={"tofu": suite},
                every=EPOCHS if self.tuning else EVERY,
                fixed=point.epochs,
                peak=PEAK,
                keep="none",
                dtype="bfloat16",
            ),
            device="cpu",
        )


def chosen(cache: Path) -> Iterator[Point]:
    """Every method's setting: the tuning side's choice (`unlearning_report.choose`)."""
    from unlearning_report import choose

    yield from choose(cache).values()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", type=Path, nargs="*", default=[])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="methods")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        from unlearning_report import report

        report(args.cache)
        return
    for folder in args.families[:1] if args.tune else args.families:
        bench = Bench(open_family(folder), args.cache, tuning=args.tune)
        bench.landmarks()
        for point in points() if args.tune else chosen(args.cache):
            if args.only and point.method not in args.only:
                continue
            began = time.monotonic()
            found = bench.train(point)["epochs"]
            at = next((one["metrics"] for one in found if one["epoch"] == FIXED), {})
            shown = {k: round(at[f"tofu.{k}"], 3) for k in SHOWN if at}
            print(f"{bench.home.name} {point.method} {point.label}: {shown}, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
