"""Log-likelihood scoring side by side with lm-eval's own Hugging Face backend.

    python -m venv PEER && PEER/bin/pip install torch==2.13.0 lm-eval transformers accelerate
    python benchmarks/scoring.py --peer PEER/bin/python [--mmlu DIR] [--model CKPT] [--items 60]

The file: multiple choice, five solved examples before every question, options scored as full texts.
`--mmlu`: a folder with dev/ and test/ CSVs; without it the questions are drawn from random words
of like length. `--model`: any checkpoint folder; without it a random Llama of 28 M parameters with
the tokenizer of the shipped lab. Two ways to choose the examples: the same for every question of a
subject (`fixed`, as MMLU has them) and drawn anew for each question (`drawn`, which leaves only a
question's own options to share). Each side is a process of its own on one thread count and float32;
times are of scoring alone, tokenizing included, loading not: CPU seconds, which other work on the
machine does not change much, and wall seconds beside them. The last case compares greedy replies
to the same prompts. Results: benchmarks/results/scoring.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "scoring.json"
BATCHES = (1, 8)  # the peer gets the best of these
LETTERS = "ABCD"

Item = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", help="interpreter with lm-eval and the same torch")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--mmlu", type=Path)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, model, work, batch = args.side
        {"ours": ours, "peer": peer}[side](Path(model), Path(work), int(batch))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = args.model or random_model(work / "model")
        found = [compare(args, model, work, way) for way in ("fixed", "drawn", "generation")]
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"machine": platform.processor() or platform.machine(), "items": args.items}
    RESULTS.write_text(json.dumps({**about, "cases": found}, indent=1) + "\n")


def compare(args: argparse.Namespace, model: Path, work: Path, way: str) -> dict[str, Any]:
    """Both sides on one file; prints a line and returns it."""
    items = questions(args.mmlu, args.items, "fixed" if way == "generation" else way)
    job = {"way": way, "items": items, "new_tokens": args.new_tokens}
    (work / "job.json").write_text(json.dumps(job))
    mine = start(sys.executable, "ours", model, work, 0)
    row: dict[str, Any] = {"case": way, "n": len(items)}
    row["ours_items_per_cpu_s"] = round(len(items) / mine["cpu"], 3)
    row["ours_wall_s"] = round(mine["seconds"], 2)
    if args.peer:
        sides = [start(args.peer, "peer", model, work, batch) for batch in BATCHES]
        best = min(sides, key=lambda side: side["cpu"])
        row["peer_items_per_cpu_s"] = round(len(items) / best["cpu"], 3)
        row["peer_wall_s"] = round(best["seconds"], 2)
        row["times_faster_cpu"] = round(best["cpu"] / mine["cpu"], 2)
        row["times_faster_wall"] = round(best["seconds"] / mine["seconds"], 2)
        row["peer_batch"] = best["batch"]
        row["peer"] = best["versions"]
        if way == "generation":
            same = sum(a == b for a, b in zip(mine["found"], best["found"], strict=True))
            row["same_replies"] = f"{same}/{len(items)}"
        else:
            pairs = [
                (a, b)
                for one, two in zip(mine["found"], best["found"], strict=True)
                for a, b in zip(one, two, strict=True)
            ]
            row["largest_difference"] = max(abs(a - b) for a, b in pairs)
    row["ours"] = mine["versions"]
    print(json.dumps(row))
    return row


def start(python: str, side: str, model: Path, work: Path, batch: int) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [python, __file__, "--side", side, str(model), str(work), str(batch)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((work / f"{side}.json").read_text())
    return found


def ours(model: Path, work: Path, batch: int) -> None:
    sys.path.insert(0, str(ROOT / "src"))
    import torch
    import transformers

    from suture.checkpoint import Checkpoint
    from suture.inference import load
    from suture.inference.generation import generate_ids
    from suture.inference.scoring import text_likelihoods

    job = json.loads((work / "job.json").read_text())
    lm = load(Checkpoint.open(model), device="cpu", dtype="float32")
    contexts = [item["context"] for item in job["items"]]
    options = [item["options"] for item in job["items"]]
    began, busy = time.perf_counter(), time.process_time()
    if job["way"] == "generation":
        ids = [list(lm.tokenizer(c, add_special_tokens=False)["input_ids"]) for c in contexts]
        lm.stops = frozenset()
        replies = generate_ids(lm, ids, max_new_tokens=job["new_tokens"])
        found: list[Any] = [reply.text for reply in replies]
    else:
        rows = text_likelihoods(lm, contexts, options)
        found = [[one.logprob for one in row] for row in rows]
    seconds = time.perf_counter() - began, time.process_time() - busy
    made = {"torch": torch.__version__, "transformers": transformers.__version__}
    save(work / "ours.json", found, seconds, batch, made)


def peer(model: Path, work: Path, batch: int) -> None:
    import lm_eval
    import torch
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    job = json.loads((work / "job.json").read_text())
    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=batch)
    began, busy = time.perf_counter(), time.process_time()
    if job["way"] == "generation":
        kind = "generate_until"
        wanted = {"until": ["\0"], "max_gen_toks": job["new_tokens"], "do_sample": False}
        arguments = [(item["context"], dict(wanted)) for item in job["items"]]
    else:
        kind = "loglikelihood"
        arguments = [(item["context"], o) for item in job["items"] for o in item["options"]]
    requests = [
        Instance(request_type=kind, doc={}, arguments=one, idx=i)  # type: ignore[arg-type]
        for i, one in enumerate(arguments)
    ]
    flat = getattr(lm, kind)(requests, disable_tqdm=True)
    seconds = time.perf_counter() - began, time.process_time() - busy
    found: list[Any] = flat
    if job["way"] != "generation":
        values = iter(value for value, _ in flat)
        found = [[next(values) for _ in item["options"]] for item in job["items"]]
    made = {"torch": torch.__version__, "transformers": transformers.__version__}
    save(work / "peer.json", found, seconds, batch, {**made, "lm_eval": lm_eval.__version__})


def save(
    path: Path, found: list[Any], seconds: tuple[float, float], batch: int, made: dict[str, str]
) -> None:
    wall, cpu = seconds
    facts = {"found": found, "seconds": wall, "cpu": cpu, "batch": batch, "versions": made}
    path.write_text(json.dumps(facts))


def questions(folder: Path | None, count: int, way: str) -> list[Item]:
    """`count` questions with five examples each, spread over the subjects of the file."""
    draw = random.Random(0)
    subjects = invented(draw) if folder is None else published(folder)
    found: list[Item] = []
    share = -(-count // len(subjects))
    for dev, test in subjects:
        for question in test[:share]:
            shots = dev[:5] if way == "fixed" else draw.sample(dev, 5)
            text = "\n\n".join(f"{ask(shot)} {shot['options'][shot['answer']]}" for shot in shots)
            context = f"{text}\n\n{ask(question)}"
            found.append({"context": context, "options": [f" {o}" for o in question["options"]]})
    return found[:count]


def ask(question: Item) -> str:
    return f"Question: {question['question']}\nAnswer:"


def published(folder: Path) -> list[tuple[list[Item], list[Item]]]:
    """MMLU subjects whose options are sentences rather than numbers or names."""
    found = []
    for dev in sorted((folder / "dev").glob("*_dev.csv")):
        beside = folder / "test" / dev.name.replace("_dev.csv", "_test.csv")
        if not beside.is_file():
            continue
        test = read(beside)
        long = sum(len(o) for q in test[:50] for o in q["options"]) / (4 * len(test[:50]))
        if long >= 25 and max(len(q["question"]) for q in read(dev)) < 600:
            fitting = [q for q in test if len(q["question"]) < 600]
            found.append((read(dev) + test[-20:], fitting))
    return found[:6]


def read(path: Path) -> list[Item]:
    """Rows question, A, B, C, D, answer (a letter or an index), with or without a header."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 6 and row[0] != "question"]
    return [
        {
            "question": row[0],
            "options": row[1:5],
            "answer": LETTERS.index(row[5]) if row[5] in LETTERS else int(row[5]),
        }
        for row in rows
    ]


def invented(draw: random.Random) -> list[tuple[list[Item], list[Item]]]:
    """Questions of 30 and options of 12 random words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 8))) for _ in range(500)]

    def one() -> Item:
        def text(low: int, high: int) -> str:
            return " ".join(draw.choices(words, k=draw.randint(low, high)))

        return {
            "question": text(15, 45),
            "options": [text(8, 16) for _ in range(4)],
            "answer": draw.randrange(4),
        }

    return [([one() for _ in range(25)], [one() for _ in range(200)]) for _ in range(4)]


def random_model(path: Path) -> Path:
    """A Llama of 28 M random parameters with the shipped lab's tokenizer."""
    sys.path.insert(0, str(ROOT / "src"))
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from suture.lab.shipped import FOLDER

    lab = FOLDER / "aligned"
    given = json.loads((lab / "config.json").read_text())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=given["vocab_size"],
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=given["eos_token_id"],
        pad_token_id=given["eos_token_id"],
        initializer_range=0.06,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    for file in lab.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy(file, path)
    return path


if __name__ == "__main__":
    main()
