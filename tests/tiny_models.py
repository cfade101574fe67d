"""Tiny architectures of every kind the family has."""

from __future__ import annotations

from typing import Any

from suture.models import Architecture

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,  # loud, so that a difference would show
}
KINDS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "wide": {"ffn_width": 512},
    "caa": {"ffn_width": 64, "outer_ratio": 0.125},
    "cea": {"ffn_width": 64, "outer_ratio": 0.0},
    "strict": {"ffn_width": 64, "outer_ratio": 0.25, "direct_pathway": "strict"},
    "no_pathway": {"ffn_width": 64, "outer_ratio": 0.25, "direct_pathway": "none"},
    "pre_rope": {
        "ffn_width": 64, "outer_ratio": 0.5, "norm": "pre", "positions": "rope", "bias": False,
    },
    "inner_plain": {"ffn_width": 64, "outer_ratio": 0.5, "inner_residual": "none"},
    "untied": {"tie_word_embeddings": False, "activation": "silu", "norm_kind": "rms"},
    "moe": {"experts": 4},
    "moe_before": {"experts": 4, "top_k": 2, "moe_place": "before_ffn", "norm": "pre"},
    "moe_inner": {
        "experts": 4, "moe_place": "inner", "direct_pathway": "strict", "norm": "pre",
        "positions": "rope", "bias": False,
    },
    "moe_cea": {"experts": 4, "moe_place": "inner", "outer_ratio": 0.0, "top_k": 2},
}  # fmt: skip


def tiny(name: str, **changes: Any) -> Architecture:
    """The architecture of that name in `KINDS`."""
    return Architecture(**{**TINY, **KINDS[name], **changes})
