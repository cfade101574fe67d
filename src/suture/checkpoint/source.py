"""What methods, loaders and sinks read from and write to: the contract between the layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from blake3 import blake3

from suture.checkpoint import dtypes
from suture.errors import SutureError, nearest, some

if TYPE_CHECKING:
    from concurrent.futures import Future

    import torch

    from suture.checkpoint.lanes import Coming
    from suture.checkpoint.tiles import ShardFile

TILE = 1 << 22  # bytes of scratch per streamed read


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the file headers describe it.

    `dtype` is the safetensors name ("BF16"); `file` the shard's plain name; `start` the absolute
    offset of the first byte in it, -1 where the bytes are not stored as they are read
    (a patched tensor).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@runtime_checkable
class TensorSource(Protocol):
    """A model's tensors, read one at a time: a checkpoint, a merged adapter or a patched model.

    `path` is the folder the small files (config, tokenizer, LICENSE) come from; `config` the
    parsed and vetted config.json; `tensors` is in checkpoint order (shard by shard, by offset).
    """

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU in its own dtype and shape, in fresh memory."""
        ...

    def read_bytes(self, name: str) -> bytes:
        """Its raw little-endian bytes."""
        ...

    def tensor_hash(self, name: str) -> str:
        """BLAKE3 of the raw bytes, in hex."""
        ...

    def fingerprint(self) -> str:
        """The model's identity: see `fingerprint_of`."""
        ...


@dataclass(frozen=True)
class TensorEdit:
    """One changed tensor: `value` is the *result*, same shape and dtype as the base tensor."""

    name: str
    value: torch.Tensor


@dataclass(frozen=True)
class StreamedEdit:
    """One changed tensor whose result comes in pieces, so that no tensor is ever whole in memory.

    `tiles` yields consecutive 1-D tensors of the base tensor's dtype that together are the
    flattened result. It is consumed once, a tile's memory is only valid until the next is taken,
    and nothing of the tensor is read before the first is: a tensor that need not be computed again
    costs nothing. `shape` is the result's. `base`, where the stream has read the base anyway, gives
    the base tensor's raw bytes under the tile just taken, valid as long.
    """

    name: str
    tiles: Iterator[torch.Tensor]
    shape: tuple[int, ...] = ()
    base: Callable[[], memoryview] | None = None

    @property
    def value(self) -> torch.Tensor:
        """The whole result in fresh memory: consumes the tiles. For tests and small models."""
        import torch

        pieces = [tile.clone() for tile in self.tiles]
        if not pieces:
            raise SutureError(
                "E127", "the tiles of this edit are used up, or empty", where=self.name
            )
        return torch.cat(pieces).reshape(self.shape)


Edit = TensorEdit | StreamedEdit


class Slot(Protocol):
    """Where one tensor's result goes, piece by piece from its first byte to its last."""

    @property
    def info(self) -> TensorInfo: ...
    def write(self, piece: memoryview, base: memoryview | None) -> list[Future[Any]]:
        """The next raw bytes of the result, and of the base's if at hand.

        `base` is not kept; `piece` only until the jobs that are returned are done. Pieces shorter
        than `lanes.INLINE` are not kept at all.
        """
        ...

    def end(self, content: Coming) -> None:
        """The tensor is complete; `content.result()` is the `Content` of what was written."""
        ...


class Sink(Protocol):
    """Takes edits in any order. Nothing is visible before `publish`; `abort` leaves no trace.

    `done`: names of tensors that an earlier, killed run has finished; they are not asked for again.
    """

    @property
    def done(self) -> Container[str]: ...
    def begin(self, name: str) -> Slot:
        """Start one changed tensor; one at a time."""
        ...

    def put(self, edit: Edit) -> None:
        """A whole edit: `begin`, `write` and `end`."""
        ...

    def prepare(self) -> None:
        """Write and sync everything that is still missing; only the rename is left."""
        ...

    def publish(self) -> None:
        """Make what was prepared visible under its final name."""
        ...

    def close(self) -> None:
        """`prepare` and `publish`."""
        ...

    def abort(self) -> None:
        """Remove what is staged; harmless after `publish`."""
        ...

    def suspend(self, *, sealed: bool = False) -> None:
        """Let go, but keep what a later run can resume; `abort` where it could not."""
        ...

    def withdraw(self) -> None:
        """Remove what was published too; harmless when nothing was."""
        ...


