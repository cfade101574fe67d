"""A mixture of experts against a dense network of equal active work, a loop, and transformers' own.

    python benchmarks/moe.py [--threads 1] [--rounds 12]

One layer, forward and backward of all inputs and weights, float32: E experts of width h, T tokens,
one expert each (`Experts` of `suture.models`); two matrices and a GELU, no biases, so that every
side does the same arithmetic. Sides: `dense` is one torch FFN of width h on the same tokens; `loop`
differentiates `W[e]` expert by expert; `eager`, `grouped_mm` and `batched_mm` are the backends of
transformers' `use_experts_implementation`. batched_mm copies the weights for every token; left
out where those copies do not fit into memory. `layer` is ours with router and losses, `dense_ours`
our FFN, whose products run through oneDNN too.

Values and gradients of all sides are compared before anything is timed. Rounds are interleaved;
the least CPU time of all rounds counts, because other work on a machine only adds, and wall time
stands beside it. All sides have large pages (`suture.lazy`). Results: benchmarks/results/moe.json
and docs/generated/moe.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from suture.lazy import torch, transformers  # noqa: E402
from suture.models import Architecture  # noqa: E402

RESULTS, PAGE = ROOT / "benchmarks/results/moe.json", ROOT / "docs/generated/moe.md"
BOUNDS = {"dense": 1.1, "loop": 4.0, "transformers": 1.0}
PROMISED = {"experts": 64, "hidden": 768, "width": 768, "tokens": 4096}  # other shapes: as found
RARE = {"loop", "eager", "batched_mm"}  # seconds a round: fewer of them
Side = Callable[[], "tuple[torch.Tensor, list[torch.Tensor]]"]  # output, and what has gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case = Case(args.experts, args.hidden, args.width, args.tokens)
    sides = case.sides()
    case.check(sides)
    times = measure(sides, args.rounds)
    row = {
        **{name: getattr(args, name) for name in ("experts", "hidden", "width", "tokens")},
        "threads": args.threads,
        "rounds": args.rounds,
        "ms": times,
        "left_out": case.left_out,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }
    print("\n".join(page([row])))
    if not args.dry:
        write(row)


class Case:
    """One shape: weights shared by all sides, random routing."""

    def __init__(self, experts: int, hidden: int, width: int, tokens: int) -> None:
        from suture.models.experts import Experts
        from suture.models.layers import FeedForward
        from suture.models.moe import MoE

        torch.manual_seed(0)
        arch = Architecture(
            hidden_size=hidden, num_attention_heads=1, experts=experts, expert_width=width,
            bias=False,
        )  # fmt: skip
        self.ours, self.layer = Experts(arch), MoE(arch)
        self.dense_ours = FeedForward(arch, width)
        self.dense = torch.nn.Sequential(
            torch.nn.Linear(hidden, width, bias=False),
            torch.nn.GELU(),
            torch.nn.Linear(width, hidden, bias=False),
        )
        self.x = torch.randn(tokens, hidden, requires_grad=True)
        self.chosen = torch.randint(0, experts, (tokens, 1))
        self.weights = torch.rand(tokens, 1, requires_grad=True)
        self.g = torch.randn(tokens, hidden)
        self.left_out: list[str] = []

    def sides(self) -> dict[str, Side]:
        """Name → one forward pass."""
        from suture.models.outputs import Notes

        given = [self.x, self.weights, self.ours.up_proj, self.ours.down_proj]
        found: dict[str, Side] = {
            "ours": lambda: (self.ours(self.x, self.chosen, self.weights), given),
            "dense": lambda: (self.dense(self.x), [self.x, *self.dense.parameters()]),
            "loop": lambda: (self.loop(), given),
            "layer": lambda: (
                self.layer(self.x, Notes()),
                [self.x, *self.layer.parameters()],
            ),
            "dense_ours": lambda: (
                self.dense_ours(self.x), [self.x, *self.dense_ours.parameters()],
            ),
        }  # fmt: skip
        copies = 3 * 4 * len(self.x) * self.ours.up_proj[0].numel()  # up, down and one gradient
        for backend in ("eager", "grouped_mm", "batched_mm"):
            if backend == "batched_mm" and copies > 0.5 * _memory():
                self.left_out.append(f"batched_mm: its copies take {copies / 2**30:.0f} GiB")
                continue
            peer = _peer(backend, self.ours)
            found[backend] = lambda peer=peer: (
                peer(self.x, self.chosen, self.weights), given,
            )  # fmt: skip
        return found

    def loop(self) -> torch.Tensor:
        """What a newcomer writes: the weights of expert e are `W[e]`."""
        out = torch.zeros_like(self.x)
        for e in range(len(self.ours.up_proj)):
            tokens, rank = torch.where(self.chosen == e)
            y = torch.nn.functional.gelu(self.x[tokens] @ self.ours.up_proj[e].T)
            y = y @ self.ours.down_proj[e].T * self.weights[tokens, rank, None]
            out = out.index_add(0, tokens, y)
        return out

    def check(self, sides: dict[str, Side]) -> None:
        """All mixtures agree in values and gradients, or nothing is timed."""
        known = [name for name in sides if name in {"ours", *RARE, "grouped_mm"}]
        made, wanted = {}, None
        for name in known:
            out, given = sides[name]()
            made[name] = [out.detach(), *torch.autograd.grad(out, given, self.g)]
            wanted = wanted or made[name]
            for one, other in zip(made.pop(name), wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def _peer(backend: str, ours: Any) -> Callable[..., torch.Tensor]:
    """transformers' own dispatch around our weights."""
    from transformers.integrations import use_experts_implementation

    class Peer(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.up_proj, self.down_proj = ours.up_proj, ours.down_proj
            self.num_experts = len(ours.up_proj)
            self.act_fn = torch.nn.GELU()

        def forward(
            self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
        ) -> torch.Tensor:
            """Its documented eager loop, without a gate."""
            final = torch.zeros_like(hidden)
            with torch.no_grad():
                mask = torch.nn.functional.one_hot(index, num_classes=self.num_experts + 1)
                mask = mask.permute(2, 1, 0)
                hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
            for e in hit[:, 0]:
                rank, token = torch.where(mask[e])
                y = torch.nn.functional.linear(hidden[token], self.up_proj[e])
                y = torch.nn.functional.linear(self.act_fn(y), self.down_proj[e])
                final.index_add_(0, token, y * weights[token, rank, None])
            return final

    made = use_experts_implementation(has_gate=False)(Peer)
    config = transformers.PreTrainedConfig()
    config._experts_implementation = backend
    return made(config)  # type: ignore[no-any-return]


def measure(sides: dict[str, Side], rounds: int) -> dict[str, dict[str, float]]:
    """Least CPU and wall milliseconds of each side, rounds interleaved."""
    g: dict[str, torch.Tensor] = {}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):  # the first warms up
        for name, side in sides.items():
            if name in RARE and number > 3:
                continue
            began, busy = time.perf_counter(), time.process_time()
            out, given = side()
            gradients = torch.autograd.grad(out, given, g.setdefault(name, torch.ones_like(out)))
            if number:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - busy)
            del out, gradients
        print(f"round {number}", file=sys.stderr)
    return {
        name: {"cpu": round(1e3 * min(cpu[name]), 1), "wall": round(1e3 * min(wall[name]), 1)}
        for name in sides
    }


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """The three claims, from CPU time."""
    cpu = {name: side["cpu"] for name, side in row["ms"].items()}
    peers = [cpu[name] for name in ("eager", "grouped_mm", "batched_mm") if name in cpu]
    return {
        "dense": cpu["ours"] / cpu["dense"],
        "loop": cpu["loop"] / cpu["ours"],
        "transformers": min(peers) / cpu["ours"],
    }


