"""Unlearning side by side: RKLD's cached teacher against three live models, NPO against Trainer.

    python benchmarks/unlearning.py [--rows 16] [--rounds 2] [--small]

A random Llama (83 million parameters unless --small) and rows of TOFU's lengths, float32, one
thread. Every arm is a process of its own; arms run in turns, `--rounds` times, and the median
counts. Times are CPU seconds of the steps (wall seconds stand beside them); memory is the peak of
the process above what it held after its imports. (Of two rounds the faster one counts.)

`cached`  what the product does: the augmented model is trained, the teacher written to disk, then
          one model is trained on it
`live`    student, original and augmented model in memory, the same loss by autograd; logits only
          where an answer token is predicted, which most code does not do
`whole`   the same with the logits of every position, as models return them
`npo`     the product's NPO, and the same loss in transformers' Trainer, the reference's
          log-probabilities worked out beforehand in both

Results: benchmarks/results/unlearning.json and docs/generated/unlearning.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "unlearning.json"
PAGE = ROOT / "docs" / "generated" / "unlearning.md"
ARMS = (
    "cached-full", "live-full", "whole-full", "cached-lora", "live-lora", "whole-lora",
    "npo-ours", "npo-trainer",
)  # fmt: skip
BOUNDS = {  # times as fast, share of the memory
    "full": (1.5, 0.8),
    "lora": (1.8, 0.45),
}
EPOCHS = 2
PAPER_EPOCHS = 10  # of the student, for which the teacher is made once

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a few seconds; nothing is written")
    parser.add_argument("--arms", nargs="*", default=ARMS, choices=ARMS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        args.out.write_text(json.dumps(run(args.arm, args.rows, args.small)))
        return
    found: dict[str, list[Row]] = {arm: [] for arm in args.arms}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for arm in args.arms:
                found[arm].append(start(arm, args, Path(folder) / "arm.json"))
    rows = {arm: median(runs) for arm, runs in found.items()}
    if args.small:
        print(json.dumps(rows, indent=1))
        return
    facts = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "rows": args.rows,
        "rounds": args.rounds,
        "load": round(os.getloadavg()[0], 1),
        "arms": rows,
    }
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    PAGE.write_text(page(rows))
    print(page(rows))


def start(arm: str, args: argparse.Namespace, out: Path) -> Row:
    """One arm in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--arm", arm, "--rows", str(args.rows), "--out", str(out)]
    if args.small:
        command.append("--small")
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": paths}
    subprocess.run(command, check=True, env=environment)
    row: Row = json.loads(out.read_text())
    print(arm, json.dumps({key: row[key] for key in row if key != "losses"}), flush=True)
    return row


def median(runs: list[Row]) -> Row:
    """The run of median CPU time per token; the losses are the same in all."""
    assert all(run["losses"] == runs[0]["losses"] for run in runs)
    middle = statistics.median_low([run["cpu_ms_per_token"] for run in runs])
    return next(run for run in runs if run["cpu_ms_per_token"] == middle)


# ---------------------------------------------------------------------------------------- one arm


