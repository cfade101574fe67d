"""`PatchedCheckpoint`: a base and its patches, read as one model without writing it."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from suture.checkpoint import dtypes, folder
from suture.checkpoint.jsonfile import parse_json
from suture.checkpoint.names import find_ties
from suture.checkpoint.reader import small_files
from suture.checkpoint.source import (
    TensorInfo,
    TensorSource,
    blake2b,
    iter_tiles,
    lookup,
    source_fingerprint,
)
from suture.checkpoint.tiles import ShardFile, scan
from suture.checkpoint.vetting import vet_config, vet_neighbours
from suture.checkpoint.writer import copy_file
from suture.errors import SutureError
from suture.patch.encodings import damaged, decode
from suture.patch.format import Patch, Record
from suture.progress import track

if TYPE_CHECKING:
    import torch


class PatchedCheckpoint:
    """`base` with `patches` applied in order, tensor by tensor while reading.

    The fingerprint equals that of the materialised model. Every touched tensor's base hash is
    checked first: E206 when the base is another model, E207 when the order is wrong. Every whole
    read is checked against the result hash (E205).
    """

    def __init__(self, base: TensorSource, patches: Sequence[Path | str | Patch]) -> None:
        opened = [item if isinstance(item, Patch) else Patch.open(item) for item in patches]
        current: TensorSource = base
        for index, patch in enumerate(opened):
            current = _Layer(current, patch, opened[:index], opened[index + 1 :])
        self.base, self.patches, self._top = base, tuple(opened), current
        self.path, self.config, self.tensors = current.path, current.config, current.tensors
        self.allow_nonfinite = bool(getattr(base, "allow_nonfinite", False))
        self.ties: Mapping[str, str] = getattr(current, "ties", {})
        self.stored_aliases: Mapping[str, TensorInfo] = getattr(current, "stored_aliases", {})

    def read(self, name: str) -> torch.Tensor:
        """The patched tensor on the CPU, in fresh memory; E117 if it holds NaN or Inf."""
        return self._top.read(name)

    def read_bytes(self, name: str) -> bytes:
        """The patched tensor's raw bytes."""
        return self._top.read_bytes(name)

    def tiles(self, name: str, size: int = 1 << 22) -> Iterator[memoryview]:
        """The patched bytes in tiles of `size`."""
        return iter_tiles(self._top, name, size)

    def tensor_hash(self, name: str) -> str:
        """BLAKE2b-256 of the patched bytes, from the record where there is one."""
        return self._top.tensor_hash(name)

    def fingerprint(self) -> str:
        """The patched model's fingerprint, checked against the patch where the base is its own."""
        return self._top.fingerprint()

    def check_finite(self) -> None:
        """SutureError E117 when the base or a patched tensor holds NaN or Inf."""
        check = getattr(self._top, "check_finite", None)
        if check is not None:
            check()

    def plain_shard(self, name: str) -> ShardFile | None:
        """The base's shard when no patch touches anything in it."""
        find = getattr(self._top, "plain_shard", None)
        return find(name) if find is not None else None


