"""What the weight-editing methods share: scopes, tensors side by side, dropping entries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from suture.checkpoint import dtypes
from suture.checkpoint.source import StreamedEdit, lookup
from suture.checkpoint.streams import SideBySide
from suture.errors import SutureError
from suture.lazy import np, torch
from suture.rng import uniform

if TYPE_CHECKING:
    from suture.checkpoint import TensorInfo, TensorSource
    from suture.data import Pair

    Formula = Callable[[str, int, list[torch.Tensor]], torch.Tensor]

MatrixScope = Literal["all", "qv"]
Scope = Literal["model", "all", "qv"]

_OUTSIDE = frozenset({"embed", "lm_head", "norm", "position", "router"})
_OF_EXPERTS = frozenset({"gate_up", "gate", "up", "down"})
_TILE = 2**22  # entries combined at a time at most; the memory budget usually allows fewer


def row_kind(argument: str) -> type[Pair]:
    """The record of the rows that methods take as `argument`: calibration needs responses."""
    from suture.data import AnsweredPair, Pair

    return AnsweredPair if argument == "calibration" else Pair


def scoped_names(
    source: TensorSource, scope: Scope, *, matrices: bool = False, parts: bool = False
) -> list[str]:
    """Names of the tensors a method may edit, in checkpoint order.

    "model": every floating tensor. "all": the weight matrices of the blocks (q, k, v, o, gate, up,
    down or their like), also those of all experts in one tensor; embeddings, norms, biases, routers
    and the head stay. "qv": query and value only. `matrices`: the method works matrix by matrix, so
    experts in one tensor are not for it. `parts`: so it does, and it keeps to q and v inside a
    fused tensor.
    Raises SutureError E401 when nothing is left, E440 when the scope ends inside a fused tensor.
    """
    from suture.checkpoint import roles

    floats = [n for n, info in source.tensors.items() if info.dtype in dtypes.FLOATS]
    if scope == "model":
        chosen = floats
    else:
        role = roles(floats)
        blocks = [n for n in floats if role[n].layer is not None]
        _check_fused(source, blocks, scope, matrices or parts, parts)
        wanted = {"q", "v", "qkv"} if scope == "qv" else None
        chosen = [
            name
            for name in blocks
            if (len(source.tensors[name].shape) == 2 or _holds_experts(source, name))
            and (wanted is None or role[name].matrix in wanted)
            and role[name].matrix not in _OUTSIDE
            and not name.endswith("bias")
        ]
    if not chosen:
        raise SutureError(
            "E401",
            f"no tensor of the checkpoint is in scope '{scope}'",
            where=str(source.path),
            why="the method would change nothing",
            fix="use --scope all" if scope == "qv" else "check the folder with `suture inspect`",
        )
    return chosen


def _holds_experts(source: TensorSource, name: str) -> bool:
    """Whether a stored tensor is one matrix of every expert of its layer."""
    from suture.checkpoint import role

    return len(source.tensors[name].shape) == 3 and role(name).matrix in _OF_EXPERTS


def _check_fused(
    source: TensorSource, names: list[str], scope: str, matrices: bool, parts: bool
) -> None:
    """Refuse (E440) a scope whose border runs through a stored tensor."""
    from suture.checkpoint import families, role

    for name in names:
        shape, matrix = source.tensors[name].shape, role(name).matrix
        inside = families.parts(name, shape, source.config) if len(shape) == 2 else ()
        known = {part.matrix for part in inside} >= {"q", "v"}
        if scope == "qv" and matrix == "qkv" and len(shape) == 2 and not (parts and known):
            raise SutureError(
                "E440",
                "query, key and value are stored in one tensor",
                where=f"{source.path}: {name}",
                why="this method edits whole tensors, so scope 'qv' would change the key too"
                if known
                else "how this family orders them is not known, so scope 'qv' cannot be cut out",
                fix="use --scope all",
            )
        if scope == "all" and matrices and _holds_experts(source, name):
            raise SutureError(
                "E440",
                "the experts of a layer are stored in one tensor",
                where=f"{source.path}: {name}",
                why="this method goes matrix by matrix and would leave them out",
                fix="use --scope qv, or a merging method",
            )


def check_family(
    tuned: TensorSource, aligned: TensorSource, unaligned: TensorSource | None = None
) -> None:
    """Refuse models that are not of one shape and vocabulary (errors of `compare_layouts`)."""
    from suture.checkpoint import compare_layouts

    compare_layouts(aligned, tuned, names=("aligned", "tuned"), edited="tuned")
    if unaligned is not None:
        compare_layouts(aligned, unaligned, names=("aligned", "unaligned"), again=True)


def tiles_of(
    sources: Sequence[TensorSource], name: str
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """One tensor of every source, in step: (start, float32 tiles from entry `start` onward), or
    float64 tiles where the first source has float64.

    The tiles are 1-D, the same size in every source, and lie in memory that is reused for the next
    ones: they may be written to, and must not be kept. What passes whole is hashed on the way, so
    that fingerprints cost no second read. Raises SutureError E117 on NaN or Inf in a source.
    """
    wide = lookup(sources[0], name).dtype == "F64"
    return iter(SideBySide(sources, name, most=_TILE, wide=wide))


def edits(
    tuned: TensorSource, names: Iterable[str], sources: Sequence[TensorSource], formula: Formula
) -> Iterator[StreamedEdit]:
    """One streamed edit of `tuned` per name: `formula(key, start, tiles)`, rounded once.

    `tiles` are float32 entries `start` onward of the flattened tensors of `sources`, which the
    formula may overwrite; its result, of the same length, may lie in one of them. Both are float64
    where `tuned` has float64. `key`
    names the tensor for random draws and is the same for tied tensors. A formula must give every
    entry the same value wherever tiles begin, so that results depend neither on the memory budget
    nor on how a model is sharded. Nothing is read before the first tile of an edit is taken.

    Raises SutureError E403 where a result does not fit the dtype, and those of `tiles_of`.
    """
    ties = dict(getattr(tuned, "ties", {}))
    own = next((index for index, source in enumerate(sources) if source is tuned), None)
    rounded = _Rounded()
    for name in names:
        info = tuned.tensors[name]
        stream = SideBySide(sources, name, most=_TILE, wide=info.dtype == "F64")
        yield StreamedEdit(
            name,
            _results(stream, info, ties.get(name, name), formula, rounded),
            info.shape,
            None if own is None else partial(stream.raw, own),
        )


def _results(
    stream: SideBySide, info: TensorInfo, key: str, formula: Formula, rounded: _Rounded
) -> Iterator[torch.Tensor]:
    for start, tiles in stream:
        result = rounded.space(info.dtype, tiles[0].numel())
        result.copy_(formula(key, start, tiles))
        if not math.isfinite(result.sum(dtype=torch.float32).item()):
            check_finite(info.name, result)
        yield result
    if not info.numel:  # the result has a dtype even so
        yield rounded.space(info.dtype, 0)


class _Rounded:
    """Memory for results in the checkpoint's own dtype, reused from tile to tile."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def space(self, dtype: str, count: int) -> torch.Tensor:
        held = self._held.get(dtype)
        if held is None or held.numel() < count:
            held = self._held[dtype] = torch.empty(count, dtype=dtypes.torch_dtype(dtype))
        return held[:count]


def check_finite(name: str, value: torch.Tensor) -> None:
    """Refuse a result that its dtype cannot hold (SutureError E403)."""
    if not bool(torch.isfinite(value).all()):
        raise SutureError(
            "E403",
            f"the edited values do not fit into {str(value.dtype).removeprefix('torch.')}",
            where=name,
            why="infinite weights break the model",
            fix="use a smaller factor",
        )


def dropped(seed: int, key: str, start: int, count: int, share: float) -> torch.Tensor:
    """Boolean, `count` entries from `start` of tensor `key`: drawn with probability `share`.

    The draw of an entry depends on seed, key and its place alone, never on order or tiles.
    """
    return torch.from_numpy(np.asarray(uniform(seed, key, start, count) < share))


def dare(delta: torch.Tensor, drop: torch.Tensor, share: float) -> torch.Tensor:
    """DARE: entries in `drop` become 0, the others grow by 1 / (1 - share)."""
    return torch.where(drop, torch.zeros_like(delta), delta / (1.0 - share))