def run(arm: str, count: int, small: bool) -> Row:
    """The arm's own measurement, in this process."""
    import torch
    import transformers

    import suture.lazy  # noqa: F401 - sets torch up as the product does
    from suture.training.loop import TrainConfig

    torch.set_num_threads(1)
    import peft  # noqa: F401 - imported by all, so that it counts for none

    held = resident()
    model = random_model(small)
    examples = random_rows(count, model.config.vocab_size)
    settings = TrainConfig(
        epochs=EPOCHS, batch_rows=8, batch_tokens=128, learning_rate=1e-5, warmup=0,
        schedule="constant", compute="float32", save_every=10**6,
    )  # fmt: skip
    way, what = arm.split("-")
    if way == "npo":
        measured = npo(model, examples, settings, trainer=what == "trainer")
    else:
        measured = rkld(way, what, model, examples, settings)
    return {
        "arm": arm,
        "parameters": sum(p.numel() for p in model.parameters()),
        **measured,
        "memory_mb": round((peak() - held) / 2**20),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def rkld(way: str, what: str, model: Any, examples: list[Any], settings: Any) -> Row:
    """The student's steps in `settings.epochs`, and what it took to make the teacher."""
    import torch

    from suture.training.lora import LoraConfig, attach
    from suture.training.objectives import RKLD, Material
    from suture.training.teacher import augmenting

    if what == "lora":
        model = attach(model, LoraConfig(rank=8), seed=0)
    config = RKLD(augment_epochs=1, augment_rate=1e-3)
    lm: Any = Stub(model)
    if way == "cached":
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            given = Material(lm, model, (), examples, (), settings, folder=Path(folder))
            objective = config.build(given)
            making = time.process_time() - began
            return {**steps(model, examples, settings, objective), "making_cpu_s": making}

    import copy

    from suture.training.loop import train

    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    began = time.process_time()
    train(model, examples, augmenting(config, settings))
    making = time.process_time() - began
    augmented = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in start:
                parameter.copy_(start[name])
    del start
    original = copy.deepcopy(model).requires_grad_(False)
    objective = three_models(original, augmented, config.alpha, whole=way == "whole")
    return {**steps(model, examples, settings, objective), "making_cpu_s": making}


def three_models(original: Any, augmented: Any, alpha: float, *, whole: bool) -> Any:
    """RKLD written down plainly, for three models in memory."""
    import torch

    def logits(model: Any, batch: Any) -> torch.Tensor:
        counts = batch.labels[:, 1:] != -100
        if whole:
            out: torch.Tensor = model(input_ids=batch.ids, attention_mask=batch.attend).logits
            return out[:, :-1][counts].float()
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden = inner.model(input_ids=batch.ids, attention_mask=batch.attend).last_hidden_state
        found: torch.Tensor = inner.lm_head(hidden[:, :-1][counts])
        return found.float()

    def loss(model: Any, batch: Any) -> torch.Tensor:
        with torch.no_grad():
            l_o, l_aug = logits(original, batch), logits(augmented, batch)
            log_t = (l_o - alpha * torch.relu(l_aug - l_o)).log_softmax(-1)
        log_p = logits(model, batch).log_softmax(-1)
        return torch.nn.functional.kl_div(log_t, log_p, log_target=True, reduction="batchmean")

    return loss


def npo(model: Any, examples: list[Any], settings: Any, *, trainer: bool) -> Row:
    """NPO's steps in the product's loop or in transformers' Trainer."""
    import torch
    import transformers

    from suture.training.batches import collate
    from suture.training.objectives import NPO, Material
    from suture.training.objectives.common import sequence_nll

    if not trainer:
        given = Material(Stub(model), model, (), examples, (), settings)  # type: ignore[arg-type]
        return steps(model, examples, settings, NPO().build(given))

    with torch.no_grad():
        reference = [float(sequence_nll(model, collate([example]))) for example in examples]
    items = [{"example": e, "reference": r} for e, r in zip(examples, reference, strict=True)]

    def together(rows: list[Row]) -> Row:
        batch = collate([row["example"] for row in rows])
        return {
            "input_ids": batch.ids, "attention_mask": batch.attend, "labels": batch.labels,
            "reference": torch.tensor([row["reference"] for row in rows]),
        }  # fmt: skip

    losses: list[float] = []

    class Forgetting(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Row, *_a: Any, **_k: Any) -> torch.Tensor:
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).logits[:, :-1]
            nll = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), inputs["labels"][:, 1:], reduction="none"
            ).sum(-1)
            loss = (
                -(2 / 0.1)
                * torch.nn.functional.logsigmoid(0.1 * (nll - inputs["reference"])).mean()
            )
            losses.append(float(loss.detach()))
            return loss

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, num_train_epochs=EPOCHS, per_device_train_batch_size=2,
            gradient_accumulation_steps=4, learning_rate=settings.learning_rate, use_cpu=True,
            lr_scheduler_type="constant", save_strategy="no", logging_strategy="no",
            report_to=[], remove_unused_columns=False, disable_tqdm=True,
            weight_decay=settings.weight_decay, optim="adamw_torch",
        )  # fmt: skip
        loop = Forgetting(model, arguments, train_dataset=items, data_collator=together)
        began, busy = time.perf_counter(), time.process_time()
        loop.train()
        cpu, wall = time.process_time() - busy, time.perf_counter() - began
    tokens = EPOCHS * sum(len(example.ids) for example in examples)
    return timing(cpu, wall, tokens, losses)


