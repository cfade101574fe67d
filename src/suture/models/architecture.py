"""What one of our models is, in numbers and choices: checked before torch is imported.

One family, two heads. A block mixes positions (attention) and then transforms each of them alone
(feed-forward network or mixture of experts). CEA (arXiv 2403.02436, NeurIPS 2024) moves a part of
the transformation into attention, in front of keys and values; TCD (arXiv 2403.01994) replaces it
by experts. Vanilla and FFN-Wider are the same family with `outer_ratio` 1 and no experts.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from suture.config import FrozenConfig
from suture.errors import SutureError

DirectPathway = Literal["exact", "strict", "none"]
InnerResidual = Literal["none", "add", "add_norm"]
Kind = Literal["decoder", "encoder"]

_WHOLE = 1e-6  # how far r x width may be from a whole number: 0.1 has no exact float


class Architecture(FrozenConfig):
    """One model of the family; the defaults are the paper's small BERT and GPT (its appendix).

    Symbols of the paper: d = `hidden_size`, r = `outer_ratio`, E = `experts`. Raises SutureError
    E970 (heads), E971 (experts), E972 (widths that are not whole), E973 (parts that contradict
    each other), E701 and E702 (keys and values).
    """

    vocab_size: int = Field(30522, ge=1, description="Rows of the embedding.")
    hidden_size: int = Field(128, ge=1, description="Width d of the residual stream.")
    num_hidden_layers: int = Field(12, ge=1, description="Blocks L.")
    num_attention_heads: int = Field(2, ge=1, description="Heads; they divide d.")
    ffn_width: int | None = Field(
        None, ge=1, description="Total FFN width: 4d (the default) is vanilla, 32d FFN-Wider."
    )
    outer_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share r of the FFN width at its usual place; the rest is inside attention. "
        "1: no inner FFN (vanilla, FFN-Wider); 0: no outer one, nor its residual and norm.",
    )
    direct_pathway: DirectPathway = Field(
        "exact",
        description="What a position sees of itself where attention has an inner part. exact: its "
        "raw input; strict: nothing (the MoE experiments); none: inner output like any other.",
    )
    inner_residual: InnerResidual | None = Field(
        None,
        description="none: f(x), add: x + f(x), add_norm: norm(x + f(x)). Default add_norm for "
        "post-norm, add for pre-norm (inferred: the text leaves it open).",
    )
    norm: Literal["post", "pre"] = Field(
        "post", description="Norm after each residual add, or before each branch and at the end."
    )
    norm_kind: Literal["layer", "rms"] | None = Field(
        None, description="LayerNorm or RMSNorm; by default layer for post-norm, rms for pre-norm."
    )
    norm_eps: float = Field(1e-6, gt=0, description="Added to the variance in every norm.")
    positions: Literal["rope", "learned"] = Field("learned", description="Position encoding.")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies.")
    max_position_embeddings: int = Field(128, ge=1, description="Longest sequence, in tokens.")
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = Field(
        "gelu", description="Between the two matrices of FFN and experts; none of them is gated."
    )
    bias: bool = Field(True, description="Biases in attention, FFN and experts.")
    tie_word_embeddings: bool = Field(True, description="Output head and embedding are one tensor.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropped share of each branch's output.")
    initializer_range: float = Field(0.02, gt=0, description="Standard deviation at the start.")
    experts: int = Field(0, ge=0, le=1 << 16, description="Experts E of a mixture; 0: none.")
    top_k: int = Field(1, ge=1, description="Experts that each token goes to.")
    expert_width: int | None = Field(
        None,
        ge=1,
        description="Width of one expert. By default that of the FFN it stands for, and d where it "
        "stands for none.",
    )
    moe_place: Literal["outer", "inner", "before_ffn"] = Field(
        "outer",
        description="outer: experts instead of the outer FFN (TCD's student). inner: experts in "
        "attention (CEA's MoE version). before_ffn: a further layer in front of the FFN (its "
        "baseline).",
    )
    balance_weight: float = Field(0.01, ge=0, description="Weight of the balance loss.")
    z_weight: float = Field(0.0, ge=0, description="Weight of the router z-loss; 1e-3 is usual.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        d, heads = self.hidden_size, self.num_attention_heads
        if d % heads:
            raise SutureError(
                "E970",
                f"{heads} heads do not divide a hidden size of {d}",
                where="num_attention_heads",
                fix=f"use one of: {', '.join(str(n) for n in _divisors(d))}",
            )
        if self.positions == "rope" and self.head_size % 2:
            raise SutureError(
                "E970",
                f"a head has an odd width of {self.head_size}, and RoPE turns pairs",
                where="num_attention_heads",
                fix="use another number of heads, or positions: learned",
            )
        if self.experts and self.top_k > self.experts:
            raise SutureError(
                "E971",
                f"each token is to go to {self.top_k} experts, and there are {self.experts}",
                where="top_k",
                fix=f"use top_k: {self.experts} or less",
            )
        whole = self.outer_ratio * self.total_width
        if abs(whole - round(whole)) > _WHOLE * self.total_width:
            raise SutureError(
                "E972",
                f"an outer ratio of {self.outer_ratio:g} splits an FFN of {self.total_width} into "
                f"{whole:g} and {self.total_width - whole:g}",
                where="outer_ratio",
                fix=f"use {round(whole)}/{self.total_width} = {round(whole) / self.total_width!r}",
            )
        if self.experts and self.moe_place == "outer" and not self.outer_width:
            raise SutureError(
                "E973",
                "the experts are to stand for the outer FFN, and outer_ratio 0 leaves none",
                where="moe_place",
                fix="use moe_place: inner",
            )
        return self

    # --- widths ---

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def total_width(self) -> int:
        """Inner and outer FFN together."""
        return self.ffn_width or 4 * self.hidden_size

    @property
    def outer_width(self) -> int:
        """h_out = r x total width; 0: no outer sub-layer."""
        return round(self.outer_ratio * self.total_width)

    @property
    def inner_width(self) -> int:
        """h_in = (1 - r) x total width, the dense FFN inside attention; 0 where there is none.

        Experts inside attention stand in its place.
        """
        return 0 if self.inner_experts else self.total_width - self.outer_width

    @property
    def width_of_expert(self) -> int:
        """Width h of one expert."""
        if self.expert_width:
            return self.expert_width
        stands_for = {"outer": self.outer_width, "inner": self.total_width - self.outer_width}
        return stands_for.get(self.moe_place, 0) or self.hidden_size

    # --- what there is ---

    @property
    def inner_experts(self) -> bool:
        """Whether the inner part of attention is a mixture."""
        return self.experts > 0 and self.moe_place == "inner"

    @property
    def has_inner(self) -> bool:
        """Whether something transforms what keys and values are made of."""
        return self.inner_experts or self.inner_width > 0

    @property
    def residual_of_inner(self) -> InnerResidual:
        """`inner_residual`, or its default."""
        return self.inner_residual or ("add_norm" if self.norm == "post" else "add")

    @property
    def kind_of_norm(self) -> Literal["layer", "rms"]:
        """`norm_kind`, or its default."""
        return self.norm_kind or ("layer" if self.norm == "post" else "rms")


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, min(n, 256) + 1) if n % k == 0]
