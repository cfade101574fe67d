"""Fast experts: sort tokens by expert, two grouped products, weigh, put back (moe-kernels spec).

Differentiating `W[e]` in a loop allocates a gradient of all experts for each of them, which is what
makes loops slow. Here the weights of all experts are one tensor and get one gradient, whether the
products are torch's grouped kernel (GPU, bfloat16) or run one expert at a time (float32 on a CPU,
where that is faster, and wherever the kernel cannot): the same numbers to rounding.
"""

from __future__ import annotations

from typing import Any

from suture.lazy import torch
from suture.models.architecture import Architecture
from suture.models.layers import activation
from suture.models.products import gradient_into, has_onednn, product_for


class Experts(torch.nn.Module):
    """E networks down_e(act(up_e(x))) of width h in two fused tensors, as on disk.

    `up_proj`: E x h x d, `down_proj`: E x d x h, `up_bias`: E x h, `down_bias`: E x d.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        E, d, h = arch.experts, arch.hidden_size, arch.width_of_expert
        self.act = activation(arch)
        self.up_proj = torch.nn.Parameter(torch.empty(E, h, d))
        self.down_proj = torch.nn.Parameter(torch.empty(E, d, h))
        self.up_bias = torch.nn.Parameter(torch.zeros(E, h)) if arch.bias else None
        self.down_bias = torch.nn.Parameter(torch.zeros(E, d)) if arch.bias else None
        for weight in (self.up_proj, self.down_proj):
            torch.nn.init.normal_(weight, std=arch.initializer_range)

    def forward(
        self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """x: T x d; `experts`, `weights`: T x k. Σ_k weight · expert(x), T x d in x's dtype."""
        k = experts.shape[1]
        by_expert = experts.flatten()
        counts = torch.bincount(by_expert, minlength=len(self.up_proj))
        one_by_one = has_onednn(x, self.up_proj)
        step = _step(len(by_expert) // len(counts)) if one_by_one else 1
        taken = (counts + step - 1) // step * step if one_by_one else counts
        rows, expert = _rows(by_expert, counts, taken)
        R = int(taken.sum()) if one_by_one else len(rows)
        ends = taken.cumsum(0)
        y = _Dispatch.apply(x, rows, R, k)  # type: ignore[no-untyped-call]
        y = self.act(_biased(grouped(y, self.up_proj, ends), self.up_bias, expert))
        y = _biased(grouped(y, self.down_proj, ends), self.down_bias, expert)
        made: torch.Tensor = _Combine.apply(y, rows, R, k)  # type: ignore[no-untyped-call]
        made = made * weights[..., None].to(made.dtype)
        return _summed(made).to(x.dtype)


def _step(mean: int) -> int:
    """What an expert's rows are rounded up to, the rest zero.

    oneDNN compiles a product for every number of rows, a millisecond each, and few of them are kept
    (`suture.lazy`). An eighth of the mean, or 16, leaves a handful of numbers for little more work.
    """
    return 8 if mean < 32 else max(16, 1 << (mean // 8).bit_length() - 1)


def _rows(
    by_expert: torch.Tensor, counts: torch.Tensor, taken: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The row of each assignment where experts have `taken` rows each, and the expert of each row.

    Assignments of one expert stay in order; rows that none takes are at an expert's end.
    """
    order = by_expert.argsort(stable=True)
    sorted_ = by_expert[order]
    place = torch.arange(len(order), device=order.device)
    rows = torch.empty_like(order)
    rows[order] = place - (counts.cumsum(0) - counts - taken.cumsum(0) + taken)[sorted_]
    same = taken is counts
    every = torch.arange(len(counts), device=order.device)
    return rows, sorted_ if same else every.repeat_interleave(taken)


def _biased(y: torch.Tensor, bias: torch.Tensor | None, expert: torch.Tensor) -> torch.Tensor:
    return y if bias is None else y + bias[expert]


def grouped(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """x: T x i, sorted by expert; `weight`: E x o x i; `ends`: where each expert's rows end. T x o.

    One product per expert where oneDNN's is at hand, which is faster on a CPU; else torch's grouped
    kernel where it can.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):  # the kernel does not know autocast
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    if not has_onednn(x, weight) and has_kernel(x, weight):
        return torch.nn.functional.grouped_mm(
            x, weight.transpose(-1, -2), offs=ends.to(torch.int32)
        )
    made: torch.Tensor = _OneByOne.apply(x, weight, ends)  # type: ignore[no-untyped-call]
    return made


def has_kernel(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether torch's `grouped_mm` takes these.

    On a CPU it takes all floats, on a GPU (compute capability 8 and up) bfloat16. All strides, and
    on a CPU the first byte, must be multiples of 16 bytes.
    """
    steps = (x.shape[-1], weight.shape[-1], weight.shape[-2])
    odd = any(n * x.element_size() % 16 for n in steps)
    if odd or x.dtype != weight.dtype or not hasattr(torch.nn.functional, "grouped_mm"):
        return False
    if x.device.type == "cuda":
        capable = torch.cuda.get_device_capability(x.device) >= (8, 0)
        return capable and x.dtype == torch.bfloat16
    return x.device.type == "cpu" and not (x.data_ptr() % 16 or weight.data_ptr() % 16)


class _OneByOne(torch.autograd.Function):
    """The grouped product expert by expert, on views of one tensor, into one gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
        product = product_for(x, weight)
        out = x.new_empty(len(x), weight.shape[1])
        for xe, w, ye in zip(
            x.split_with_sizes(ctx.sizes),
            weight.unbind(0),
            out.split_with_sizes(ctx.sizes),
            strict=True,
        ):
            if len(xe):
                ye.copy_(product(xe, w))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,), (x, weight) = grads, ctx.saved_tensors
        product = product_for(g, weight)
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        parts = (
            g.split_with_sizes(ctx.sizes),
            x.split_with_sizes(ctx.sizes),
            dx.split_with_sizes(ctx.sizes),
        )
        for ge, xe, dxe, w, dw in zip(*parts, weight.unbind(0), dweight.unbind(0), strict=True):
            if len(xe):
                dxe.copy_(product(ge, w.T))
                gradient_into(dw, ge, xe, product)
            else:
                dw.zero_()
        return dx, dweight, None


def _summed(y: torch.Tensor) -> torch.Tensor:
    """T x k x d to T x d."""
    return y[:, 0] if y.shape[1] == 1 else y.sum(1)


class _Dispatch(torch.autograd.Function):
    """T x d to R rows: each token in the rows of its k assignments, zero in rows that none takes.

    The adjoint of `_Combine`. A plain index would sum its gradient with atomic additions, whose
    order a GPU does not fix.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor, R: int, k: int) -> Any:
        ctx.save_for_backward(rows)
        ctx.k = k
        x = x if k == 1 else x.repeat_interleave(k, dim=0)
        made = x.new_empty(R, x.shape[-1]) if len(x) == R else x.new_zeros(R, x.shape[-1])
        return made.index_copy_(0, rows, x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (rows,) = ctx.saved_tensors
        dx = _Combine.apply(grads[0], rows, len(grads[0]), ctx.k)  # type: ignore[no-untyped-call]
        return _summed(dx), None, None, None


class _Combine(torch.autograd.Function):
    """R rows to T x k x d: the rows of each token's assignments."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, rows: torch.Tensor, R: int, k: int) -> Any:
        ctx.save_for_backward(rows)
        ctx.R = R
        return y.index_select(0, rows).view(-1, k, y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (rows,) = ctx.saved_tensors
        flat = grads[0].reshape(-1, grads[0].shape[-1])
        dy = _Dispatch.apply(flat, rows, ctx.R, 1)  # type: ignore[no-untyped-call]
        return dy, None, None, None