class _Layer:
    """One patch over one source."""

    def __init__(
        self,
        base: TensorSource,
        patch: Patch,
        earlier: Sequence[Patch] = (),
        later: Sequence[Patch] = (),
    ) -> None:
        self._base, self._patch = base, patch
        self.allow_nonfinite = bool(getattr(base, "allow_nonfinite", False))
        _check_base(base, patch, earlier, later)
        self.path, self.config = _small_files(self, base, patch)
        self.tensors = MappingProxyType(_tensors(base, patch))
        ties = find_ties(self.tensors, self.config)
        self.ties: Mapping[str, str] = {k: v for k, v in ties.items() if k not in self.tensors}
        stored: Mapping[str, TensorInfo] = getattr(base, "stored_aliases", {})
        self.stored_aliases = {k: v for k, v in stored.items() if k in self.ties}

    def read(self, name: str) -> torch.Tensor:
        record = self._patch.tensors.get(lookup(self, name).name)
        if record is None:
            return self._base.read(name)
        raw = bytearray().join(self.tiles(name))
        info = self.tensors[name]
        if not self.allow_nonfinite and dtypes.count_nonfinite(info.dtype, raw):
            raise SutureError(
                "E117", f"NaN or infinite values in '{name}'", where=str(self._patch.path)
            )
        return dtypes.from_bytes(raw, info.dtype, info.shape)

    def read_bytes(self, name: str) -> bytes:
        lookup(self, name)
        if name not in self._patch.tensors:
            return self._base.read_bytes(name)
        return b"".join(self.tiles(name))

    def tiles(self, name: str, size: int = 1 << 22) -> Iterator[memoryview]:
        lookup(self, name)
        record = self._patch.tensors.get(name)
        if record is None:
            yield from iter_tiles(self._base, name, size)
            return
        state = hashlib.blake2b(digest_size=32)
        for tile in _rechunk(self._decoded(record), size):
            state.update(tile)
            yield tile
        if record.result is None or state.hexdigest() != record.result.hash:
            raise damaged(f"'{name}' does not come out as listed", str(self._patch.path))

    def tensor_hash(self, name: str) -> str:
        lookup(self, name)
        record = self._patch.tensors.get(name)
        if record is None or record.result is None:
            return self._base.tensor_hash(name)
        return record.result.hash

    def fingerprint(self) -> str:
        found = source_fingerprint(self)
        same_base = self._base.fingerprint() == self._patch.base_fingerprint
        if same_base and found != self._patch.result_fingerprint:
            raise damaged("the result is not the model it promises", str(self._patch.path))
        return found

    def check_finite(self) -> None:
        check = getattr(self._base, "check_finite", None)
        if check is not None:
            check()
        if self.allow_nonfinite:
            return
        bad = [
            name
            for name in track(self._patch.tensors, "reading patched weights")
            if name in self.tensors and scan(self.tensors[name].dtype, self.tiles(name)).nonfinite
        ]
        if bad:
            shown = ", ".join(bad[:6])
            raise SutureError(
                "E117",
                f"NaN or infinite values in {len(bad)} patched tensors: {shown}",
                where=str(self._patch.path),
                why="a model with such a weight answers nonsense without any error",
            )

    def plain_shard(self, name: str) -> ShardFile | None:
        if any(info.file == name and info.start < 0 for info in self.tensors.values()):
            return None
        plain = getattr(self._base, "plain_shard", None)
        found = plain(name) if plain is not None else None
        return found if isinstance(found, ShardFile) else None

    def _decoded(self, record: Record) -> Iterator[bytes]:
        """Common leading bytes through the difference, then what only the result has."""
        patch, dtype = self._patch, (record.result or record.base)
        assert dtype is not None
        width = dtypes.word(dtype.dtype)
        delta = patch.payload(record.name, "delta")
        if delta is not None:
            source = _cut(iter_tiles(self._base, record.name, patch.tile), record.common)
            yield from decode(
                lambda start, count: patch.read(delta, start, count),
                delta.nbytes,
                source,
                width,
                reverse=patch.reverse,
            )
        tail = patch.payload(record.name, "result")
        if tail is not None and record.result is not None:
            left = record.result.nbytes - record.common
            zeros = (bytes(min(patch.tile, left - at)) for at in range(0, left, patch.tile))
            yield from decode(
                lambda start, count: patch.read(tail, start, count),
                tail.nbytes,
                zeros,
                width,
                reverse=False,
            )


def _check_base(
    base: TensorSource, patch: Patch, earlier: Sequence[Patch], later: Sequence[Patch]
) -> None:
    """Every touched tensor and file must be what the patch was made against."""
    wrong = []
    for name, record in patch.tensors.items():
        info = base.tensors.get(name)
        if record.base is None:
            fits = info is None
        else:
            fits = info is not None and (info.dtype, info.shape, base.tensor_hash(name)) == (
                record.base.dtype,
                record.base.shape,
                record.base.hash,
            )
        if not fits:
            wrong.append(name)
    if wrong:
        raise _mismatch(wrong, base, patch, earlier, later)
    for name, file in patch.files.items():
        path = folder.inside(base.path, name)
        found = blake2b(path.read_bytes()) if path.is_file() else None
        if found != (file.base.hash if file.base else None):
            raise SutureError(
                "E206",
                f"the patch was made for another version of '{name}'",
                where=str(path),
                why="its tokenizer or config change would not fit",
                fix="use the base it was made from, or put that file back",
            )