def write(row: dict[str, Any]) -> None:
    """The row in place of a former one of its shape and threads; then the page."""

    def key(one: dict[str, Any]) -> tuple[int, ...]:
        return tuple(one[k] for k in ("experts", "hidden", "width", "tokens", "threads"))

    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = sorted([*(r for r in rows if key(r) != key(row)), row], key=key)
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text("\n".join(page(rows)) + "\n", encoding="utf-8")


def page(rows: list[dict[str, Any]]) -> list[str]:
    """Claims with bound and figure, then all times."""
    says = {
        "dense": "time, in that of a dense FFN of equal active work, at most",
        "loop": "times as fast as the loop over `W[e]`, at least",
        "transformers": "times as fast as the best backend of transformers, at least",
    }
    lines = ["| shape | claim | bound | found |", "|---|---|---|---|"]
    for row in rows:
        for claim, found in ratios(row).items():
            bound = f"{BOUNDS[claim]:g}" if PROMISED.items() <= row.items() else "–"
            lines.append(f"| {_shape(row)} | {says[claim]} | {bound} | {found:.2f} |")
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    lines += ["", f"| ms of CPU (wall) | {' | '.join(_shape(row) for row in rows)} |"]
    lines += ["|---" * (len(rows) + 1) + "|"]
    for name in names:
        cells = [
            f"{row['ms'][name]['cpu']:,.0f} ({row['ms'][name]['wall']:,.0f})"
            if name in row["ms"]
            else "–"
            for row in rows
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *sorted({f"Left out: {one}." for row in rows for one in row["left_out"]})]
    return lines


def _shape(row: dict[str, Any]) -> str:
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return f"E={row['experts']} d={row['hidden']} h={row['width']} T={row['tokens']}, {threads}"


if __name__ == "__main__":
    main()
