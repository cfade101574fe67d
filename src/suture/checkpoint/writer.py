"""`CheckpointWriter`: edits in, a whole Hugging Face folder out.

The output keeps the source's shards. A shard without edits is copied (reflinked where the file
system can); in the others each tensor is written at its own offset, in whatever order edits come,
so memory is one tensor. suture.json lists what was written, by hash.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from suture.checkpoint import dtypes, folder
from suture.checkpoint.hashes import blake2b_file
from suture.checkpoint.header import build_header
from suture.checkpoint.jsonfile import read_json, write_json
from suture.checkpoint.reader import Checkpoint, small_files
from suture.checkpoint.source import (
    TensorEdit,
    TensorInfo,
    TensorSource,
    blake2b,
    edit_bytes,
    fingerprint_of,
    iter_tiles,
    lookup,
)
from suture.checkpoint.staging import Stage, disk_errors, refuse_inside
from suture.checkpoint.tiles import ShardFile
from suture.errors import SutureError
from suture.progress import track

MANIFEST_FORMAT = 1
_FICLONE = 0x40049409  # Linux: share the blocks of a file on btrfs and xfs


@dataclass
class _OutputShard:
    """One file to write: its tensors in order, where each begins, and whether any was edited."""

    name: str
    tensors: list[TensorInfo]
    header: bytes
    starts: dict[str, int]
    file: BinaryIO | None = None
    written: set[str] = field(default_factory=set)


class CheckpointWriter:
    """Sink that writes `base` with edits applied to `out`, staged and published at `close`.

    `card`: text of a README.md that replaces the base's. `provenance`: facts for the manifest
    (method, patches, seeds), JSON only. Errors: E124 output exists or lies in
    the input, E125 disk, E127 an edit of another shape or dtype, E130 of an unknown tensor.
    """

    def __init__(
        self,
        base: TensorSource,
        out: Path | str,
        *,
        card: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self._base, self._card, self._provenance = base, card, dict(provenance or {})
        refuse_inside(out, base.path)
        self.stage = Stage(out, need=sum(info.nbytes for info in base.tensors.values()))
        self._hashes: dict[str, str] = {}
        self.fingerprint = ""  # of the written model, known after `prepare`
        self._aliases: Mapping[str, TensorInfo] = getattr(base, "stored_aliases", {})
        self._ties: Mapping[str, str] = getattr(base, "ties", {})
        self._shards = _plan(base, self._aliases)
        self._home = {info.name: shard for shard in self._shards for info in shard.tensors}

    @property
    def changed(self) -> int:
        """How many tensors were edited to other bytes than the base's."""
        return sum(new != self._base.tensor_hash(name) for name, new in self._hashes.items())

    def put(self, edit: TensorEdit) -> None:
        """Write one changed tensor (and its tied copy, where the base stores one)."""
        info = lookup(self._base, edit.name)
        if edit.name in self._hashes:
            raise SutureError("E127", "the same tensor was edited twice", where=edit.name)
        raw = edit_bytes(info, edit)
        with disk_errors(self.stage.out):
            for name in self._names(edit.name):
                self._write(name, iter([memoryview(raw)]))
        self._hashes[edit.name] = blake2b(raw)

    def prepare(self) -> None:
        """Write what was not edited, the small files and the manifest."""
        with disk_errors(self.stage.out):
            for shard in track(self._shards, "writing shards"):
                self._finish(shard)
            self._write_small_files()
            self._write_manifest()
        self.stage.seal()

    def publish(self) -> None:
        """Give the prepared folder its final name."""
        self.stage.publish()

    def close(self) -> None:
        """`prepare` and `publish`; nothing staged is left behind when either fails."""
        try:
            self.prepare()
            self.publish()
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove everything staged; harmless after `close`."""
        for shard in self._shards:
            if shard.file is not None:
                shard.file.close()
                shard.file = None
        self.stage.discard()

    def withdraw(self) -> None:
        """Remove the published folder again; harmless when nothing was published."""
        self.stage.withdraw()

    def _names(self, name: str) -> list[str]:
        return [name, *(alias for alias in self._aliases if self._ties.get(alias) == name)]

    def _write(self, name: str, tiles: Iterator[memoryview]) -> None:
        shard = self._home[name]
        if shard.file is None:
            shard.file = open(self.stage.path / shard.name, "xb")  # noqa: SIM115 closed in _finish
            shard.file.write(shard.header)
        shard.file.seek(shard.starts[name])
        for tile in tiles:
            shard.file.write(tile)
        shard.written.add(name)

    def _finish(self, shard: _OutputShard) -> None:
        """Complete a shard: copied whole when nothing in it changed, tensor by tensor otherwise."""
        plain = _plain_shard(self._base, shard.name) if shard.file is None else None
        if plain is not None and set(plain.tensors) == {info.name for info in shard.tensors}:
            copy_file(plain.path, self.stage.path / shard.name)
            plain.check_unchanged()
            return
        for info in shard.tensors:
            if info.name not in shard.written:
                name = self._ties[info.name] if info.name in self._aliases else info.name
                self._write(info.name, iter_tiles(self._base, name))
        if shard.file is None:  # a shard without tensors
            (self.stage.path / shard.name).write_bytes(shard.header)
            return
        shard.file.truncate(len(shard.header) + sum(info.nbytes for info in shard.tensors))
        shard.file.close()
        shard.file = None

    def _write_small_files(self) -> None:
        for name in small_files(self._base.path):
            if name == "README.md" and self._card is not None:
                continue
            copy_file(self._base.path / name, self.stage.path / name)
        if self._card is not None:
            (self.stage.path / "README.md").write_text(self._card, encoding="utf-8")
        if len(self._shards) > 1 or self._shards[0].name != folder.SINGLE:
            total = sum(info.nbytes for shard in self._shards for info in shard.tensors)
            weight_map = {i.name: shard.name for shard in self._shards for i in shard.tensors}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(self.stage.path / folder.INDEX, index)

    def _write_manifest(self) -> None:
        """suture.json: the fingerprint, every file and every tensor by hash."""
        tensors = {
            name: self._hashes.get(name) or self._base.tensor_hash(name)
            for name in self._base.tensors
        }
        self.fingerprint = fingerprint_of(
            (name, info.dtype, info.shape, tensors[name])
            for name, info in self._base.tensors.items()
        )
        listed = {
            path.name: {"bytes": path.stat().st_size, "blake2b": blake2b_file(path)}
            for path in sorted(self.stage.path.iterdir())
        }
        manifest = {
            "format": MANIFEST_FORMAT,
            "kind": "checkpoint",
            "fingerprint": self.fingerprint,
            "base_fingerprint": self._base.fingerprint(),
            "provenance": self._provenance,
            "edited": sorted(self._hashes),
            "ties": dict(self._ties),
            "tensors": tensors,
            "files": listed,
        }
        write_json(self.stage.path / folder.MANIFEST, manifest)


def _plan(base: TensorSource, aliases: Mapping[str, TensorInfo]) -> list[_OutputShard]:
    """The files to write: the source's own shards, wide dtypes first so that offsets align."""
    groups: dict[str, list[TensorInfo]] = {}
    if isinstance(base, Checkpoint):
        groups = {name: [] for name in base.shards}  # a shard may hold no tensor at all
    for info in (*base.tensors.values(), *aliases.values()):
        groups.setdefault(info.file, []).append(info)
    shards = []
    for name, infos in groups.items():
        if all(info.start >= 0 for info in infos):
            infos.sort(key=lambda info: (info.start, info.start + info.nbytes))
        else:
            infos.sort(key=lambda info: -dtypes.word(info.dtype))
        plain = _plain_shard(base, name)
        metadata = plain.metadata if plain else {"format": "pt"}
        header, starts = build_header([(i.name, i.dtype, i.shape) for i in infos], metadata)
        shards.append(_OutputShard(name, infos, header, starts))
    return shards


