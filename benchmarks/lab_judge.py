"""A judge of the lab's own size, for the open-ended column of the post-safety table.

    python benchmarks/lab_judge.py --family lab/seed-0 --data DATA_DIR --out lab/judge

No large judge is at hand where the table is made, so one is trained from the lab's `aligned`: it
grades a reply by how it was spoilt, on question and reply pairs of GPTeacher (MIT) whose replies
were left whole, cut in half, taken from another question, shuffled or looped (`GRADES`, fixed
before training). What it says on pairs it has not seen, by kind, is its certificate, and goes to
benchmarks/results/lab_judge.json. It reads whether a reply hangs together and belongs to its
question; it knows nothing of truth or helpfulness. With a real judge, give that one instead.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from suture.checkpoint import write_json
from suture.lab.family import open_family, write_lines
from suture.rng import generator
from suture.suites.judges.chat import ChatJudge
from suture.suites.judges.grading import Case, Grading
from suture.training.recipe import TrainRecipe, run_recipe

ROOT = Path(__file__).parents[1]
FILES = ("roleplay-simple-deduped-roleplay-instruct.json.gz", "codegen-instruct.json.gz")
GRADES = {"whole": 10, "cut": 7, "elsewhere": 4, "shuffled": 2, "looped": 1}
HELD_OUT = 200  # questions the judge is tested on
WORDS = (8, 110)  # of a reply: shorter ones cannot be spoilt, longer ones overfill the context
FORMAT: dict[str, Any] = {
    "about": "A short grade from 1 to 10 for judges of the lab's size.",
    "rating": r"\[\[(\d+)\]\]",
    "max_new_tokens": 8,
    "marks": ["[[", "Question:", "Reply:"],
    "prompts": {
        "single": {"template": "Question: {question}\nReply: {answer}\nGrade the reply."},
        "single-two": {"template": "Question: {question_2}\nReply: {answer_2}\nGrade the reply."},
    },
}


@dataclass(frozen=True)
class Exchange:
    """A question and a sound reply to it."""

    question: str
    reply: str


def exchanges(data: Path) -> list[Exchange]:
    """GPTeacher's pairs whose reply has a usable length, each question once."""
    found: dict[str, Exchange] = {}
    for name in FILES:
        rows = json.loads(gzip.decompress((data / "gpteacher" / name).read_bytes()))
        for row in rows:
            question = "\n".join(filter(None, (row["instruction"].strip(), row["input"].strip())))
            count = len(row["response"].split())
            if WORDS[0] <= count <= WORDS[1] and len(question.split()) <= WORDS[1]:
                found[question] = Exchange(question, row["response"].strip())
    return list(found.values())


def spoilt(pairs: Sequence[Exchange], seed: int) -> Iterator[tuple[str, str, str]]:
    """(kind, question, reply) of every pair in every kind."""
    rng = generator(seed, "spoilt replies")
    for place, pair in enumerate(pairs):
        words = pair.reply.split()
        other = pairs[(place + 1 + int(rng.integers(len(pairs) - 1))) % len(pairs)]
        start = int(rng.integers(max(1, len(words) - 4)))
        phrase = words[start : start + int(rng.integers(1, 5))]
        yield "whole", pair.question, pair.reply
        yield "cut", pair.question, " ".join(words[: len(words) // 2])
        yield "elsewhere", pair.question, other.reply
        yield (
            "shuffled",
            pair.question,
            " ".join(words[int(k)] for k in rng.permutation(len(words))),
        )
        yield "looped", pair.question, " ".join(words[:start] + phrase * 12)


def train_judge(base: Path, pairs: Sequence[Exchange], out: Path, *, seed: int) -> None:
    """Fine-tune `base` to say the grade; resumes."""
    form = Grading.load(FORMAT)
    rows = [
        {"prompt": form.turns(Case((question,), (reply,)))[-1]["content"],
         "response": f"[[{GRADES[kind]}]]"}
        for kind, question, reply in spoilt(pairs, seed)
    ]  # fmt: skip
    write_lines(out.with_suffix(".rows.jsonl"), rows)
    train = {"epochs": 2, "batch_tokens": 4096, "learning_rate": 3e-4, "warmup": 50, "seed": seed,
             "compute": "bfloat16", "save_every": 100}  # fmt: skip
    values = {"model": base, "data": [{"file": out.with_suffix(".rows.jsonl")}], "output": out,
              "too_long": "leave-out", "device": "cpu", "train": train}  # fmt: skip
    run_recipe(TrainRecipe.load(values))


def certificate(judge: ChatJudge, pairs: Sequence[Exchange], seed: int) -> dict[str, Any]:
    """What it says of replies it has not seen: by kind, and how the order agrees."""
    cases = list(spoilt(pairs, seed))
    form = judge.how
    assert isinstance(form, Grading)
    asked = [form.turns(Case((q,), (r,)), judge.special) for _, q, r in cases]
    heard = judge.ask(asked)
    grades = [
        form.read(Case((q,), (r,)), one.text).grade if one.answered else None
        for (_, q, r), one in zip(cases, heard, strict=True)
    ]
    read = [(kind, grade) for (kind, _, _), grade in zip(cases, grades, strict=True)
            if grade is not None]  # fmt: skip
    by_kind = {}
    for kind in GRADES:
        found = np.array([grade for name, grade in read if name == kind])
        mean, spread = None, None
        if len(found) > 1:
            mean = float(found.mean())
            spread = 1.96 * float(found.std(ddof=1)) / len(found) ** 0.5
        by_kind[kind] = {
            "wanted": GRADES[kind],
            "n": len(found),
            "mean": mean,
            "half_interval": spread,
        }
    if not read:
        raise SystemExit("the judge's words hold no grade: train it on more questions")
    wanted, said = (
        np.array(x, float) for x in zip(*((GRADES[k], g) for k, g in read), strict=True)
    )
    agreement = float(np.corrcoef(_ranks(wanted), _ranks(said))[0, 1])
    return {
        "n": len(cases),
        "unparsed": round(1 - len(read) / len(cases), 4),
        "exact": round(float((wanted == said).mean()), 4),
        "spearman": round(agreement, 4),
        "kinds": by_kind,
    }


def _ranks(values: Any) -> Any:
    """Mean ranks, ties shared."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--family", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of public data sets")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder of the judge")
    parser.add_argument("--questions", type=int, default=1500, help="questions to learn from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pairs = exchanges(args.data)
    order = generator(args.seed, "judge questions").permutation(len(pairs))
    chosen = [pairs[int(k)] for k in order]
    learnt = chosen[HELD_OUT:][: args.questions]
    if not args.out.exists():
        train_judge(open_family(args.family).aligned, learnt, args.out, seed=args.seed)
    form = args.out.with_suffix(".format.json")
    write_json(form, FORMAT)
    judge = ChatJudge.load({"model": args.out, "format": str(form), "device": "cpu"})
    found = certificate(judge, chosen[:HELD_OUT], args.seed + 1)
    facts = {
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        "questions": len(learnt),
        "judge": judge.lm.fingerprint,
        **found,
    }
    write_json(ROOT / "benchmarks/results/lab_judge.json", facts)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