def _mismatch(
    wrong: list[str],
    base: TensorSource,
    patch: Patch,
    earlier: Sequence[Patch],
    later: Sequence[Patch],
) -> SutureError:
    shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
    touched = {name for other in earlier for name in other.tensors}
    record = patch.tensors[wrong[0]]
    made_by = [
        other
        for other in (*earlier, *later)
        if (found := other.tensors.get(wrong[0])) is not None
        and (found.result.hash if found.result else None)
        == (record.base.hash if record.base else None)
    ]
    if made_by or touched & set(wrong):
        return SutureError(
            "E207",
            f"patches in the wrong order: '{patch.path.name}' does not follow here ({shown})",
            where=str(patch.path),
            why="patches on the same tensors stack exactly only in the order they were made",
            fix=f"give '{made_by[0].path.name}' right before '{patch.path.name}'"
            if made_by
            else "make the second patch on top of the first: suture diff FIRST_RESULT EDITED",
        )
    return SutureError(
        "E206",
        f"wrong base: {len(wrong)} of {len(patch.tensors)} tensors are not what the patch was "
        f"made for: {shown}",
        where=str(base.path),
        why=f"the patch belongs to the model {patch.base_fingerprint[:16]}…",
        fix="give the checkpoint the patch was made from; suture inspect CKPT --hash shows "
        "a model's fingerprint",
    )


def _tensors(base: TensorSource, patch: Patch) -> dict[str, TensorInfo]:
    """The base's tensors with changed, removed and, at the end, new ones; -1 for patched bytes."""
    found = dict(base.tensors)
    last = next(reversed(found.values())).file if found else folder.SINGLE
    for name, record in patch.tensors.items():
        if record.result is None:
            del found[name]
            continue
        file = found[name].file if name in found else last
        side = record.result
        found[name] = TensorInfo(name, side.dtype, side.shape, file, -1, side.nbytes)
    return found


def _small_files(owner: object, base: TensorSource, patch: Patch) -> tuple[Path, dict[str, Any]]:
    """The folder and config after the patch: the base's own, or a temporary copy where the patch
    changes small files; the copy goes when `owner` does."""
    if not patch.files:
        return base.path, base.config
    home = Path(tempfile.mkdtemp(prefix="suture-files-"))
    cleanup = weakref.finalize(owner, _remove, home)
    try:
        for name in small_files(base.path):
            if name not in patch.files:
                copy_file(base.path / name, home / name)
        for name in patch.files:
            content = patch.file_bytes(name)
            if content is not None:
                (home / name).write_bytes(content)
        vet_neighbours(home)
        if folder.CONFIG not in patch.files:
            return home, base.config
        content = patch.file_bytes(folder.CONFIG)
        if content is None:
            raise SutureError("E204", "a patch cannot remove config.json", where=str(patch.path))
        where = f"{patch.path}: config.json"
        return home, vet_config(parse_json(content, where=where), where=where)
    except BaseException:
        cleanup()
        raise


def _remove(home: Path) -> None:
    import shutil

    shutil.rmtree(home, ignore_errors=True)


def _cut(tiles: Iterator[memoryview], count: int) -> Iterator[memoryview]:
    """The first `count` bytes of a stream of tiles."""
    for tile in tiles:
        if count <= 0:
            return
        yield tile[:count]
        count -= len(tile)


def _rechunk(chunks: Iterator[bytes], size: int) -> Iterator[memoryview]:
    """The same bytes in pieces of `size`, the last one shorter."""
    held = bytearray()
    for chunk in chunks:
        if not held and len(chunk) == size:
            yield memoryview(chunk)
            continue
        held += chunk
        while len(held) >= size:
            yield memoryview(bytes(held[:size]))
            del held[:size]
    if held:
        yield memoryview(bytes(held))
