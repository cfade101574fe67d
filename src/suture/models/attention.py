"""Attention whose keys and values may come from an inner part, with a direct pathway (CEA).

Symbols of CEA, section 3.1: x the input, g = inner(x); per head q = W_q x, kG = W_k g, vG = W_v g
for other positions, and kR = W_k x, vR = W_v x for the own one. Sharing W_k and W_v between the two
is inferred. Shapes: q, kR, vR batch x heads x n x head width, kG, vG batch x heads x m x head
width; the n queries are the last of the m positions. `visible`: batch or 1 x 1 x n x m, True where
a query may look; None: everywhere, or for a decoder everything up to itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from suture.lazy import torch
from suture.models.architecture import Architecture
from suture.models.fused import attention, is_short
from suture.models.layers import FeedForward, Rotary, norm, rotate
from suture.models.outputs import Notes
from suture.models.products import Linear

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


class Attention(torch.nn.Module):
    """One sub-layer without its residual: queries from x, keys and values from inner(x).

    `fused`: through torch's scaled_dot_product_attention, else by matrices that are written out.
    """

    def __init__(self, arch: Architecture, layer: int, *, causal: bool, fused: bool) -> None:
        super().__init__()
        d, self.arch, self.layer, self.causal, self.fused = (
            arch.hidden_size, arch, layer, causal, fused,
        )  # fmt: skip
        self.q_proj = Linear(d, d, bias=arch.bias)
        self.k_proj = Linear(d, d, bias=arch.bias)
        self.v_proj = Linear(d, d, bias=arch.bias)
        self.o_proj = Linear(d, d, bias=arch.bias)
        self.inner = _inner(arch)
        self.inner_norm = (
            norm(arch) if self.inner is not None and arch.residual_of_inner == "add_norm" else None
        )

    def forward(
        self,
        x: torch.Tensor,
        visible: torch.Tensor | None,
        rotary: Rotary | None,
        cache: Cache | None,
        notes: Notes,
    ) -> torch.Tensor:
        """batch x n x d → the same. Of earlier positions only kG and vG are kept in `cache`."""
        g = x if self.inner is None else self._transformed(x, notes)
        q = notes.state("q", rotate(self._heads(self.q_proj(x)), rotary))
        kG = notes.state("k", rotate(self._heads(self.k_proj(g)), rotary))
        vG = self._heads(self.v_proj(g))
        if cache is not None:
            so_far = int(cache.get_seq_length(self.layer)) + x.shape[1]
            kG, vG = cache.update(kG, vG, self.layer)
            # a static cache gives all its room, and behind what is filled there are zeros
            kG, vG = kG[:, :, :so_far], vG[:, :, :so_far]
        if self.inner is None or self.arch.direct_pathway == "none":
            attend = plain_fused if self.fused else plain
            o = attend(q, kG, vG, visible, causal=self.causal)
        elif self.arch.direct_pathway == "strict":
            others = strict_fused if self.fused else strict
            o = others(q, kG, vG, visible, causal=self.causal)
        else:
            kR, vR = rotate(self._heads(self.k_proj(x)), rotary), self._heads(self.v_proj(x))
            direct = direct_joined if self.fused and not is_short(kG) else direct_dense
            o = direct(q, kG, vG, kR, vR, visible, causal=self.causal)
        return cast("torch.Tensor", self.o_proj(o.transpose(1, 2).flatten(2)))

    def _transformed(self, x: torch.Tensor, notes: Notes) -> torch.Tensor:
        """g: the inner part with its own residual (open in the paper's text)."""
        assert self.inner is not None
        from suture.models.moe import MoE

        f = self.inner(x, notes) if isinstance(self.inner, MoE) else self.inner(x)
        if self.arch.residual_of_inner == "none":
            return cast("torch.Tensor", f)
        g: torch.Tensor = x + f
        return g if self.inner_norm is None else cast("torch.Tensor", self.inner_norm(g))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        split = (self.arch.num_attention_heads, self.arch.head_size)
        return x.view(*x.shape[:-1], *split).transpose(1, 2)


def _inner(arch: Architecture) -> torch.nn.Module | None:
    if arch.inner_experts:
        from suture.models.moe import MoE

        return MoE(arch)
    return FeedForward(arch, arch.inner_width) if arch.inner_width else None


# --- attention as usual ---


def plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None, *, causal: bool
) -> torch.Tensor:
    """softmax(QKᵀ/√dh) V; a query that sees nothing gets zero."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return _softmax(scores, _mask(q, k, visible, causal)) @ v


def plain_fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None, *, causal: bool
) -> torch.Tensor:
    """The same by torch's kernels."""
    if visible is None and causal and 1 < q.shape[2] < k.shape[2]:
        visible = _mask(q, k, None, causal)  # torch's is_causal would count from the first key
    return attention(q, k, v, visible, causal=visible is None and causal and q.shape[2] > 1)


