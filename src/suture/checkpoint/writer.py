"""`CheckpointWriter`: edits in, a whole Hugging Face folder out, in one pass.

The output keeps the source's shards. Their sizes are known beforehand, so every tensor is written
at its own offset in whatever order edits come, hashed on the way, and never read again. A shard
without edits is copied (reflinked where the file system can). suture.json lists what was written,
by hash. With an identity, a killed run goes on where it stopped.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from itertools import zip_longest
from pathlib import Path
from typing import Any

from suture.checkpoint import folder, lanes, memory
from suture.checkpoint.files import (
    begin_sync,
    clone_file,
    copy_file,
    copy_range,
    create,
    sync,
    write_at,
)
from suture.checkpoint.hashes import Content, Scanner, hash_file
from suture.checkpoint.journal import Journal
from suture.checkpoint.jsonfile import write_json
from suture.checkpoint.manifest import FORMAT
from suture.checkpoint.output import OutputShard, plan
from suture.checkpoint.reader import small_files
from suture.checkpoint.sink import Courier, StagedSink, miscounted
from suture.checkpoint.source import (
    TensorInfo,
    TensorSource,
    content_hash,
    fingerprint_of,
    iter_tiles,
    lookup,
    nonfinite,
    stored,
)
from suture.checkpoint.staging import Stage, crash_point, disk_errors, refuse_inside
from suture.checkpoint.tiles import ShardFile
from suture.errors import SutureError
from suture.progress import track

_IN_CACHE = 512 << 10  # bytes that are read, hashed and written before the next ones
_AHEAD = 1 << 20  # bytes of a tensor from which on the disk is told to begin at once
_WAITING = 16  # tensors under way at most
Facts = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


class CheckpointWriter(StagedSink):
    """Sink that writes `base` with edits applied to `out`, staged and published at `close`.

    `card`: text of a README.md that replaces the base's. `provenance`: facts for the manifest
    (method, patches, seeds), JSON only. Both may be functions: they are called when every tensor
    has passed and `fingerprint` is known. `origin`: the model to name as what the output came from,
    where `base` is one that patches were put on while reading. `identity`: names everything that
    decides the output; with it a killed run is resumed (without `resume`: only published, if it was
    sealed). Errors: E117 NaN or Inf, E124 output exists or lies in the input, E125 disk, E127 an
    edit of another shape or dtype, E130 of an unknown tensor, E131 a live run of the same identity.
    """

    def __init__(
        self,
        base: TensorSource,
        out: Path | str,
        *,
        card: str | Callable[[], str] | None = None,
        provenance: Facts | None = None,
        identity: str | None = None,
        resume: bool = True,
        origin: TensorSource | None = None,
    ) -> None:
        self._base, self._card, self._provenance = base, card, provenance or {}
        self._origin = base if origin is None else origin
        refuse_inside(out, base.path)
        self._aliases: Mapping[str, TensorInfo] = getattr(base, "stored_aliases", {})
        self._ties: Mapping[str, str] = getattr(base, "ties", {})
        self._shards = plan(base, self._aliases)
        self._home = {info.name: shard for shard in self._shards for info in shard.tensors}
        need = sum(info.nbytes for info in base.tensors.values())
        self.stage = Stage(out, need=need, identity=identity, resume=resume)
        self.fingerprint = ""  # of the written model, known after `prepare`
        self.done: set[str] = set()
        self._courier = Courier()
        self._begun: set[str] = set()
        self._edited: dict[str, str] = {}
        self._kept: dict[str, str] = {}
        self._broken: list[str] = []
        self._pending: deque[tuple[_Slot, lanes.Coming]] = deque()
        self._journal: Journal | None = None
        try:
            if identity is not None:
                self._resume()
        except BaseException:
            self.abort()
            raise

    @property
    def changed(self) -> int:
        """How many tensors were edited to other bytes than the base's."""
        self._settle(wait=True)
        return sum(new != self._base.tensor_hash(name) for name, new in self._edited.items())

    def begin(self, name: str) -> _Slot:
        """Start one changed tensor (and its tied copy, where the base stores one)."""
        info = lookup(self._base, name)
        if name in self._begun:
            raise SutureError("E127", "the same tensor was edited twice", where=name)
        self._begun.add(name)
        aliases = [alias for alias in self._aliases if self._ties.get(alias) == name]
        return self._slot(info, [name, *aliases], edited=True)

    def prepare(self) -> None:
        """Write what was not edited, the small files and the manifest."""
        with disk_errors(self.stage.out):
            for shard, info in track(self._missing(), "writing tensors"):
                self._bring(shard, info)
            self._settle(wait=True)
            self._refuse_nonfinite()
            if self._journal is not None:
                self._journal.wait()
            for shard in self._shards:
                self._close(shard)
            crash_point("before-index")
            self._write_small_files()
            crash_point("before-manifest")
            self._write_manifest()
        self.stage.seal()

    def _slot(self, info: TensorInfo, names: list[str], *, edited: bool) -> _Slot:
        places = []
        for name in names:
            shard = self._home[name]
            places.append((self._open(shard), shard.starts[name]))
        return _Slot(self, info, names, places, edited)

    def _open(self, shard: OutputShard) -> int:
        if shard.fd < 0:
            with disk_errors(self.stage.out):
                shard.fd = create(self.stage.path / shard.name, shard.size)
                write_at(shard.fd, shard.header, 0)
        return shard.fd

    def _close(self, shard: OutputShard) -> None:
        if shard.fd >= 0:
            fd, shard.fd = shard.fd, -1
            os.close(fd)

    def _ended(self, slot: _Slot, content: lanes.Coming) -> None:
        self._pending.append((slot, content))
        self._settle()

    def _settle(self, *, wait: bool = False) -> None:
        """Take note of the tensors whose bytes and hash are there, in the order they came."""
        while self._pending:
            slot, coming = self._pending[0]
            crowded = len(self._pending) > _WAITING
            ready = coming.done() and all(job.done() for job in slot.jobs)
            if not (wait or crowded or ready):
                return
            self._pending.popleft()
            lanes.settle(slot.jobs)
            content = slot.checked(coming.result())
            slot.begin_sync()
            if content.nonfinite:
                self._broken.append(slot.info.name)
            kind = "edited" if slot.edited else "kept"
            self._note(kind, slot.info.name, content.hash, slot.names, slot.info.nbytes)
        if self._broken:
            self._refuse_nonfinite()

    def _note(self, kind: str, name: str, digest: str, names: list[str], nbytes: int) -> None:
        """A tensor is finished: in memory, and in the journal where there is one."""
        (self._edited if kind == "edited" else self._kept)[name] = digest
        for each in names:
            self._home[each].written.add(each)
        if self._journal is not None:
            self._journal.add(kind, name, digest, names, nbytes=nbytes)
            self._journal.sync(lambda: sync([s.fd for s in self._shards if s.fd >= 0]))

    def _refuse_nonfinite(self) -> None:
        """E117 for kept or edited tensors with NaN or Inf, in the source's own words if it has."""
        if self._broken and not getattr(self._base, "allow_nonfinite", False):
            check = getattr(self._base, "check_finite", None)
            if check is not None and not set(self._broken) & set(self._edited):
                check()
            raise nonfinite(self._broken, self._base.path)

    def _missing(self) -> list[tuple[OutputShard, TensorInfo]]:
        """What nobody edited and no former run wrote, in the order in which to bring it over.

        Shards go side by side, as many as there are lanes: the system lets two writers into two
        files, but one after the other into one.
        """
        open_: list[list[tuple[OutputShard, TensorInfo]]] = []
        for shard in self._shards:
            if len(shard.written) == len(shard.tensors) and shard.tensors:
                continue
            if not self._clone(shard):
                self._open(shard)
                left = (info for info in shard.tensors if info.name not in shard.written)
                open_.append([(shard, info) for info in left])
        groups = (open_[at : at + lanes.LANES] for at in range(0, len(open_), lanes.LANES))
        rounds = (each for group in groups for each in zip_longest(*group))
        return [item for each in rounds for item in each if item is not None]

    def _clone(self, shard: OutputShard) -> bool:
        """Whether the shard could be shared with the source, nothing in it being changed and every
        hash being known."""
        if shard.fd >= 0 or shard.written or shard.whole is None:
            return False
        found = [(info, shard.whole.hashes.get(info.name)) for info in shard.tensors]
        known = [(info, content) for info, content in found if content is not None]
        if len(known) < len(found) or not known:
            return False
        if not clone_file(shard.whole.path, self.stage.path / shard.name):
            return False
        shard.whole.check_unchanged()
        if self._journal is not None:
            self._open(shard)  # so that it is synced before it is believed
        for info, content in known:
            if content.nonfinite:
                self._broken.append(info.name)
            self._note("kept", info.name, content.hash, [info.name], info.nbytes)
        return True

    def _bring(self, shard: OutputShard, info: TensorInfo) -> None:
        """Bring one untouched tensor over; its hash is made on the way unless it is remembered."""
        name = self._ties[info.name] if info.name in self._aliases else info.name
        slot = self._slot(info, [info.name], edited=False)
        place = slot.stored = stored(self._base, name)
        size = min(memory.buffer_bytes(), _IN_CACHE)
        unchecked = getattr(self._base, "unchecked", None)
        tiles: Iterator[memoryview]
        if place is not None:
            file, at = place
            if (known := file.hashes.get(at.name)) is not None:
                slot.copy(file, at)
                self._ended(slot, lanes.Ready(known))
                return
            tiles = file.tiles(at, size)
        elif unchecked is not None and (found := unchecked(name, size)) is not None:
            tiles, slot.expected = found
        else:
            pieces = ((tile, None) for tile in iter_tiles(self._base, name, size))
            self._courier.carry(info, pieces, [slot], Scanner(info.dtype))
            return
        scanner = Scanner(info.dtype)
        self._ended(slot, lanes.run(info.nbytes, slot.carry, tiles, scanner))

    def _resume(self) -> None:
        """Believe the journal of a killed run; whatever else it left is written again."""
        folder_ = self.stage.path
        expected = {shard.name: shard.size for shard in self._shards}
        found = {path.name: path.stat().st_size for path in folder_.iterdir() if path.is_file()}
        for name in set(found) - set(expected):
            (folder_ / name).unlink()
        self._journal = Journal(self.stage.journal, usable=self.stage.resumed)
        for kind, name, digest, names in self._journal.entries:
            shards = [self._home[each] for each in names]
            if any(found.get(shard.name) != shard.size for shard in shards):
                continue
            (self._edited if kind == "edited" else self._kept)[name] = digest
            for each, shard in zip(names, shards, strict=True):
                shard.written.add(each)
        self.done = set(self._edited)
        self._begun = set(self._edited)
        for shard in self._shards:
            if not shard.written and shard.name in found:
                (folder_ / shard.name).unlink()

    def _write_small_files(self) -> None:
        for name in small_files(self._base.path):
            if name == "README.md" and self._card is not None:
                continue
            copy_file(self._base.path / name, self.stage.path / name)
        self.fingerprint = fingerprint_of(
            (name, info.dtype, info.shape, self._hash(name))
            for name, info in self._base.tensors.items()
        )
        if self._card is not None:
            text = self._card() if callable(self._card) else self._card
            (self.stage.path / "README.md").write_text(text, encoding="utf-8")
        if len(self._shards) > 1 or self._shards[0].name != folder.SINGLE:
            total = sum(info.nbytes for shard in self._shards for info in shard.tensors)
            weight_map = {i.name: shard.name for shard in self._shards for i in shard.tensors}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(self.stage.path / folder.INDEX, index)

    def _write_manifest(self) -> None:
        """suture.json: the fingerprint, every file and every tensor by hash."""
        headers = {shard.name: content_hash(shard.header) for shard in self._shards}
        listed: dict[str, dict[str, Any]] = {}
        for path in sorted(self.stage.path.iterdir()):
            entry = listed[path.name] = {"bytes": path.stat().st_size}
            if path.name in headers:
                entry["header"] = headers[path.name]
            else:
                entry["hash"] = hash_file(path)
        facts = self._provenance() if callable(self._provenance) else self._provenance
        manifest = {
            "format": FORMAT,
            "kind": "checkpoint",
            "fingerprint": self.fingerprint,
            "base_fingerprint": self._origin.fingerprint(),
            "provenance": dict(facts),
            "edited": sorted(filter(self._is_edited, self._base.tensors)),
            "ties": dict(self._ties),
            "tensors": {name: self._hash(name) for name in self._base.tensors},
            "files": listed,
        }
        write_json(self.stage.path / folder.MANIFEST, manifest)

    def _is_edited(self, name: str) -> bool:
        if self._origin is self._base:
            return name in self._edited
        before = self._origin.tensors.get(name)
        return before is None or self._origin.tensor_hash(name) != self._hash(name)

    def _hash(self, name: str) -> str:
        return self._edited.get(name) or self._kept[name]

    def _release(self) -> None:
        for slot, content in self._pending:
            lanes.wait([*slot.jobs, content])
        if self._journal is not None:
            self._journal.close()
        for shard in self._shards:
            self._close(shard)


