"""IRR layer by layer: the matrices of each block, behind the blocks edited before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from suture.lazy import torch
from suture.methods.cache import Cache
from suture.methods.irr_layers import Moments, sweeps_in, unpacked
from suture.methods.irr_matrix import Evidence, MatrixReport, Triple, edit_tensor
from suture.methods.irr_passes import blocks, kept_moments
from suture.progress import track

if TYPE_CHECKING:
    from suture.checkpoint import TensorEdit
    from suture.data import Pair
    from suture.methods.irr import IRR
    from suture.methods.recalibrate import Prepared


def edits(
    method: IRR,
    models: Triple,
    names: Sequence[str],
    importance: Mapping[str, torch.Tensor] | None,
    refusals: Sequence[Pair],
    calibration: Sequence[Pair],
    options: dict[str, Any],
    report: list[MatrixReport] | None,
    cache: Cache | None,
) -> Iterator[TensorEdit]:
    """All matrices in scope, layer by layer; H comes from behind the edited prefix."""
    if method.solver == "none":
        cpu = torch.device("cpu")
        for name in track(names, "IRR"):
            evidence = Evidence(importance)
            yield edit_tensor(method, models, name, evidence, device=cpu, report=report)
        return
    if method.inputs == "frozen" and cache is not None:
        kept = kept_moments(method, models, names, refusals, calibration, options, cache)
        facts = kept.index["facts"]
        exact = torch.device(facts["device"])
        for layer in track(facts["layers"], "IRR"):
            moments = unpacked(kept, layer, exact, sweeps_in(models.tuned, names))
            for name, evidence in _evidence(method, layer["names"], moments, importance):
                yield edit_tensor(method, models, name, evidence, device=exact, report=report)
        return
    for layer in blocks(method, models, names, refusals, calibration, options):
        for name, evidence in _evidence(method, list(layer.here), layer.moments, importance):
            edit = edit_tensor(method, models, name, evidence, device=layer.device, report=report)
            if method.inputs == "exact":
                matrix = layer.here[name]
                with torch.no_grad():
                    matrix.weight.copy_(matrix.turned(edit.value))
                del matrix
            yield edit
            del edit, evidence
        layer.here.clear()  # the block's memory goes before the next one comes


def _evidence(
    method: IRR,
    names: Sequence[str],
    moments: Moments,
    importance: Mapping[str, torch.Tensor] | None,
) -> Iterator[tuple[str, Evidence]]:
    """Matrices that share an input one after another, on one factor; the widest input first,
    while the least else is in memory."""
    from suture.inference.spool import give_back

    prepared: Prepared | None
    groups = sorted(moments.task, key=lambda group: -moments.task[group].width)
    seen: set[str] = set()
    for group in groups:
        prepared = None  # one factor at a time
        give_back()
        members = [name for name in group if name in names]
        seen.update(members)
        prepared = _prepare(method, group, moments)
        for name in members:
            yield name, Evidence(importance, prepared)
    for name in names:
        if name not in seen:
            yield name, Evidence(importance, reached=False)


def _prepare(method: IRR, group: tuple[str, ...], moments: Moments) -> Prepared:
    from suture.methods.recalibrate import prepare_balanced, prepare_sequential

    task = moments.task.pop(group)
    shared: dict[str, Any] = {
        "damping": method.damping,
        "block": method.block,
        "name": group[0],
        "dtype": moments.work,
    }
    if moments.safety is None:
        return prepare_sequential(task, keep=method.solver == "joint", **shared)
    by_name = {name: own for own in moments.safety for name in own}
    own = by_name.get(group[0])
    safety = None if own is None else moments.safety.pop(own)
    return prepare_balanced(task, safety, balance=method.balance, **shared)
