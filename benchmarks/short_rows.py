"""Training on a CPU in bfloat16: attention written out on short rows against torch's fused kernel.

    python benchmarks/short_rows.py [--threads 1] [--rounds 6]

One forward and backward pass of a Llama of random weights, 8 rows, a quarter of each row's end
padded in half of the rows, as the training loop computes it; with and without `quick_attention`.
Rounds are interleaved and the least CPU time counts, because other work on a machine only adds.
`error` is the distance of all gradients from those of float32, as a share of their norm. Results:
benchmarks/results/short_rows.json and docs/generated/short_rows.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from suture.lazy import torch, transformers  # noqa: E402
from suture.training.short_rows import quick_attention  # noqa: E402
from suture.versions import versions  # noqa: E402

RESULTS = ROOT / "benchmarks/results/short_rows.json"
PAGE = ROOT / "docs/generated/short_rows.md"
SHAPES = {  # hidden size, width of the FFN, layers, heads, heads of keys
    "5M, heads of 32": (256, 640, 6, 8, 4),
    "40M, heads of 64": (576, 1536, 8, 9, 3),
}
LENGTHS = (32, 64, 96, 128, 192)
ROWS, VOCABULARY = 8, 4096
SIDES = {"fused": nullcontext, "written out": quick_attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for shape in SHAPES for row in measure(shape, args.rounds)]
    found = {
        "threads": args.threads,
        "rounds": args.rounds,
        "rows": rows,
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
        "date": date.today().isoformat(),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text("\n".join(page(found)) + "\n", encoding="utf-8")
    print("\n".join(page(found)))


def measure(shape: str, rounds: int) -> list[dict[str, Any]]:
    """A row for every length: seconds of CPU and error of the gradients, by side."""
    hidden, width, layers, heads, key_heads = SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, vocab_size=VOCABULARY,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    found = []
    for length in LENGTHS:
        ids = torch.randint(VOCABULARY, (ROWS, length))
        attend = torch.ones_like(ids)
        attend[ROWS // 2 :, length * 3 // 4 :] = 0
        seconds: dict[str, float] = dict.fromkeys(SIDES, float("inf"))
        errors: dict[str, float] = {}
        exact = gradients(model, ids, attend, "fused", torch.float32)[0]
        for _ in range(rounds):
            for side in SIDES:
                made, spent = gradients(model, ids, attend, side, torch.bfloat16)
                seconds[side] = min(seconds[side], spent)
                errors[side] = float((made - exact).norm() / exact.norm())
        found.append({"shape": shape, "length": length, "seconds": seconds, "error": errors})
        print(found[-1], file=sys.stderr)
    return found


def gradients(
    model: Any, ids: torch.Tensor, attend: torch.Tensor, side: str, dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    """All gradients as one vector, and the seconds of CPU that they took."""
    model.zero_grad()
    began = time.process_time()
    with SIDES[side]():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(
                input_ids=ids, attention_mask=attend, use_cache=False,
                labels=ids.masked_fill(attend == 0, -100),
            ).loss  # fmt: skip
        loss.backward()
    spent = time.process_time() - began
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), spent


def page(found: dict[str, Any]) -> list[str]:
    """The table, fused against written out."""
    lines = [
        f"{found['rounds']} interleaved rounds, {found['threads']} thread, least CPU time; error: "
        "distance of the gradients from those of float32.",
        "",
        "| model | tokens of a row | fused, ms | written out, ms | times as fast | error, fused "
        "| error, written out |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        fused, written = (1e3 * row["seconds"][side] for side in SIDES)
        errors = " | ".join(f"{row['error'][side]:.4f}" for side in SIDES)
        lines.append(
            f"| {row['shape']} | {row['length']} | {fused:.0f} | {written:.0f} "
            f"| {fused / written:.2f} | {errors} |"
        )
    return lines


if __name__ == "__main__":
    main()
