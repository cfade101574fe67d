"""Patches on models they were not made for: the difference as numbers, added and rounded once.

A delta holds bit differences, so its numbers are known only together with the tensor it was made
from: that tensor (or what the patch made of it) is looked for in the given origin, in the base and
in the results of the patches before. Then, entry by entry in float32 (float64 for F64 tensors),

    W' = W + (R - B)        W at hand, B before the patch, R after it

The difference and the sum are rounded to that type as any arithmetic is, and the sum then to W's
dtype. Entries that the patch does not change keep W's bits. W may be a copy of the base in another
dtype. Where the patch fits, its bits are used as ever. What is lost by rounding is measured; the
way back is the undo patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from suture.checkpoint import dtypes
from suture.checkpoint.chunks import padded, rechunk
from suture.checkpoint.hashes import Content
from suture.checkpoint.rounding import Rounding
from suture.checkpoint.source import (
    TensorInfo,
    TensorSource,
    iter_tiles,
    lookup,
    source_fingerprint,
)
from suture.checkpoint.tiles import scan
from suture.errors import SutureError
from suture.lazy import torch
from suture.patch.format import Patch, Record
from suture.patch.lora import LoraPatch
from suture.patch.order import is_at, misfits
from suture.patch.patched import Layer, PatchedCheckpoint, decoded, other_file, small_file_hash

if TYPE_CHECKING:
    from pathlib import Path

_ENTRIES = 1 << 18  # entries added at a time


@dataclass(frozen=True)
class Change:
    """What happened to one tensor.

    `way`: exact (bits), added (rebased), merged (LoRA) or kept (the change was there already).
    `relative_error`: length of what rounding lost over the length of the difference.
    `overlap`: share of the entries the patch changes that something else had changed before; None
    where that is not known. `also_in`: names of earlier patches on the same tensor.
    """

    patch: str
    tensor: str
    way: str
    relative_error: float
    overlap: float | None
    also_in: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same facts for JSON."""
        return {**asdict(self), "also_in": list(self.also_in)}


class RebasedCheckpoint(PatchedCheckpoint):
    """`base` with `patches` on it in order, each added by value where its bits do not fit.

    `origins`: models that hold what patches were made from, where neither `base` nor the result of
    an earlier patch does. Errors: E206 a small file does not fit, E213 other shapes, E214 tensors
    that are no floats (quantised), E215 the origin of a difference is missing.
    """

    def __init__(
        self,
        base: TensorSource,
        patches: Sequence[Path | str | Patch],
        origins: Sequence[TensorSource] = (),
    ) -> None:
        self._origins = [*origins, base]
        super().__init__(base, patches)

    def _over(
        self, base: TensorSource, patch: Patch, earlier: Sequence[Patch], later: Sequence[Patch]
    ) -> TensorSource:
        if isinstance(patch, LoraPatch):
            return patch.over(base)
        fits = not misfits(base, patch) and all(
            small_file_hash(base, name) == (file.base.hash if file.base else None)
            for name, file in patch.files.items()
        )
        layer = Layer(base, patch) if fits else Rebased(base, patch, self._origins, earlier)
        self._origins.append(layer)
        return layer