# --- strict: a query sees others only (CEA section 5, the MoE experiments) ---


def strict(
    q: torch.Tensor, kG: torch.Tensor, vG: torch.Tensor, visible: torch.Tensor | None, *,
    causal: bool,
) -> torch.Tensor:  # fmt: skip
    """The diagonal masked. The first token of a causal model sees nothing and gets zero (inferred);
    a softmax over nothing would be NaN."""
    others = _mask(q, kG, visible, causal)
    own = _own(q, kG)
    return plain(q, kG, vG, ~own if others is None else others & ~own, causal=False)


def strict_fused(
    q: torch.Tensor, kG: torch.Tensor, vG: torch.Tensor, visible: torch.Tensor | None, *,
    causal: bool,
) -> torch.Tensor:  # fmt: skip
    """The same; for a causal model by shifting, O[0] = 0, O[1:] = attention(Q[1:], KG[:-1], ...),
    so that a kernel without a mask can do it."""
    if visible is not None or not causal:
        own = _own(q, kG)
        return plain_fused(q, kG, vG, ~own if visible is None else visible & ~own, causal=False)
    first = q.shape[2] == kG.shape[2]  # the first query is the first token: nothing before it
    rest = q[:, :, 1:] if first else q
    if not rest.shape[2]:
        return torch.zeros_like(q)
    o = plain_fused(rest, kG[:, :, :-1], vG[:, :, :-1], None, causal=True)
    return torch.nn.functional.pad(o, (0, 0, 1, 0)) if first else o


# --- exact: a query sees its raw self and the others' inner output (CEA section 3.1) ---


def direct_dense(
    q: torch.Tensor, kG: torch.Tensor, vG: torch.Tensor, kR: torch.Tensor, vR: torch.Tensor,
    visible: torch.Tensor | None, *, causal: bool,
) -> torch.Tensor:  # fmt: skip
    """Form (a): S = Q KGᵀ with diag(S) ← rowsum(Q∘KR); O = P VG + diag(P)(VR - VG)."""
    n, m = q.shape[2], kG.shape[2]
    scale, own = q.shape[-1] ** -0.5, _own(q, kG)
    scores = torch.where(own, (q * kR).sum(-1, keepdim=True), q @ kG.transpose(-1, -2)) * scale
    p = _softmax(scores, _mask(q, kG, visible, causal))
    diagonal = p.diagonal(m - n, dim1=-2, dim2=-1).unsqueeze(-1)
    return p @ vG + diagonal * (vR - vG[:, :, m - n :])


def direct_joined(
    q: torch.Tensor, kG: torch.Tensor, vG: torch.Tensor, kR: torch.Tensor, vR: torch.Tensor,
    visible: torch.Tensor | None, *, causal: bool,
) -> torch.Tensor:  # fmt: skip
    """Form (b) for fused kernels, which give no differentiable log-sum-exp: the raw keys stand
    behind the inner ones, and each query sees the others of the former and its own of the latter.
    """
    n, m = q.shape[2], kG.shape[2]
    if n == 1:  # decoding: the last inner key is the query's own, the raw one takes its place
        k, v = torch.cat((kG[:, :, :-1], kR), dim=2), torch.cat((vG[:, :, :-1], vR), dim=2)
        return plain_fused(q, k, v, visible, causal=False)
    sees, own = _mask(q, kG, visible, causal), _own(q, kG)
    others = ~own if sees is None else sees & ~own
    itself = own[..., m - n :].expand(*others.shape[:-1], n)
    k, v = torch.cat((kG, kR), dim=2), torch.cat((vG, vR), dim=2)
    return plain_fused(q, k, v, torch.cat((others, itself), dim=-1), causal=False)


# --- masks ---


def _own(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """n x m, True where query and key are one position."""
    n, m = q.shape[2], k.shape[2]
    return torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n).triu(m - n)


def _mask(
    q: torch.Tensor, k: torch.Tensor, visible: torch.Tensor | None, causal: bool
) -> torch.Tensor | None:
    """`visible`, or what None stands for."""
    if visible is not None or not causal:
        return visible
    n, m = q.shape[2], k.shape[2]
    return torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)


def _softmax(scores: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """Softmax over what is visible, in float32 or better; zero where nothing is."""
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if visible is None:
        return exact.softmax(-1).to(scores.dtype)
    p = exact.masked_fill(~visible, torch.finfo(exact.dtype).min).softmax(-1)
    return p.masked_fill(~visible, 0.0).to(scores.dtype)
