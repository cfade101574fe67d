"""What IRR measures: refusals and importance at the aligned model, inputs at the tuned one.

Each by a pass that goes block by block; each from the cache where it holds the same (cache.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from suture.lazy import torch
from suture.methods.cache import Cache, Stored, identity, rows_hash
from suture.methods.irr_layers import (
    Layer,
    Moments,
    Spooled,
    exact_device,
    moments_of,
    sweeps_in,
    whole_or_streamed,
)
from suture.methods.refusals import IsRefusal, opens_as_refusal
from suture.progress import track

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.data import Pair
    from suture.inference import BlockStream, LoadedModel
    from suture.methods.irr import IRR
    from suture.methods.irr_matrix import Triple

TOKENS_AT_ONCE = 1024  # of one forward batch: its activations in one block stay small


def refusals_of(
    method: IRR,
    aligned: TensorSource,
    safety: Sequence[Pair],
    is_refusal: IsRefusal | None,
    options: dict[str, Any],
    cache: Cache | None,
) -> list[Pair]:
    """The aligned model's refusals; given responses need no model at all."""
    from suture.data import Pair

    if all(row.response is not None for row in safety):
        return list(safety)
    judge = is_refusal or opens_as_refusal
    made_from = {} if cache is None else {
        **identity(aligned, safety, options),
        "settings": [method.max_new_tokens, method.system, method.only_refusals],
        "judge": f"{judge.__module__}.{judge.__qualname__}",
    }  # fmt: skip
    if cache is not None and (found := cache.find("refusals", made_from)) is not None:
        return [Pair(**row) for row in found.index["rows"]]
    lm = whole_or_streamed(aligned, options)
    with lm.on_demand():
        rows = method.aligned_refusals(lm, safety, is_refusal=is_refusal)
    if cache is not None:
        cache.keep("refusals", made_from, iter(()), rows=[row.model_dump() for row in rows])
    return rows


def importance_of(
    method: IRR,
    aligned: TensorSource,
    names: Sequence[str],
    refusals: Sequence[Pair],
    options: dict[str, Any],
    cache: Cache | None,
) -> Mapping[str, torch.Tensor]:
    """Fisher importance at the aligned model, put aside matrix by matrix."""
    from suture.inference import open_streamed
    from suture.inference.spool import Spool
    from suture.methods.fisher import streamed_fisher

    def made() -> Iterator[tuple[str, torch.Tensor]]:
        return streamed_fisher(
            open_streamed(aligned, **options),
            refusals,
            names,
            batch=method.fisher_batch,
            system=method.system,
            max_tokens=method.safety_tokens,
            spool=Spool(None if cache is None else cache.folder),
        )

    if cache is None:
        spool = Spool()
        for name, value in made():
            spool.put(name, value)
        return Spooled(spool, names)
    made_from = {
        **identity(aligned, refusals, options),
        "settings": [method.fisher_batch, method.system, method.safety_tokens],
        "names": list(names),
    }
    found = cache.find("importance", made_from)
    return cache.keep("importance", made_from, made()) if found is None else found


def blocks(
    method: IRR,
    models: Triple,
    names: Sequence[str],
    refusals: Sequence[Pair],
    calibration: Sequence[Pair],
    options: dict[str, Any],
) -> Iterator[Layer]:
    """Block by block, its weights in memory, with the moments of what enters its matrices.
    The streams go on through the block as whoever takes it has left it."""
    from suture.inference import open_streamed
    from suture.inference.capture import decoder_layers
    from suture.methods.fisher import by_block, linear_modules

    lm = open_streamed(models.tuned, **options)
    inside = by_block(lm, names)
    task = task_stream(method, lm, calibration)
    safe = safety_stream(method, lm, refusals) if method.solver == "balanced" else None
    for number, block in enumerate(track(decoder_layers(lm.model)[1], "IRR")):
        if number > max(inside, default=-1):
            break
        with lm.hold(block):
            here = linear_modules(lm, inside.get(number, []))
            if here:
                device = exact_device(lm.device)
                moments = Moments(
                    moments_of(task, here, device),
                    None if safe is None else moments_of(safe, here, device),
                    sweeps_in(models.tuned, names),
                )
                yield Layer(here, moments, device)
                del moments
            for stream in [task] if safe is None else [task, safe]:
                stream.advance()


def kept_moments(
    method: IRR,
    models: Triple,
    names: Sequence[str],
    refusals: Sequence[Pair],
    calibration: Sequence[Pair],
    options: dict[str, Any],
    cache: Cache,
) -> Stored:
    """The second moments of every block at the unedited tuned model, once for all settings."""
    balanced = method.solver == "balanced" and method.balance > 0
    made_from = {
        **identity(models.tuned, list(calibration)[: method.calibration_rows], options),
        "settings": [method.calibration_tokens, method.mask_padding, method.scope],
        "safety": [
            rows_hash(refusals),
            method.system,
            method.safety_tokens,
            method.safety_positions,
        ]
        if balanced
        else None,
        "names": list(names),
    }
    found = cache.find("moments", made_from)
    if found is not None:
        return found
    layers: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"layers": layers, "device": "cpu"}

    def packed() -> Iterator[tuple[str, torch.Tensor]]:
        layered = blocks(method, models, names, refusals, calibration, options)
        for number, layer in enumerate(layered):
            facts["device"] = str(layer.device)
            entry: dict[str, Any] = {"names": list(layer.here), "task": [], "safety": None}
            sides = {"task": layer.moments.task, "safety": layer.moments.safety}
            for side, groups in sides.items():
                if groups is None:
                    continue
                entry[side] = []
                for place, (group, own) in enumerate(groups.items()):
                    key = f"{number}/{side}/{place}"
                    entry[side].append(
                        {"names": group, "key": key, "scale": own.scale, "width": own.width,
                         "summed": own.sum is not None}
                    )  # fmt: skip
                    yield key, (torch.cat(own.rows) if own.sum is None else own.sum).cpu()
            layers.append(entry)

    return cache.keep("moments", made_from, packed(), facts=facts)


def task_stream(method: IRR, lm: LoadedModel, calibration: Sequence[Pair]) -> BlockStream:
    from suture.inference import BlockStream
    from suture.methods.fisher import encode_pairs

    rows = list(calibration)[: method.calibration_rows]
    ids, _ = encode_pairs(lm, rows, system=None, max_tokens=method.calibration_tokens)
    width = None if method.mask_padding else lm.within(method.calibration_tokens)
    return BlockStream(
        lm, ids, count_padding=not method.mask_padding, width=width, max_tokens=TOKENS_AT_ONCE
    )


def safety_stream(method: IRR, lm: LoadedModel, refusals: Sequence[Pair]) -> BlockStream | None:
    from suture.inference import BlockStream
    from suture.methods.fisher import encode_pairs

    if not refusals or not method.balance:
        return None
    ids, starts = encode_pairs(lm, refusals, system=method.system, max_tokens=method.safety_tokens)
    return BlockStream(
        lm, ids, starts=starts if method.safety_positions == "response" else None,
        max_tokens=TOKENS_AT_ONCE,
    )  # fmt: skip
