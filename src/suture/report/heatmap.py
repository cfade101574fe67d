"""Where the weights changed: layer × matrix, read from the two checkpoints themselves.

One tensor of each checkpoint is in memory at a time, and arithmetic runs over tiles of a million
entries: differences in float32, sums of squares in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from suture.checkpoint import roles
from suture.lazy import torch
from suture.progress import track

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource

_TILE = 1 << 20  # entries; 8 MB per float64 tile

MATRIX_ORDER = ("qkv", "q", "k", "v", "o", "gate", "up", "down", "fc1", "fc2")


@dataclass(frozen=True)
class HeatCell:
    """All tensors of one role in one layer (`layer` None: outside the layers).

    `norm`: ‖after − before‖ / ‖before‖ (Frobenius), None where before is all zero and after is
    not. `changed`: share of entries whose bits differ. `entries`, `tensors`: how many there are.
    """

    layer: int | None
    matrix: str
    norm: float | None
    changed: float
    entries: int
    tensors: int


@dataclass(frozen=True)
class HeatMap:
    """Cells in layer order and totals over all tensors the two checkpoints share.

    `only_before`, `only_after`, `reshaped`: tensors that cannot be compared, by name.
    """

    cells: tuple[HeatCell, ...]
    norm: float | None
    changed: float
    entries: int
    tensors: int
    tensors_changed: int
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    @property
    def layers(self) -> list[int]:
        return sorted({cell.layer for cell in self.cells if cell.layer is not None})

    @property
    def matrices(self) -> list[str]:
        """Columns: the matrices found in any layer, in the order data flows through them."""
        found = {cell.matrix for cell in self.cells if cell.layer is not None}
        known = [matrix for matrix in MATRIX_ORDER if matrix in found]
        return known + sorted(found - set(known))

    def cell(self, layer: int | None, matrix: str) -> HeatCell | None:
        for cell in self.cells:
            if cell.layer == layer and cell.matrix == matrix:
                return cell
        return None

    @property
    def outside(self) -> list[HeatCell]:
        """Cells that belong to no layer: embedding, head, final norm."""
        return [cell for cell in self.cells if cell.layer is None]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeatMap:
        """The inverse of `as_dict`, for rendering a saved report again."""
        rest = {key: value for key, value in values.items() if key != "cells"}
        for key in ("only_before", "only_after", "reshaped"):
            rest[key] = tuple(rest.get(key, ()))
        return cls(cells=tuple(HeatCell(**cell) for cell in values["cells"]), **rest)


@dataclass
class _Sums:
    difference: float = 0.0
    before: float = 0.0
    changed: int = 0
    entries: int = 0
    tensors: int = 0
    touched: int = 0

    def add(self, other: _Sums) -> None:
        self.difference += other.difference
        self.before += other.before
        self.changed += other.changed
        self.entries += other.entries
        self.tensors += other.tensors
        self.touched += other.touched

    @property
    def norm(self) -> float | None:
        if self.before == 0:
            return 0.0 if self.difference == 0 else None
        return math.sqrt(self.difference / self.before)

    @property
    def share(self) -> float:
        return self.changed / self.entries if self.entries else 0.0


def heat_map(before: TensorSource, after: TensorSource) -> HeatMap:
    """Measure the change between two checkpoints of one layout, tensor by tensor.

    Tensors are matched by name; those found on one side only, or with another shape or dtype, are
    listed and left out of the cells. Norm weights and biases count under their role.
    """
    known = roles(before.tensors)
    cells: dict[tuple[int | None, str], _Sums] = {}
    total = _Sums()
    reshaped = []
    for name in track(list(before.tensors), "heat map"):
        if name not in after.tensors:
            continue
        old, new = before.tensors[name], after.tensors[name]
        if (tuple(old.shape), old.dtype) != (tuple(new.shape), new.dtype):
            reshaped.append(name)
            continue
        sums = _compare(before.read(name), after.read(name))
        role = known[name]
        cells.setdefault((role.layer, role.matrix), _Sums()).add(sums)
        total.add(sums)
    return HeatMap(
        cells=tuple(_cell(key, cells[key]) for key in sorted(cells, key=_place)),
        norm=total.norm,
        changed=total.share,
        entries=total.entries,
        tensors=total.tensors,
        tensors_changed=total.touched,
        only_before=_missing(before.tensors, after.tensors),
        only_after=_missing(after.tensors, before.tensors),
        reshaped=tuple(reshaped),
    )


def _compare(old: torch.Tensor, new: torch.Tensor) -> _Sums:
    sums = _Sums(entries=old.numel(), tensors=1)
    a, b = old.reshape(-1), new.reshape(-1)
    for start in range(0, a.numel(), _TILE):
        left, right = a[start : start + _TILE], b[start : start + _TILE]
        low = left.to(torch.float32)
        sums.before += float(low.to(torch.float64).square().sum())
        differs = int((_bits(left) != _bits(right)).sum())
        if differs:
            sums.changed += differs
            gap = right.to(torch.float32) - low
            sums.difference += float(gap.to(torch.float64).square().sum())
    sums.touched = int(sums.changed > 0)
    return sums


def _bits(tile: torch.Tensor) -> torch.Tensor:
    """Raw bits, so that −0.0 against 0.0 counts as a change, as it does in a patch."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tile.contiguous().view(words[tile.element_size()])


def _cell(key: tuple[int | None, str], sums: _Sums) -> HeatCell:
    return HeatCell(key[0], key[1], sums.norm, sums.share, sums.entries, sums.tensors)


def _place(key: tuple[int | None, str]) -> tuple[int, int, str]:
    layer, matrix = key
    order = MATRIX_ORDER.index(matrix) if matrix in MATRIX_ORDER else len(MATRIX_ORDER)
    return (-1 if layer is None else layer, order, matrix)


def _missing(names: Iterable[str], others: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in others)
