"""What IRR holds while it goes through a model: moments per input, and one block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suture.lazy import torch
from suture.methods.cache import Stored
from suture.methods.irr_matrix import working_dtype

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.inference import BlockStream, LoadedModel
    from suture.inference.matrices import Matrix
    from suture.inference.spool import Spool
    from suture.methods.second_moment import Moment


@dataclass
class Moments:
    """Names that share an input -> its second moment, on both sides; `work`: dtype of sweeps."""

    task: dict[tuple[str, ...], Moment]
    safety: dict[tuple[str, ...], Moment] | None
    work: torch.dtype


@dataclass
class Layer:
    """One block in memory: its matrices in scope, and the moments of their inputs."""

    here: dict[str, Matrix]
    moments: Moments
    device: torch.device


def moments_of(
    stream: BlockStream, found: Mapping[str, Matrix], device: torch.device
) -> dict[tuple[str, ...], Moment]:
    from suture.methods.second_moment import FEW, SecondMoment

    moment = SecondMoment(device, few=FEW)
    stream.look({name: matrix.module for name, matrix in found.items()}, moment.add)
    return moment.moments(stream.sequences)


def unpacked(
    kept: Stored, layer: Mapping[str, Any], device: torch.device, work: torch.dtype
) -> Moments:
    """The moments of one block as they were kept."""
    from suture.methods.second_moment import Moment

    sides: list[dict[tuple[str, ...], Moment] | None] = []
    for side in ("task", "safety"):
        if layer[side] is None:
            sides.append(None)
            continue
        groups = {}
        for entry in layer[side]:
            value = kept[entry["key"]].to(device)
            own = Moment(entry["width"], entry["scale"], device=device)
            if entry["summed"]:
                own.sum = value
            else:
                own.rows = [value]
            groups[tuple(entry["names"])] = own
        sides.append(groups)
    return Moments(sides[0] or {}, sides[1], work)


def sweeps_in(tuned: TensorSource, names: Sequence[str]) -> torch.dtype:
    """The dtype of sweeps over matrices of this model."""
    short = all(tuned.tensors[name].dtype in ("BF16", "F16") for name in names)
    return working_dtype(torch.bfloat16 if short else torch.float32)


def exact_device(device: torch.device) -> torch.device:
    """Where float64 is to be had; mps has none."""
    return torch.device("cpu") if device.type == "mps" else device


def whole_or_streamed(source: TensorSource, options: dict[str, Any]) -> LoadedModel:
    """Replies come token by token, so a model that half of the memory can hold is loaded."""
    from suture.inference import load, open_streamed
    from suture.inference.loading import free_memory

    numel = sum(info.numel for info in source.tensors.values())
    free = free_memory()
    if options["device"] == "cpu" and free is not None and 8 * numel > free:
        return open_streamed(source, **options)
    return load(source, **options)


class Spooled(Mapping[str, "torch.Tensor"]):
    """Importance that was put aside, by name."""

    def __init__(self, spool: Spool, names: Sequence[str]) -> None:
        self._spool, self._names = spool, list(names)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._spool.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