def steps(model: Any, examples: list[Any], settings: Any, objective: Any) -> Row:
    """The training itself, in the product's loop."""
    from suture.training.loop import train

    busy = time.process_time()
    result = train(model, examples, settings, objective=objective)
    return timing(time.process_time() - busy, result.seconds, result.tokens, result.losses)


def timing(cpu: float, wall: float, tokens: int, losses: list[float]) -> Row:
    return {
        "cpu_ms_per_token": round(1000 * cpu / tokens, 4),
        "wall_ms_per_token": round(1000 * wall / tokens, 4),
        "tokens": tokens,
        "losses": losses,
    }


class Stub:
    """As much of a LoadedModel as a teacher asks for."""

    fingerprint = "random"
    stops: frozenset[int] = frozenset()

    def __init__(self, model: Any) -> None:
        self.model = model


def random_model(small: bool) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden, layers = (128, 2) if small else (768, 10)
    config = LlamaConfig(
        vocab_size=16384, hidden_size=hidden, intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers, num_attention_heads=hidden // 64, initializer_range=0.04,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def random_rows(count: int, vocabulary: int) -> list[Any]:
    """Questions of 12 to 28 tokens, answers of 24 to 56, as TOFU has them."""
    import numpy as np

    from suture.training.batches import Example

    draw = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        question, answer = int(draw.integers(12, 29)), int(draw.integers(24, 57))
        ids = draw.integers(3, vocabulary, size=question + answer)
        rows.append(Example(tuple(int(i) for i in ids), question))
    return rows


def resident() -> int:
    """Bytes held now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Most bytes ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --------------------------------------------------------------------------------------- the page


def page(rows: dict[str, Row]) -> str:
    """Every claim with its bound and what was found."""
    lines = ["| claim | bound | found |", "|---|---|---|"]
    for what, (faster, share) in BOUNDS.items():
        ours = rows[f"cached-{what}"]
        for way in ("live", "whole"):
            peer = rows[f"{way}-{what}"]
            times = peer["cpu_ms_per_token"] / ours["cpu_ms_per_token"]
            epoch = ours["tokens"] / EPOCHS / 1000
            making = ours["making_cpu_s"] - peer["making_cpu_s"]  # both train the augmented model
            whole = (PAPER_EPOCHS * epoch * peer["cpu_ms_per_token"]) / (
                making + PAPER_EPOCHS * epoch * ours["cpu_ms_per_token"]
            )
            apart = max(abs(a - b) for a, b in zip(ours["losses"], peer["losses"], strict=True))
            memory = ours["memory_mb"] / peer["memory_mb"]
            bound = f"≥ {faster}x, ≤ {share} of the memory, loss to 1e-5"
            held = f"{ours['memory_mb']:,} against {peer['memory_mb']:,} MB"
            lines.append(
                f"| RKLD, {what}: cached against three models, {way} | {bound} | **{times:.2f}x** "
                f"per step, {whole:.2f}x over {PAPER_EPOCHS} epochs with the teacher's making; "
                f"**{memory:.2f}** of the memory ({held}); losses differ by {apart:.0e} at most |"
            )
    ours, peer = rows["npo-ours"], rows["npo-trainer"]
    times = peer["cpu_ms_per_token"] / ours["cpu_ms_per_token"]
    lines.append(
        f"| NPO: time per token against transformers' Trainer | ≥ 1x | **{times:.2f}x** "
        f"({ours['cpu_ms_per_token']:.2f} against {peer['cpu_ms_per_token']:.2f} ms) |"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
