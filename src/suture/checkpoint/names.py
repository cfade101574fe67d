"""What a tensor is, from its name alone: layer, matrix, ties, and what a checkpoint lacks.

Three naming families cover nearly every decoder: Llama-like (`layers.3.self_attn.q_proj.weight`),
GPT-2-like (`h.3.attn.c_attn.weight`) and OPT-like (`decoder.layers.3.fc1.weight`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Role:
    """Where a tensor sits. `layer`: index or None outside the stack. `matrix`: q, k, v, o, gate,
    up, down, fc1, fc2, qkv (fused), embed, lm_head, norm or other (biases included)."""

    layer: int | None
    matrix: str


_LAYER = re.compile(
    r"^(?P<stack>(?:.*?\.)?(?:layers|h|blocks|block|layer))\.(?P<n>\d+)\.(?P<rest>.+)$"
)
_MATRICES: list[tuple[str, str]] = [
    (r"(^|\.)q_proj$", "q"),
    (r"(^|\.)k_proj$", "k"),
    (r"(^|\.)v_proj$", "v"),
    (r"(self_attn|attn|attention)\.(o_proj|out_proj|dense|c_proj|wo)$", "o"),
    (r"(^|\.)(c_attn|qkv_proj|query_key_value|Wqkv|W_pack)$", "qkv"),
    (r"(^|\.)(gate_proj|w1)$", "gate"),
    (r"(^|\.)(up_proj|w3)$", "up"),
    (r"(^|\.)(down_proj|w2)$", "down"),
    (r"(^|\.)(fc1|c_fc|fc_in|dense_h_to_4h)$", "fc1"),
    (r"(^|\.)(fc2|fc_out|dense_4h_to_h)$", "fc2"),
    (r"mlp\.c_proj$", "fc2"),
    (r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)$", "embed"),
    (r"^(lm_head|embed_out|output)$", "lm_head"),
    (r"(^|[._])(norm|layernorm|layer_norm|ln_\w+|ln\d?|q_norm|k_norm|final_layer_norm)$", "norm"),
    (r"norm$", "norm"),
]
_COMPILED = [(re.compile(pattern), matrix) for pattern, matrix in _MATRICES]

# Decoders whose every layer holds the same tensors, so that any difference is a fault.
UNIFORM = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 phi phi3 gpt2 opt olmo olmo2 stablelm starcoder2 "
    "bloom granite cohere gpt_neox smollm3 gpt_bigcode codegen gptj".split()
)


def split_layer(name: str) -> tuple[str, int, str] | None:
    """(stack, layer, rest) of a tensor inside a layer stack, None outside."""
    found = _LAYER.match(name)
    return (found["stack"], int(found["n"]), found["rest"]) if found else None


def role(name: str) -> Role:
    """The role of one tensor, from its own name."""
    parts = split_layer(name)
    layer, rest = (parts[1], parts[2]) if parts else (None, name)
    module, _, leaf = rest.rpartition(".")
    if leaf != "weight":
        return Role(layer, "other")
    for pattern, matrix in _COMPILED:
        if pattern.search(module):
            return Role(layer, matrix)
    return Role(layer, "other")


def roles(names: Iterable[str]) -> dict[str, Role]:
    """The role of every tensor, in the given order."""
    return {name: role(name) for name in names}


def is_causal(config: Mapping[str, Any]) -> bool:
    """Whether the config declares a language model with an output head."""
    names = [str(name) for name in config.get("architectures") or []]
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def layer_count(config: Mapping[str, Any]) -> int | None:
    """Number of layers the config declares, None when it does not say."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
            if type(part.get(key)) is int:
                return int(part[key])
    return None


def missing_and_extra(
    names: Iterable[str], config: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Tensors that the checkpoint's own names show to be missing, and those that do not belong.

    Holes in the layer numbering; layers the config declares and nobody stored; a layer without a
    matrix that its siblings have; no embedding; no output head where the config unties it.
    Architectures whose layers differ by design are checked only within attention and within the
    feed-forward part. The exact comparison with the model class is the loader's.
    """
    known = list(names)
    stacks: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in known:
        parts = split_layer(name)
        if parts:
            stacks[parts[0]][parts[1]].add(parts[2])
    uniform = config.get("model_type") in UNIFORM
    missing: list[str] = []
    extra: list[str] = []
    for stack, layers in stacks.items():
        declared = layer_count(config) if uniform else None
        count = declared if declared is not None else max(layers) + 1
        for index in range(count):
            if index not in layers:
                missing.append(f"{stack}.{index}.*")
        extra += [f"{stack}.{index}.*" for index in sorted(layers) if index >= count]
        for rest, holders in _holders(layers).items():
            absent = [index for index in sorted(layers) if index not in holders]
            if not uniform:
                absent = [index for index in absent if _is_partial(layers[index], rest)]
            if role(f"{stack}.0.{rest}").matrix == "other" and len(holders) < len(absent):
                extra += [f"{stack}.{index}.{rest}" for index in sorted(holders)]
            else:
                missing += [f"{stack}.{index}.{rest}" for index in absent]
    if not stacks and (layer_count(config) or 0) > 0 and uniform:
        missing.append("every layer")
    found = {role(name).matrix for name in known}
    if uniform and "embed" not in found:
        missing.append("the token embedding (embed_tokens.weight, wte.weight, …)")
    causal = is_causal(config)
    if uniform and causal and config.get("tie_word_embeddings") is False and "lm_head" not in found:
        missing.append("lm_head.weight (the config says it is not tied to the embedding)")
    return missing, extra


def _holders(layers: Mapping[int, set[str]]) -> dict[str, set[int]]:
    holders: dict[str, set[int]] = defaultdict(set)
    for index, rests in layers.items():
        for rest in rests:
            holders[rest].add(index)
    return holders


_GROUPS = ({"q", "k", "v", "o"}, {"gate", "up", "down"}, {"fc1", "fc2"})


def _is_partial(layer: set[str], rest: str) -> bool:
    """Whether a layer without the matrix `rest` has others of the same block."""
    matrix, block = role(f"layers.0.{rest}").matrix, rest.rsplit(".", 2)[0]
    group = next((group for group in _GROUPS if matrix in group), set())
    return any(
        role(f"layers.0.{other}").matrix in group and other.startswith(f"{block}.")
        for other in layer
    )


def find_ties(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Output head → embedding, where the head is (or may be) one tensor with the embedding.

    The head may be absent from disk. Whether a head on disk really is the same tensor is for the
    reader to check; an explicit `tie_word_embeddings: false` rules a tie out.
    """
    tied = config.get("tie_word_embeddings")
    if tied is False:
        return {}
    found = roles(names)
    embeds = [name for name, part in found.items() if part.matrix == "embed"]
    heads = [name for name, part in found.items() if part.matrix == "lm_head"]
    causal = is_causal(config)
    if len(embeds) != 1 or len(heads) > 1 or not (tied or causal or heads):
        return {}
    return {heads[0] if heads else "lm_head.weight": embeds[0]}
