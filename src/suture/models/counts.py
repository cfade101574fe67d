"""How many parameters a model has, by formula: what `plan` prints before torch is imported.

Checked against the built models and against the sizes that the papers report (CEA sections 5 and 8,
TCD section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

from suture.models.architecture import Architecture, Kind


@dataclass(frozen=True)
class Parameters:
    """`total`: all of them, tied ones once. `active`: those that one token meets, its k experts
    instead of all. `embedding`: tables of tokens and positions, an untied head included."""

    total: int
    active: int
    embedding: int


def parameters(arch: Architecture, kind: Kind) -> Parameters:
    """Parameters of the decoder or encoder of this architecture."""
    d, norm = arch.hidden_size, _norm(arch)
    embedding = arch.vocab_size * d * (1 if arch.tie_word_embeddings else 2)
    if arch.positions == "learned":
        embedding += arch.max_position_embeddings * d
    shared = embedding + norm  # behind the embedding (post-norm), or at the end (pre-norm)
    if kind == "encoder":
        shared += d * d + d + norm + arch.vocab_size
    layer = 4 * _linear(d, d, arch.bias) + norm
    if arch.inner_width:
        layer += _ffn(arch, arch.inner_width)
    if arch.has_inner and arch.residual_of_inner == "add_norm":
        layer += norm
    if arch.outer_width:
        layer += norm
        if not (arch.experts and arch.moe_place == "outer"):
            layer += _ffn(arch, arch.outer_width)
    expert = _ffn(arch, arch.width_of_expert)
    if arch.experts:
        layer += arch.experts * d + (norm if arch.moe_place == "before_ffn" else 0)
    dense = shared + arch.num_hidden_layers * layer
    return Parameters(
        total=dense + arch.num_hidden_layers * arch.experts * expert,
        active=dense + arch.num_hidden_layers * min(arch.top_k, arch.experts) * expert,
        embedding=embedding,
    )


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _ffn(arch: Architecture, width: int) -> int:
    """Of a feed-forward network or of one expert: two matrices, none of them gated."""
    d = arch.hidden_size
    return _linear(d, width, arch.bias) + _linear(width, d, arch.bias)


def _norm(arch: Architecture) -> int:
    return arch.hidden_size * (2 if arch.kind_of_norm == "layer" else 1)
