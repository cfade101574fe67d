"""Which tensors a checkpoint lacks, which are too many, and which names are one tensor.

What a tensor *is* stands in `roles`, what a family must hold in `expected`; here a checkpoint's own
names are judged by both, without reading any data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from suture.checkpoint.expected import (
    FAMILIES,
    depth_of,
    expert_count,
    family_of,
    lacking,
    stack_of,
)
from suture.checkpoint.roles import Role, role, roles, split_layer

# Architectures whose every layer holds the same tensors, so that any difference is a fault.
UNIFORM = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 phi phi3 gpt2 opt olmo olmo2 stablelm starcoder2 "
    "bloom granite cohere gpt_neox smollm3 gpt_bigcode codegen gptj mixtral t5 bert clip "
    "clip_text_model clip_vision_model suture-decoder suture-encoder".split()
)
# Those that are no decoders: what holds for every decoder does not hold for them.
_OTHERS = frozenset("t5 bert clip clip_text_model clip_vision_model".split())


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
    matrix that its siblings have; no embedding; no output head where the config unties it; and
    whatever else a family of the table must hold. Architectures whose layers differ by design are
    checked only within attention and within the feed-forward part. The exact comparison with the
    model class is the loader's.
    """
    known = list(names)
    stacks: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    outside = []
    for name in known:
        parts = split_layer(name)
        if parts:
            stacks[parts[0]][parts[1]].add(parts[2])
        else:
            outside.append(name)
    missing: list[str] = []
    extra: list[str] = []
    for stack, layers in stacks.items():
        _judge_stack(stack, layers, config, missing, extra)
    kind = config.get("model_type")
    uniform = kind in UNIFORM and kind not in _OTHERS
    if not stacks and (layer_count(config) or 0) > 0 and uniform:
        missing.append("every layer")
    found = {role(name).matrix for name in known}
    missing += lacking(outside, stacks, config)
    if uniform and kind not in FAMILIES and "embed" not in found:
        missing.append("the token embedding (embed_tokens.weight, wte.weight, …)")
    experts = expert_count(config)
    if experts is not None:
        extra += [name for name in known if (role(name).expert or 0) >= experts]
    head = _head(config)
    if (
        (kind in UNIFORM or kind in FAMILIES)
        and head
        and declares_tie(config) is False
        and "lm_head" not in found
    ):
        missing.append(f"{head} (the config says it is not tied to the embedding)")
    return list(dict.fromkeys(missing)), list(dict.fromkeys(extra))


def _judge_stack(
    stack: str,
    layers: Mapping[int, set[str]],
    config: Mapping[str, Any],
    missing: list[str],
    extra: list[str],
) -> None:
    """Layers that are not there, and tensors that some layers have and others lack."""
    kind = config.get("model_type")
    uniform = kind in UNIFORM
    known = stack_of(stack, config)
    declared = depth_of(known, config) if known else None
    if known is None and uniform and kind not in _OTHERS:
        declared = layer_count(config)
    count = declared if declared is not None else max(layers) + 1
    for index in range(count):
        if index not in layers:
            missing.append(f"{stack}.{index}.*")
    extra += [f"{stack}.{index}.*" for index in sorted(layers) if index >= count]
    for rest, holders in _holders(layers).items():
        absent = [index for index in sorted(layers) if index not in holders]
        matrix = role(f"{stack}.0.{rest}").matrix
        if matrix == "position":  # T5 keeps one table of relative positions, in its first layer
            continue
        if not uniform:
            absent = [index for index in absent if _is_partial(layers[index], rest)]
        if matrix == "other" and len(holders) < len(absent):
            extra += [f"{stack}.{index}.{rest}" for index in sorted(holders)]
        else:
            missing += [f"{stack}.{index}.{rest}" for index in absent]


def _holders(layers: Mapping[int, set[str]]) -> dict[str, set[int]]:
    holders: dict[str, set[int]] = defaultdict(set)
    for index, rests in layers.items():
        for rest in rests:
            holders[rest].add(index)
    return holders


_GROUPS = ({"q", "k", "v", "o"}, {"gate", "up", "down"}, {"fc1", "fc2"})


def _is_partial(layer: set[str], rest: str) -> bool:
    """Whether a layer without the matrix `rest` has others of the same block.

    A block with a fused matrix, or with this one under another name, is of another kind; experts
    are blocks of their own.
    """
    matrix, block = role(f"layers.0.{rest}").matrix, rest.rsplit(".", 2)[0]
    group = next((group for group in _GROUPS if matrix in group), set())
    there = {role(f"layers.0.{o}").matrix for o in layer if o.rsplit(".", 2)[0] == block}
    return bool(there & group) and not there & {matrix, "qkv", "gate_up"}


def declares_tie(config: Mapping[str, Any]) -> bool | None:
    """Whether head and embedding are one tensor: what the config says, else what its family takes
    silence to mean, else None."""
    family = family_of(config)
    said = config.get("tie_word_embeddings")
    if said is None and family is not None:
        said = family.tied
    return bool(said) if said is not None else None


def must_tie(alias: str, config: Mapping[str, Any]) -> bool:
    """Whether two different tensors on disk contradict the config, instead of telling what it
    leaves open. T5's config says tied for T5 1.1 too, which has a head of its own."""
    family = family_of(config)
    if family is not None and alias in family.shared:
        return True
    return bool(config.get("tie_word_embeddings")) and config.get("model_type") != "t5"


def find_ties(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Further name → tensor, where both are (or may be) one tensor: the output head and the
    embedding, T5's three embeddings, BERT's two names of the output bias.

    The further name may be absent from disk. Whether one on disk really is the same tensor is for
    the reader to check; an explicit `tie_word_embeddings: false` rules out a tied head.
    """
    found = roles(names)
    family = family_of(config)
    ties = {}
    for alias, target in (family.shared if family else {}).items():
        if target in found and _wanted(alias, found):
            ties[alias] = target
    tied = declares_tie(config)
    if tied is False:
        return ties
    embeds = [name for name, part in found.items() if part.matrix == "embed" and name not in ties]
    heads = [name for name, part in found.items() if part.matrix == "lm_head"]
    head = _head(config)
    if family is None or family.decoder:
        possible = bool(tied or head or heads)
    else:
        possible = bool(head or heads)
    if len(embeds) == 1 and len(heads) <= 1 and possible:
        ties[heads[0] if heads else head or "lm_head.weight"] = embeds[0]
    return ties


def _head(config: Mapping[str, Any]) -> str:
    """The name of the output head of the class the config declares, empty if it has none."""
    family = family_of(config)
    if family is not None and not family.decoder:
        return family.head
    return "lm_head.weight" if is_causal(config) else ""


def _wanted(alias: str, names: Mapping[str, Role]) -> bool:
    """Whether the model of these names has a module for `alias`: no decoder, no decoder table."""
    return alias in names or any(name.startswith(alias.partition(".")[0] + ".") for name in names)
