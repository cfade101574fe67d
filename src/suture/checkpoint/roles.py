"""What a tensor is, from its name alone: layer, matrix, expert, stack.

The naming habits of decoders (`layers.3.self_attn.q_proj.weight`, `h.3.attn.c_attn.weight`,
`decoder.layers.3.fc1.weight`), of mixtures of experts (`experts.5.w2.weight`), and of T5, BERT and
CLIP (`block.0.layer.1.EncDecAttention.q`, `attention.self.query`, `vision_model...out_proj`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Role:
    """Where a tensor sits.

    `layer`: index within its stack, None outside. `matrix`: q, k, v, o, gate, up, down, fc1, fc2,
    the fused qkv and gate_up, router, embed, position, token_type, patch, projection, pooler, head
    (of a classifier), lm_head, norm or other (biases included). `expert`: index of the expert it
    belongs to. `stack`: encoder, decoder, text, vision or audio where the name says so, else empty.
    """

    layer: int | None
    matrix: str
    expert: int | None = None
    stack: str = ""


_LAYER = re.compile(
    r"^(?P<stack>(?:.*?\.)?(?:layers|h|blocks|block|layer))\.(?P<n>\d+)\.(?P<rest>.+)$"
)
_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_STACKS = re.compile(r"(?:^|\.)(text|vision|audio|encoder|decoder)(?=[._]|$)")
_MATRICES: list[tuple[str, str]] = [
    (r"(^|\.)(q_proj|q|query)$", "q"),
    (r"(^|\.)(k_proj|k|key)$", "k"),
    (r"(^|\.)(v_proj|v|value)$", "v"),
    (r"(self_attn|attn|attention)\.(o_proj|out_proj|dense|c_proj|wo)$", "o"),
    (r"Attention\.o$|(^|\.)attention\.output\.dense$", "o"),
    (r"(^|\.)(c_attn|qkv_proj|query_key_value|Wqkv|W_pack)$", "qkv"),
    (r"(^|\.)(block_sparse_moe|mlp|feed_forward|moe|inner)\.(gate|router)$", "router"),
    (r"(^|\.)shared_expert_gate$", "router"),
    (r"(^|\.)gate_up_proj$", "gate_up"),
    (r"(^|\.)(gate_proj|w1|wi_0)$", "gate"),
    (r"(^|\.)(up_proj|w3|wi|wi_1)$", "up"),
    (r"(^|\.)(down_proj|w2)$|(^|\.)DenseReluDense\.wo$", "down"),
    (r"(^|\.)(fc1|c_fc|fc_in|dense_h_to_4h|intermediate\.dense)$", "fc1"),
    (r"(^|\.)(fc2|fc_out|dense_4h_to_h|output\.dense)$", "fc2"),
    (r"mlp\.c_proj$", "fc2"),
    (r"(^|\.)(wpe|embed_positions|position_embeddings?|relative_attention_bias)$", "position"),
    (r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)$", "embed"),
    (r"(^|\.)token_embedding$|^shared$", "embed"),
    (r"(^|\.)token_type_embeddings$", "token_type"),
    (r"(^|\.)patch_embedding$", "patch"),
    (r"(^|\.)(visual_projection|text_projection|project_in|project_out)$", "projection"),
    (r"(^|\.)pooler\.dense$", "pooler"),
    (r"(^|\.)(transform\.dense|seq_relationship|classifier|score|qa_outputs)$", "head"),
    (r"^(lm_head|embed_out|output)$|(^|\.)predictions\.decoder$", "lm_head"),
    (
        r"(^|[._])(norm|layernorm|layer_norm\d?|ln_\w+|ln\d?|q_norm|k_norm|final_layer_norm)$",
        "norm",
    ),
    (r"(norm|LayerNorm|layrnorm)$", "norm"),
]
_COMPILED = [(re.compile(pattern), matrix) for pattern, matrix in _MATRICES]
_KNOWN = 1 << 17  # names whose reading is remembered: each is asked for by every check
_FUSED = re.compile(r"(^|\.)experts\.(gate_up_proj|gate_proj|up_proj|down_proj)$")  # no ".weight"


@lru_cache(_KNOWN)
def split_layer(name: str) -> tuple[str, int, str] | None:
    """(stack, layer, rest) of a tensor inside a layer stack, None outside."""
    found = _LAYER.match(name)
    return (found["stack"], int(found["n"]), found["rest"]) if found else None


@lru_cache(_KNOWN)
def role(name: str) -> Role:
    """The role of one tensor, from its own name."""
    parts = split_layer(name)
    layer, rest = (parts[1], parts[2]) if parts else (None, name)
    # A decoder that is all there is says so in its stack's name too (OPT); harmless.
    stack = _STACKS.search(parts[0] if parts else name)
    expert = _EXPERT.search(rest)
    return Role(
        layer,
        _matrix(rest),
        int(expert[1]) if expert else None,
        stack[1] if stack else "",
    )


def roles(names: Iterable[str]) -> dict[str, Role]:
    """The role of every tensor, in the given order."""
    return {name: role(name) for name in names}


def _matrix(rest: str) -> str:
    module, _, leaf = rest.rpartition(".")
    if _FUSED.search(rest):
        module = rest
    elif leaf not in ("weight", "gamma"):  # gamma: a LayerNorm's weight in old BERT files
        return "other"
    return next((matrix for pattern, matrix in _COMPILED if pattern.search(module)), "other")
