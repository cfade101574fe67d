"""One block: mix positions, then transform each of them alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from suture.lazy import torch
from suture.models.architecture import Architecture
from suture.models.attention import Attention
from suture.models.layers import FeedForward, Rotary, norm
from suture.models.moe import MoE
from suture.models.outputs import Notes

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


class Block(torch.nn.Module):
    """h → a (attention) → with `before_ffn` a further mixture → m (outer FFN or mixture).

    post-norm: s ← norm(s + branch(s)); pre-norm: s ← s + branch(norm(s)). At outer ratio 0 the last
    step is missing with its residual and norm (inferred), and m = a.
    """

    def __init__(self, arch: Architecture, layer: int, *, causal: bool, fused: bool) -> None:
        super().__init__()
        self.post = arch.norm == "post"
        mixture = arch.moe_place if arch.experts else None
        self.self_attn = Attention(arch, layer, causal=causal, fused=fused)
        self.attn_norm = norm(arch)
        self.moe = MoE(arch) if mixture == "before_ffn" else None
        self.moe_norm = norm(arch) if self.moe is not None else None
        self.mlp: torch.nn.Module | None = None
        if arch.outer_width:
            self.mlp = MoE(arch) if mixture == "outer" else FeedForward(arch, arch.outer_width)
        self.mlp_norm = norm(arch) if self.mlp is not None else None
        self.dropout = torch.nn.Dropout(arch.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotary: Rotary | None = None,
        past_key_values: Cache | None = None,
        notes: Notes | None = None,
    ) -> torch.Tensor:
        """batch x n x d → the same. `attention_mask`: `visible` of `attention`."""
        notes = Notes() if notes is None else notes
        h = hidden_states
        branch = self.self_attn(
            self._before(h, self.attn_norm), attention_mask, rotary, past_key_values, notes
        )
        a = notes.state("a", self._add(h, notes.state("branch_a", branch), self.attn_norm))
        s = a
        if self.moe is not None and self.moe_norm is not None:
            s = self._add(s, self.moe(self._before(s, self.moe_norm), notes), self.moe_norm)
        if self.mlp is not None and self.mlp_norm is not None:
            x = self._before(s, self.mlp_norm)
            branch = self.mlp(x, notes) if isinstance(self.mlp, MoE) else self.mlp(x)
            s = self._add(s, notes.state("branch_m", branch), self.mlp_norm)
        return notes.state("m", s)

    def _before(self, s: torch.Tensor, its: torch.nn.Module) -> torch.Tensor:
        return s if self.post else cast("torch.Tensor", its(s))

    def _add(self, s: torch.Tensor, branch: torch.Tensor, its: torch.nn.Module) -> torch.Tensor:
        s = s + self.dropout(branch)
        return cast("torch.Tensor", its(s)) if self.post else s
