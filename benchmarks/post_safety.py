"""The table of post safety alignment: every method on every lab family, both splits, resumable.

    python benchmarks/post_safety.py --families lab/seed-0 lab/seed-1 --data DATA_DIR \\
        --cache lab/post-safety
    python benchmarks/post_safety.py --families lab/seed-0 --cache lab/post-safety --speed
    python benchmarks/post_safety.py --families lab/seed-0 --cache lab/post-safety --judge lab/judge
    python benchmarks/post_safety.py --cache lab/post-safety --report

Every point is one model: derived in memory, asked the questions of `post_safety_measure.py`, kept
as one JSON file; equal weights are asked once. The same command resumes after the last point. The
report chooses knobs on the tuning split and shows the test split (`post_safety_report.py`).
`--speed` times the chosen settings against the model they edit, on a machine that does nothing
else. `--judge` has their replies to MT-Bench's questions graded, by a checkpoint folder with a
format beside it (`lab_judge.py` makes one). Both lay Measurements beside the points:
`CACHE/seed-N/SUITE/HALF METHOD.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from irr_lab import Edited
from post_safety_measure import Protocol
from post_safety_points import Workshop, points

from suture.checkpoint import write_json
from suture.checkpoint.jsonfile import read_json
from suture.lab.family import open_family

HALVES = ("drift", "patching")
REPLY = 96  # tokens of an open-ended reply
PROMPTS, TIMED = 8, {"tokens": 32, "rounds": 3}  # of each timing


def run(
    family_folder: Path, cache: Path, protocol: Protocol, halves: list[str], only: list[str]
) -> None:
    """All points of one family that are not there yet."""
    family = open_family(family_folder)
    home = cache / f"seed-{family.seed}"
    shop = Workshop(family, home)
    for point in points(halves):
        out = home / "points" / point.file
        names = {point.method, f"{point.method} {point.label}"}
        if out.exists() or (only and not names & {*only}):
            continue
        began = time.monotonic()
        source = shop.model(point)
        if isinstance(source, Edited):
            source.fingerprint()  # derives
        derived = time.monotonic() - began
        facts = measured(home, protocol, source, shop)
        about: dict[str, Any] = {
            "half": point.half, "method": point.method, "label": point.label, "key": point.key,
            "fingerprint": facts["fingerprint"], "derive_seconds": round(derived, 2),
        }  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, about)
        tuning = facts["scores"]["tuning"]
        shown = {k: round(sum(v) / len(v), 3) for k, v in tuning.items()}
        spent = time.monotonic() - began
        print(f"seed {family.seed} {point.half} {point.method} {point.label}: tuning {shown}, "
              f"{spent:.0f} s", flush=True)  # fmt: skip


def measured(home: Path, protocol: Protocol, source: Any, shop: Workshop) -> dict[str, Any]:
    """Both splits of a model, from the cache where these weights have been asked before."""
    out = home / "models" / f"{source.fingerprint()[:32]}.json"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, protocol.measure(source, shop.aligned_lm))
    facts: dict[str, Any] = read_json(out)
    return facts


def time_chosen(family_folder: Path, cache: Path) -> None:
    """Generation time of every chosen setting relative to the model it edits, as Measurements."""
    from suture.inference import load
    from suture.suites import measure

    before = None
    for source, backbone, out in _chosen(family_folder, cache, "speed"):
        if before is None or before.fingerprint != backbone().fingerprint():
            before = load(backbone(), device="cpu", dtype="float32")
        lm = load(source(), device="cpu", dtype="float32")
        measure("speed", lm, before=before, limit=PROMPTS, options=TIMED).save(out)


def grade_chosen(family_folder: Path, cache: Path, judge_folder: Path) -> None:
    """Open-ended replies of every chosen setting with a judge's grades, as Measurements.

    Asked are the questions of MT-Bench that leave room for two replies in the models' context.
    """
    from suture.suites import measure
    from suture.suites.judges.chat import ChatJudge

    form = judge_folder.with_suffix(".format.json")
    judge = ChatJudge.load({"model": judge_folder, "format": str(form), "device": "cpu"})
    questions = _fitting(open_family(family_folder).aligned, cache / "open-ended.jsonl")
    for source, _, out in _chosen(family_folder, cache, "open-ended"):
        found = measure(
            "open-ended", source(), data=questions, max_new_tokens=REPLY, judge=judge, device="cpu"
        )
        found.save(out, redact=True)
        print(f"{out}: {found.metrics['grade']:.2f}", flush=True)


def _chosen(
    family_folder: Path, cache: Path, suite: str
) -> Iterator[tuple[Callable[[], Any], Callable[[], Any], Path]]:
    """The chosen setting of every method that has no Measurement of `suite` yet, the model it
    edits, and the file for it."""
    from post_safety_numbers import REFERENCE, Scores, choose

    family = open_family(family_folder)
    shop = Workshop(family, cache / f"seed-{family.seed}")
    for half in HALVES:
        scores = Scores(cache, half)
        if family.seed not in scores.seeds:
            continue
        home = scores.methods[REFERENCE[half][0]][0]
        for method in scores.methods:
            out = cache / f"seed-{family.seed}" / suite / f"{half} {method}.json"
            if not out.exists():
                out.parent.mkdir(parents=True, exist_ok=True)
                point = choose(scores, method)
                yield partial(shop.model, point), partial(shop.model, home), out


def _fitting(model: Path, out: Path) -> Path:
    """MT-Bench's questions that fit the context with their replies, as a file."""
    from suture.inference import load
    from suture.inference.generation import conversation_ids
    from suture.patch import open_model
    from suture.suites.common import DATA

    lm = load(open_model(model), device="cpu")
    kept = []
    for line in (DATA / "mt_bench.jsonl").read_text("utf-8").splitlines():
        turns = json.loads(line)["turns"]
        told = [{"role": "user", "content": turns[0]}]
        for turn in turns[1:]:
            told += [{"role": "assistant", "content": ""}, {"role": "user", "content": turn}]
        room = len(conversation_ids(lm, [told])[0]) + REPLY * len(turns)
        kept += [line] if lm.within(room) == room else []
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(kept) + "\n", "utf-8")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--families", type=Path, nargs="+", default=[])
    parser.add_argument("--data", type=Path, help="folder of public data sets")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--halves", nargs="+", choices=HALVES, default=list(HALVES))
    parser.add_argument(
        "--only", nargs="+", default=[], help="methods, or METHOD KNOBS, as in the table"
    )
    parser.add_argument("--speed", action="store_true", help="time the chosen settings only")
    parser.add_argument("--judge", type=Path, help="grade open-ended replies with this checkpoint")
    parser.add_argument("--report", action="store_true", help="write table and plots")
    args = parser.parse_args()
    if args.families and not (args.speed or args.judge) and args.data is None:
        parser.error("--families needs --data")
    if args.speed:
        for folder in args.families:
            time_chosen(folder, args.cache)
    elif args.judge:
        for folder in args.families:
            grade_chosen(folder, args.cache, args.judge)
    elif args.families:
        protocol = Protocol(args.data)
        for folder in args.families:
            run(folder, args.cache, protocol, args.halves, args.only)
    if args.report:
        from post_safety_report import report

        report(args.cache)


if __name__ == "__main__":
    main()