class _Slot:
    """Writes one tensor to its place, and to that of its tied copy."""

    def __init__(
        self,
        writer: CheckpointWriter,
        info: TensorInfo,
        names: list[str],
        places: list[tuple[int, int]],
        edited: bool,
    ) -> None:
        self.info, self.names, self.edited = info, names, edited
        self.jobs: list[lanes.Coming] = []
        self.expected: str | None = None  # the hash that a patch lists
        self.stored: tuple[ShardFile, TensorInfo] | None = None  # where its bytes come from
        self._writer, self._places, self._at, self._syncing = writer, places, 0, False

    def write(self, piece: memoryview, base: memoryview | None) -> list[Future[Any]]:
        """Write behind the main thread's back; short pieces at once."""
        at, self._at = self._at, self._at + len(piece)
        if self.info.nbytes < lanes.INLINE:
            self._store(piece, at)
            return []
        job = lanes.submit(self._store, piece, at)
        self.jobs.append(job)
        return [job]

    def carry(self, tiles: Iterable[memoryview], scanner: Scanner) -> Content:
        """Write and hash the tensor as it comes, all on the thread that calls."""
        at = 0
        for tile in tiles:
            scanner.update(tile)
            self._store(tile, at)
            at += len(tile)
        if at != self.info.nbytes:
            raise miscounted(self.info, at)
        self.begin_sync()
        return scanner.content()

    def copy(self, file: ShardFile, at: TensorInfo) -> None:
        """Bring all of it over from where it is stored; by the kernel, on a lane if it is long."""
        self.jobs.append(lanes.run(self.info.nbytes, self._copy, file, at))

    def checked(self, content: Content) -> Content:
        """What is known of the tensor now that its bytes have been hashed.

        A patch's own refusal where they do not come out as it lists.
        """
        base, name = self._writer._base, self.info.name
        if self.expected not in (None, content.hash):
            for _tile in iter_tiles(base, name, _IN_CACHE):
                pass
            raise SutureError("E129", f"'{name}' changed while it was read", where=str(base.path))
        if self.stored is not None:
            file, at = self.stored
            file.check_unchanged()
            if not file.hashes.has(at.name):
                file.hashes.set(at.name, content)
        return content

    def end(self, content: lanes.Coming) -> None:
        """Everything was handed over."""
        self._writer._ended(self, content)

    def _copy(self, file: ShardFile, at: TensorInfo) -> None:
        with disk_errors(self._writer.stage.out):
            for fd, start in self._places:
                copy_range(file.fileno(), at.start, fd, start, self.info.nbytes)
        self.begin_sync()

    def begin_sync(self) -> None:
        """All is written: on to the disk with it, once."""
        if self.info.nbytes >= _AHEAD and not self._syncing:
            self._syncing = True
            for fd, start in self._places:
                begin_sync(fd, start, self.info.nbytes)

    def _store(self, piece: memoryview, at: int) -> None:
        with disk_errors(self._writer.stage.out):
            for fd, start in self._places:
                write_at(fd, piece, start + at)