def content_hash(data: Any) -> str:
    """BLAKE3 of bytes, in hex: the hash of tensors and model files."""
    return blake3(data).hexdigest()


def fingerprint_of(entries: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """A model's identity from (name, dtype, shape, content hash) of its tensors.

    The entries are sorted by name, so the fingerprint does not depend on order or sharding.
    """
    state = blake3(b"suture-model-2\n")
    encode = json.JSONEncoder(separators=(",", ":")).encode
    for name, dtype, shape, digest in sorted(entries):
        line = encode([name, dtype, list(shape), digest])
        state.update(line.encode() + b"\n")
    return state.hexdigest()


def source_fingerprint(source: TensorSource) -> str:
    """`fingerprint_of` over a source's own hashes."""
    return fingerprint_of(
        (name, info.dtype, info.shape, source.tensor_hash(name))
        for name, info in source.tensors.items()
    )


def layout_id(tensors: Mapping[str, TensorInfo]) -> str:
    """Sixteen hex digits that name the layout (names, dtypes, shapes), from headers alone."""
    lines = sorted([name, info.dtype, list(info.shape)] for name, info in tensors.items())
    return content_hash(json.dumps(lines, separators=(",", ":")).encode())[:16]


def lookup(source: TensorSource, name: str) -> TensorInfo:
    """The tensor's description; SutureError E130 naming the nearest when it does not exist."""
    info = source.tensors.get(name)
    tied = getattr(source, "ties", {}).get(name) if info is None else None
    if tied is not None:
        raise SutureError(
            "E130",
            f"'{name}' is tied: it is the same tensor as '{tied}'",
            where=str(source.path),
            fix=f"read or edit '{tied}'; both change together",
        )
    if info is None:
        close = nearest(name, source.tensors)
        raise SutureError(
            "E130",
            f"no tensor named '{name}'",
            where=str(source.path),
            fix=f"did you mean '{close}'?" if close else "suture inspect lists the tensors",
        )
    return info


def iter_tiles(source: TensorSource, name: str, size: int = TILE) -> Iterator[memoryview]:
    """The raw bytes of one tensor in tiles of `size` bytes (the last one shorter).

    Sources that can stream (`tiles` method) do; others are read whole.
    """
    streaming = getattr(source, "tiles", None)
    if streaming is not None:
        yield from streaming(name, size)
        return
    raw = memoryview(source.read_bytes(name))
    for start in range(0, len(raw), size):
        yield raw[start : start + size]


def stored(source: TensorSource, name: str) -> tuple[ShardFile, TensorInfo] | None:
    """The file and place whose bytes are what `source` reads for `name`; None if it computes them.

    Sources say so by a method `stored`; those without one compute everything.
    """
    find = getattr(source, "stored", None)
    found: tuple[ShardFile, TensorInfo] | None = None if find is None else find(name)
    return found


def nonfinite(names: list[str], path: Path) -> SutureError:
    """The refusal of weights that hold NaN or Inf."""
    return SutureError(
        "E117",
        f"NaN or infinite values in {len(names)} tensor{'s' * (len(names) > 1)}: {some(names)}",
        where=str(path),
        why="a model with such a weight answers nonsense without any error",
        fix="use another checkpoint of this run; --allow-nonfinite only to look at it",
    )


def edit_view(info: TensorInfo, edit: TensorEdit) -> memoryview:
    """The raw bytes of a whole edit, checked: E127 another shape or dtype, E117 NaN or Inf."""
    shape, dtype = tuple(edit.value.shape), dtypes.safetensors_dtype(edit.value.dtype)
    if shape != info.shape or dtype != info.dtype:
        raise wrong_edit(info, dtype, shape)
    raw = dtypes.view_bytes(edit.value)
    bad = sum(
        dtypes.count_nonfinite(dtype, raw[start : start + TILE])
        for start in range(0, len(raw), TILE)
    )
    if bad:
        raise SutureError(
            "E117",
            f"the edit holds {bad:,} NaN or infinite values",
            where=edit.name,
            why="a model with such a weight answers nonsense without any error",
        )
    return raw


def wrong_edit(info: TensorInfo, dtype: str, shape: tuple[int, ...]) -> SutureError:
    """The refusal of an edit that does not fit its tensor."""
    return SutureError(
        "E127",
        f"edit of {dtype} {list(shape)} for a tensor of {info.dtype} {list(info.shape)}",
        where=info.name,
        why="an edited tensor keeps the base tensor's dtype and shape",
    )