def _plain_shard(base: TensorSource, name: str) -> ShardFile | None:
    find = getattr(base, "plain_shard", None)
    return find(name) if find is not None else None


def copy_file(source: Path, target: Path) -> None:
    """Copy bytes, sharing blocks where the file system can; never a hard link."""
    if sys.platform == "linux":
        import fcntl

        try:
            with open(source, "rb") as old, open(target, "xb") as new:
                fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            return
        except OSError:
            target.unlink(missing_ok=True)
    shutil.copyfile(source, target)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """suture.json of a checkpoint folder, None when there is none."""
    if not (path / folder.MANIFEST).is_file():
        return None
    folder.inside(path, folder.MANIFEST)
    return read_json(path / folder.MANIFEST, cap=64 << 20, code="E126")


def changed_files(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Files that no longer match the manifest: missing, changed, or weights it does not list."""
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise SutureError("E126", "the manifest lists no files", where=str(path / folder.MANIFEST))
    wrong = []
    for name, entry in track(listed.items(), "hashing files", total=len(listed)):
        file = folder.inside(path, name)
        if not file.is_file():
            wrong.append(f"{name} (missing)")
        elif not isinstance(entry, dict) or blake2b_file(file) != entry.get("blake2b"):
            wrong.append(f"{name} (changed)")
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors") and name not in listed:
            wrong.append(f"{name} (not listed)")
    return wrong
