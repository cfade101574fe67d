"""What the weight-editing methods share: scopes, tensors side by side, dropping entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from suture.errors import SutureError
from suture.lazy import np, torch
from suture.rng import uniform

if TYPE_CHECKING:
    from suture.checkpoint import TensorEdit, TensorSource
    from suture.data import Pair

MatrixScope = Literal["all", "qv"]
Scope = Literal["model", "all", "qv"]

_FLOATS = frozenset({"F64", "F32", "BF16", "F16"})
_OUTSIDE = frozenset({"embed", "lm_head", "norm"})
_TILE = 2**22  # entries combined at a time: 32 MiB per float64 operand


def row_kind(argument: str) -> type[Pair]:
    """The record of the rows that methods take as `argument`: calibration needs responses."""
    from suture.data import AnsweredPair, Pair

    return AnsweredPair if argument == "calibration" else Pair


def scoped_names(source: TensorSource, scope: Scope) -> list[str]:
    """Names of the tensors a method may edit, in checkpoint order.

    "model": every floating tensor. "all": the weight matrices of the blocks (q, k, v, o, gate, up,
    down or their like); embeddings, norms, biases and the head stay. "qv": query and value only.
    Raises SutureError E401 when nothing is left.
    """
    from suture.checkpoint import roles

    floats = [n for n, info in source.tensors.items() if info.dtype in _FLOATS]
    if scope == "model":
        chosen = floats
    else:
        role = roles(floats)
        chosen = [
            name
            for name in floats
            if len(source.tensors[name].shape) == 2
            and role[name].layer is not None
            and (role[name].matrix in {"q", "v"} if scope == "qv" else True)
            and role[name].matrix not in _OUTSIDE
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


def check_family(
    tuned: TensorSource, aligned: TensorSource, unaligned: TensorSource | None = None
) -> None:
    """Refuse models that are not of one shape and vocabulary (errors of `compare_layouts`)."""
    from suture.checkpoint import compare_layouts

    compare_layouts(aligned, tuned, names=("aligned", "tuned"))
    if unaligned is not None:
        compare_layouts(aligned, unaligned, names=("aligned", "unaligned"))


def edits(
    tuned: TensorSource,
    names: list[str],
    sources: list[TensorSource],
    formula: Callable[[str, int, list[torch.Tensor]], torch.Tensor],
) -> Iterator[TensorEdit]:
    """One edit per name: `formula(key, start, tiles)` on float64 tiles, rounded once.

    `tiles` are entries `start` onward of the flattened tensors of `sources`; `key` names the tensor
    for random draws and is the same for tied tensors.
    """
    from suture.checkpoint import TensorEdit, dtypes

    ties = dict(getattr(tuned, "ties", {}))
    for name in names:
        flat = [source.read(name).reshape(-1) for source in sources]
        info = tuned.tensors[name]
        result = torch.empty(info.numel, dtype=dtypes.torch_dtype(info.dtype))
        for start in range(0, result.numel(), _TILE):
            tiles = [tensor[start : start + _TILE].double() for tensor in flat]
            result[start : start + _TILE] = formula(ties.get(name, name), start, tiles)
        check_finite(name, result)
        yield TensorEdit(name, result.reshape(info.shape))


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