class Rebased(Layer):
    """One delta over a source it was not made for."""

    def __init__(
        self,
        base: TensorSource,
        patch: Patch,
        origins: Sequence[TensorSource],
        earlier: Sequence[Patch] = (),
    ) -> None:
        self.rounding: dict[str, Rounding] = {}
        self.overlap: dict[str, float] = {}
        self.kept: set[str] = set()
        self._from: dict[str, tuple[TensorSource, Patch]] = {}
        self._known: dict[str, Content] = {}
        for name, record in patch.tensors.items():
            if is_at(base, name, record.result):
                self.kept.add(name)
            elif record.result is None or is_at(base, name, record.base):
                continue  # removed whatever it holds, or changed bit by bit
            else:
                _check_addable(base, patch, record)
                self._from[name] = _origin(origins, patch, record)
        for name, file in patch.files.items():
            sides = [side.hash if side else None for side in (file.base, file.result)]
            if small_file_hash(base, name) not in sides:
                raise other_file(base, patch, name, earlier)
        super().__init__(base, patch)

    @property
    def changes_nothing(self) -> bool:
        """Whether everything is as the patch leaves it already."""
        return len(self.kept) == len(self._patch.tensors) and all(
            small_file_hash(self._base, name) == (file.result.hash if file.result else None)
            for name, file in self._patch.files.items()
        )

    def way(self, name: str) -> str:
        """How the patch changes this tensor; see `Change`."""
        if name in self.kept:
            return "kept"
        return "added" if name in self._from else "exact"

    def tiles(self, name: str, size: int = 1 << 22) -> Iterator[memoryview]:
        lookup(self, name)
        if name in self._from:
            yield from rechunk(self._added(name), size)
        elif name in self.kept:
            yield from iter_tiles(self._base, name, size)
        else:
            yield from super().tiles(name, size)

    def unchecked(self, name: str, size: int) -> None:
        """Nothing: no hash tells what a rounded sum must be."""

    def tensor_hash(self, name: str) -> str:
        if name in self.kept:
            return self._base.tensor_hash(name)
        if name not in self._from:
            return super().tensor_hash(name)
        if name not in self._known:
            self._known[name] = scan(lookup(self, name).dtype, self.tiles(name))
        return self._known[name].hash

    def fingerprint(self) -> str:
        return source_fingerprint(self)

    def _layout(self) -> dict[str, TensorInfo]:
        found = super()._layout()
        for name in self._from:
            dtype = self._base.tensors[name].dtype
            nbytes = dtypes.nbytes(dtype, found[name].shape)
            found[name] = replace(found[name], dtype=dtype, nbytes=nbytes)
        for name in self.kept:
            if name in self._base.tensors:
                found[name] = self._base.tensors[name]
        return found

    def _added(self, name: str) -> Iterator[bytes]:
        """The tensor at hand plus the difference, in tiles; appended rows are the patch's own,
        rounded where the dtype at hand is another."""
        source, patch = self._from[name]
        record, info = patch.tensors[name], self.tensors[name]
        made = self._patch.tensors[name].result
        assert made is not None
        kinds = (info.dtype, made.dtype, made.dtype)
        width = dtypes.word(made.dtype)
        sides: list[Iterator[Any]] = [
            iter_tiles(source, name, _ENTRIES * width),
            decoded(patch, record, source),
        ]
        before, after = sides if patch is self._patch else reversed(sides)
        held_tiles = iter_tiles(self._base, name, _ENTRIES * dtypes.word(info.dtype))
        streams = []
        for stream, kind in zip((held_tiles, before, after), kinds, strict=True):
            width = dtypes.word(kind)
            whole = padded(stream, info.numel * width, _ENTRIES * width)
            streams.append(rechunk(whole, _ENTRIES * width))
        wide = torch.float64 if "F64" in kinds else torch.float32
        rounding, shared, changed = Rounding(), 0, 0
        own, start = self._base.tensors[name].numel, 0
        measured = name in self.rounding  # by an earlier pass, which was to hash
        for raw in zip(*streams, strict=True):
            held, old, new = (
                dtypes.from_bytes(bytearray(piece), kind, (-1,))
                for piece, kind in zip(raw, kinds, strict=True)
            )
            # W - (B - R): where B = R that is W - 0.0, which leaves -0.0 alone; W + 0.0 does not.
            written = (held.to(wide) - (old.to(wide) - new.to(wide))).to(held.dtype)
            if start + len(held) > own:
                appended = max(0, own - start)
                written[appended:] = new[appended:].to(held.dtype)
            start += len(held)
            if not bool(torch.isfinite(written).all()):
                raise SutureError(
                    "E117",
                    f"NaN or infinite values in '{name}'",
                    where=str(self._patch.path),
                    why=f"the sum with what is there does not fit {info.dtype}",
                    fix="apply the patch to the model it was made for, or to a copy in F32",
                )
            if not measured:
                rounding.add(held, new.double() - old.double(), written)
                touched = new != old
                changed += int(touched.sum())
                # Neither is the other's rounded copy: somebody else has changed this entry.
                others = (held != old.to(held.dtype)) & (held.to(old.dtype) != old)
                shared += int((touched & others).sum())
            yield dtypes.to_bytes(written)
        if not measured:
            self.rounding[name] = rounding
            self.overlap[name] = shared / changed if changed else 0.0


def changes(patched: PatchedCheckpoint) -> tuple[Change, ...]:
    """What each patch did to each tensor; after the model was read once."""
    rows = []
    for index, (patch, layer) in enumerate(zip(patched.patches, patched.layers, strict=True)):
        rounding: dict[str, Rounding] = getattr(layer, "rounding", {})
        for name in patch.tensors:
            also = tuple(p.path.name for p in patched.patches[:index] if name in p.tensors)
            way = "merged" if isinstance(patch, LoraPatch) else "exact"
            if isinstance(layer, Rebased):
                way = layer.way(name)
            error = rounding[name].relative_error if name in rounding else 0.0
            overlap = layer.overlap.get(name) if isinstance(layer, Rebased) else None
            if way == "exact":
                overlap = 0.0
            rows.append(Change(patch.path.name, name, way, error, overlap, also))
    return tuple(rows)


def _check_addable(base: TensorSource, patch: Patch, record: Record) -> None:
    """E213 where the shapes differ, E214 where the numbers are no plain floats."""
    found, made_for = base.tensors.get(record.name), record.base
    if found is None or made_for is None or found.shape != made_for.shape:
        shapes = [str(list(side.shape)) if side else "absent" for side in (found, made_for)]
        raise SutureError(
            "E213",
            f"'{record.name}' is {shapes[0]} here and {shapes[1]} where the patch was made",
            where=f"{base.path}, {patch.path}",
            why="a difference can only be added to a tensor of the same shape",
            fix="give a model of the same architecture and vocabulary",
        )
    odd = [kind for kind in (found.dtype, made_for.dtype) if kind not in dtypes.FLOATS]
    if odd:
        raise SutureError(
            "E214",
            f"'{record.name}' holds {odd[0]}, not plain floats: a quantised or integer tensor",
            where=f"{base.path}, {patch.path}",
            why="packed integers do not add up like the weights they stand for",
            fix="rebase onto the unquantised checkpoint, and quantise the result again",
        )


def _origin(
    origins: Sequence[TensorSource], patch: Patch, record: Record
) -> tuple[TensorSource, Patch]:
    """A source that holds the tensor before the patch, or after it (then the patch reversed)."""
    for source in origins:
        if is_at(source, record.name, record.base):
            return source, patch
        if is_at(source, record.name, record.result):
            return source, patch.reversed()
    known = patch.base_fingerprint
    raise SutureError(
        "E215",
        f"the difference of '{record.name}' in '{patch.path.name}' is not known here",
        where=str(patch.path),
        why="a patch holds bit differences; as numbers they need the tensor it was made from"
        + (f" (model {known[:16]}…)" if known else ""),
        fix="give that model, or the one the patch made of it: --origin CHECKPOINT",
    )
