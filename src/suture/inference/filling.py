"""From a configuration to a model whose every weight comes from the source, or to a refusal.

What transformers does with a random number and a log line is an error here: a tensor without a
place, a place without a tensor, another shape, tied tensors that differ. Which stored tensor goes
where is `suture.checkpoint.families`'s to say; experts stored one by one are written straight into
the fused tensor that transformers holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from suture.checkpoint.families import Place, places
from suture.errors import SutureError, some
from suture.lazy import torch, transformers
from suture.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from suture.checkpoint import TensorSource

_UNREAD = re.compile(r"pooler\.")  # sums up a text for a head: no part of the layers
# Saved by old exporters, derived from the config: rotary tables, causal masks, position numbers.
_RECOMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.masked_bias$|embeddings\.position_ids$")


def skeleton(
    config: transformers.PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    source: TensorSource,
    *,
    kind: type[PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """The model with memory but without values; buffers such as rotary tables are computed.

    `kind`: the class to build, by default the causal language model of the configuration. Raises
    SutureError E501 where there is none.
    """
    from transformers.initialization import no_init_weights

    failed: Exception | None = None
    for attention in ("sdpa", "eager"):
        try:
            with torch.device(device), no_init_weights():
                if kind is None:
                    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                        config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
                    )
                else:
                    model = kind._from_config(  # type: ignore[no-untyped-call]
                        config, dtype=dtype, attn_implementation=attention
                    )
        except Exception as error:
            failed = failed or error
            continue
        model.tie_weights()
        return model
    first = (str(failed).strip().splitlines() or [type(failed).__name__])[0]
    raise SutureError(
        "E501",
        f"no model can be built from the configuration: {first}",
        where=str(source.path / "config.json"),
        fix="give the folder of a causal language model",
    ) from failed


def fill(model: PreTrainedModel, source: TensorSource) -> dict[str, Place]:
    """Copy every tensor, in the source's order; returns stored name → place. Ties share memory.

    Raises SutureError E502 missing or unexpected tensors, E503 other shapes, E504 tied tensors
    that differ.
    """
    slots: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    found = match(model, slots, source)
    pour(slots, track(found.items(), "load", total=len(found)), source)
    return found


def fill_trunk(model: PreTrainedModel, source: TensorSource) -> None:
    """Copy what belongs to a bare model, of a checkpoint with whatever heads above it.

    Heads and poolers are left out, which are no part of the layers' states. Raises SutureError E502
    for a tensor of the layers that is missing or has no place, E503 and E504 as `fill`.
    """
    slots: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    start = f"{model.base_model_prefix}."
    headed = any(name.startswith(start) for name in source.tensors)
    names = {name.removeprefix(start): name for name in source.tensors}
    found, strange = places(names, slots, source.config, model.base_model_prefix)
    odd = [
        name
        for name in strange
        if not _UNREAD.match(name)
        and not _RECOMPUTED.search(name)
        and (names[name].startswith(start) or not headed)
        and name.partition(".")[0] in {slot.partition(".")[0] for slot in slots}
    ]
    if odd:
        raise _no_place([names[name] for name in odd], source)
    read = {name: slot for name, slot in slots.items() if not _UNREAD.match(name)}
    found = {name: spot for name, spot in found.items() if spot.slot in read}
    _check_covered(read, found, source)
    pour(slots, track(((names[name], spot) for name, spot in found.items()), "load"), source)


def match(
    model: PreTrainedModel, slots: Mapping[str, torch.Tensor], source: TensorSource
) -> dict[str, Place]:
    """Stored name → place, from headers alone; the E502 of `fill`."""
    found = _match(model, slots, source)
    _check_covered(slots, found, source)
    return found


def pour(
    slots: Mapping[str, torch.Tensor],
    found: Mapping[str, Place] | Iterable[tuple[str, Place]],
    source: TensorSource,
) -> None:
    """Copy the tensors `found` into their places; E503 and E504 of `fill`."""
    filled: dict[int, str] = {}
    for stored, spot in found.items() if isinstance(found, Mapping) else found:
        slot, value = slots[spot.slot], source.read(stored)
        region = spot.region(slot)
        if tuple(region.shape) != tuple(value.shape):
            raise SutureError(
                "E503",
                f"the configuration asks for shape {tuple(region.shape)}, the file has "
                f"{tuple(value.shape)}",
                where=f"{source.path}: {stored}",
                fix="config.json and weights belong to different models; fetch both again",
            )
        before = filled.get(id(slot))
        if before is None or not spot.whole:
            with torch.no_grad():
                region.copy_(value)
            filled[id(slot)] = stored
        elif not torch.equal(slot, value.to(slot)):
            raise SutureError(
                "E504",
                f"'{stored}' and '{before}' are tied but hold different values",
                where=str(source.path),
                why="which of the two the model should use cannot be known",
                fix='set "tie_word_embeddings": false in config.json if they are meant to differ',
            )


def _match(
    model: PreTrainedModel, slots: Mapping[str, torch.Tensor], source: TensorSource
) -> dict[str, Place]:
    """Stored name → place; E502 for tensors that have none."""
    found, strange = places(source.tensors, slots, source.config, model.base_model_prefix)
    for name, spot in list(found.items()):
        if spot.expert is not None and spot.expert >= slots[spot.slot].shape[0]:
            strange.append(name)
            del found[name]
    ignored = [re.compile(p) for p in model._keys_to_ignore_on_load_unexpected or ()]
    strange = [
        name
        for name in strange
        if not _RECOMPUTED.search(name) and not any(p.search(name) for p in ignored)
    ]
    if strange:
        raise _no_place(strange, source)
    return found


def _no_place(strange: list[str], source: TensorSource) -> SutureError:
    return SutureError(
        "E502",
        f"{len(strange)} tensors have no place in the model: {some(strange)}",
        where=str(source.path),
        why="weights that are left out make another model",
        fix="check model_type and the sizes in config.json",
    )


def _check_covered(
    slots: Mapping[str, torch.Tensor], found: Mapping[str, Place], source: TensorSource
) -> None:
    """Refuse (E502) a model with a slot, or one expert's share of a slot, that nothing fills."""
    spots = set(found.values())
    fused = {spot.slot: spot for spot in spots if not spot.whole}
    reached = {spot.slot for spot in spots}
    names: dict[int, list[str]] = {}
    for name, slot in slots.items():
        names.setdefault(id(slot), []).append(name)
    missing = [same[0] for same in names.values() if reached.isdisjoint(same)]
    for name, one in fused.items():
        missing += [
            f"{name}[{expert}], rows {part + 1}/{one.parts}"
            for expert in range(len(slots[name]))
            for part in range(one.parts)
            if Place(name, expert, part, one.parts) not in spots
        ]
    if missing:
        raise SutureError(
            "E502",
            f"{len(missing)} tensors of the model are not in the checkpoint: {some(missing)}",
            where=str(source.path),
            why="they would be random numbers",
            fix="fetch the checkpoint again; `suture inspect` lists what it holds",
        )
