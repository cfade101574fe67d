"""`PatchWriter`: edits in, a patch folder out, in one pass and with one tensor in memory."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from suture.checkpoint import dtypes, folder
from suture.checkpoint.hashes import blake2b_file
from suture.checkpoint.header import build_header
from suture.checkpoint.jsonfile import write_json
from suture.checkpoint.source import (
    TensorEdit,
    TensorInfo,
    TensorSource,
    blake2b,
    edit_bytes,
    fingerprint_of,
    iter_tiles,
    layout_id,
    lookup,
)
from suture.checkpoint.staging import Stage, disk_errors, refuse_inside
from suture.errors import SutureError
from suture.patch.encodings import TILE, deflate, encode
from suture.patch.format import DATA, FILES, FILES_CAP, FORMAT, KIND, Patch, PatchInfo, seal
from suture.versions import versions

_NAMED = ("recipe", "method", "seeds", "measurements")  # provenance keys with a place of their own


class PatchWriter:
    """Sink that writes the difference between `base` and its edits to the folder `out`.

    `provenance`: JSON facts about how the edits were made; `recipe`, `method`, `seeds` and
    `measurements` get fields of their own. `info` is known after `prepare`. Errors: E124, E125 the
    output, E127, E130 an edit that does not fit, E208 when nothing changed at all.
    """

    def __init__(
        self,
        base: TensorSource,
        out: Path | str,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self._base, self._provenance = base, dict(provenance or {})
        refuse_inside(out, base.path)
        self.info: PatchInfo | None = None
        self.stage = Stage(out)
        self._seen: set[str] = set()
        self._records: list[dict[str, Any]] = []
        self._files: list[dict[str, Any]] = []
        self._sizes: list[tuple[str, int]] = []
        self._identity = {name: (info.dtype, info.shape, "") for name, info in base.tensors.items()}
        self._spool = open(self.stage.path / ".payloads", "xb")  # noqa: SIM115 closed in abort

    @property
    def changed(self) -> int:
        """How many tensors differ so far."""
        return len(self._records)

    def put(self, edit: TensorEdit) -> None:
        """Record one changed tensor; an edit equal to the base leaves no record."""
        info = lookup(self._base, edit.name)
        if edit.name in self._seen:
            raise SutureError("E127", "the same tensor was edited twice", where=edit.name)
        self._seen.add(edit.name)
        raw = memoryview(edit_bytes(info, edit))
        digest = blake2b(raw)
        if digest != self._base.tensor_hash(edit.name):
            tiles = (raw[start : start + TILE] for start in range(0, len(raw), TILE))
            self.put_tiles(info, tiles, info.shape, digest)

    def put_tiles(
        self, info: TensorInfo, tiles: Iterable[Any], shape: tuple[int, ...], digest: str
    ) -> None:
        """Record base tensor `info` becoming a tensor of `shape` whose raw bytes come in tiles.

        `shape` may have more rows than the base (`extended`); tiles are of TILE bytes. What was
        encoded is hashed on the way: E129 if a file changed since it was compared.
        """
        width = dtypes.word(info.dtype)
        kind = "bits" if shape == info.shape else "extended"
        old = _Hashed(iter_tiles(self._base, info.name, TILE))
        new = _Hashed(tiles)
        taken = _Prefix(new, info.nbytes)
        operations = set()
        elements = 0
        with disk_errors(self.stage.out), _Payload(self, f"{info.name}#delta") as write:
            for block, changed in encode(zip(old, taken, strict=True), width):
                operations.add(block[0])
                elements += changed
                write(block)
        if kind == "extended":
            elements += self._put_whole(f"{info.name}#result", taken.rest(), width)
        elif operations <= {0, 3}:
            kind = "sparse"
        before = self._base.tensor_hash(info.name)
        old.expect(before, info.name)
        new.expect(digest, info.name)
        sides = _side(info.dtype, info.shape, before), _side(info.dtype, shape, digest)
        self._add(info.name, kind, *sides, elements)

    def put_new(self, info: TensorInfo, tiles: Iterable[Any], digest: str) -> None:
        """Record a tensor that only the result has."""
        read = _Hashed(tiles)
        elements = self._put_whole(f"{info.name}#result", read, dtypes.word(info.dtype))
        read.expect(digest, info.name)
        self._add(info.name, "new", None, _side(info.dtype, info.shape, digest), elements)

    def put_removed(self, info: TensorInfo) -> None:
        """Record a tensor that only the base has; its bytes are kept for `revert`."""
        read = _Hashed(iter_tiles(self._base, info.name, TILE))
        elements = self._put_whole(f"{info.name}#base", read, dtypes.word(info.dtype))
        digest = self._base.tensor_hash(info.name)
        read.expect(digest, info.name)
        self._add(info.name, "removed", _side(info.dtype, info.shape, digest), None, elements)

    def put_file(self, name: str, before: bytes | None, after: bytes | None) -> None:
        """Record a changed small file, both versions; only names in `FILES` (E210)."""
        record: dict[str, Any] = {"name": name}
        for part, content in (("base", before), ("result", after)):
            record[part] = None
            if content is not None:
                record[part] = {"hash": blake2b(content), "bytes": len(content)}
                with disk_errors(self.stage.out), _Payload(self, f"file:{name}#{part}") as write:
                    write(deflate(content))
        self._files.append(record)
        sides = [item[part] for item in self._files for part in ("base", "result") if item[part]]
        if name not in FILES or sum(side["bytes"] for side in sides) > FILES_CAP:
            raise SutureError(
                "E210",
                f"a patch cannot carry '{name}'",
                why=f"only tokenizer and config files, at most {FILES_CAP >> 20} MB in all",
                fix="give both checkpoints the same version of this file",
            )

    def prepare(self) -> None:
        """Seal the patch and read it again; E208 when it would be empty."""
        if not self._records and not self._files:
            raise nothing_changed()
        with disk_errors(self.stage.out):
            self._write_data()
            write_json(self.stage.path / folder.PATCH, self._manifest())
        self.stage.seal()
        self.info = replace(Patch.open(self.stage.path).info, path=self.stage.out)

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
        self._spool.close()
        self.stage.discard()

    def withdraw(self) -> None:
        """Remove the published folder again; harmless when nothing was published."""
        self.stage.withdraw()

    def _add(self, name: str, encoding: str, base: Any, result: Any, elements: int) -> None:
        self._records.append(
            {
                "name": name,
                "encoding": encoding,
                "base": base,
                "result": result,
                "elements": elements,
            }
        )
        if result is None:
            del self._identity[name]
        else:
            self._identity[name] = (result["dtype"], tuple(result["shape"]), result["hash"])

    def _put_whole(self, key: str, tiles: Iterable[Any], width: int) -> int:
        """Bytes that one side lacks, as differences from zeros; returns the number of elements."""
        size = 0
        with disk_errors(self.stage.out), _Payload(self, key) as write:

            def pairs() -> Iterator[tuple[bytes, bytes]]:
                nonlocal size
                for tile in tiles:
                    size += len(tile)
                    yield bytes(len(tile)), bytes(tile)

            for block, _changed in encode(pairs(), width):
                write(block)
        return size // width

    def _write_data(self) -> None:
        """Header first, then the spooled payloads: sizes are only known at the end."""
        self._spool.close()
        spool = self.stage.path / ".payloads"
        entries = [(key, "U8", (size,)) for key, size in self._sizes]
        header, _starts = build_header(entries, {"format": "suture-patch"})
        with open(self.stage.path / DATA, "xb") as out, open(spool, "rb") as payloads:
            out.write(header)
            shutil.copyfileobj(payloads, out, 1 << 20)
        spool.unlink()

    def _manifest(self) -> dict[str, Any]:
        data = self.stage.path / DATA
        result = fingerprint_of(
            (name, dtype, shape, digest or self._base.tensor_hash(name))
            for name, (dtype, shape, digest) in self._identity.items()
        )
        fields: dict[str, Any] = {key: self._provenance.get(key) for key in _NAMED}
        rest = {key: value for key, value in self._provenance.items() if key not in _NAMED}
        return seal(
            {
                "format": FORMAT,
                "kind": KIND,
                "base": {
                    "fingerprint": self._base.fingerprint(),
                    "layout_id": layout_id(self._base.tensors),
                    "model_type": self._base.config.get("model_type"),
                },
                "result": {"fingerprint": result},
                **fields,
                "provenance": rest,
                "versions": versions(),
                "ties": dict(getattr(self._base, "ties", {})),
                "tile": TILE,
                "tensors": self._records,
                "files": self._files,
                "data": {DATA: {"bytes": data.stat().st_size, "blake2b": blake2b_file(data)}},
            }
        )


class _Payload:
    """Appends blocks to the spool and notes the payload's size under its key."""

    def __init__(self, writer: PatchWriter, key: str) -> None:
        self._writer, self._key, self._size = writer, key, 0

    def __enter__(self) -> Any:
        return self._write

    def _write(self, block: bytes) -> None:
        self._writer._spool.write(block)
        self._size += len(block)

    def __exit__(self, kind: object, *_rest: object) -> None:
        if kind is None:
            self._writer._sizes.append((self._key, self._size))


class _Hashed:
    """A stream of tiles as bytes, hashed while it passes."""

    def __init__(self, tiles: Iterable[Any]) -> None:
        self._tiles, self._state = tiles, hashlib.blake2b(digest_size=32)

    def __iter__(self) -> Iterator[bytes]:
        for tile in self._tiles:
            self._state.update(tile)
            yield bytes(tile)

    def expect(self, digest: str, name: str) -> None:
        """SutureError E129 unless what passed has this hash."""
        if self._state.hexdigest() != digest:
            raise SutureError(
                "E129",
                "the file changed while it was being read",
                where=name,
                why="the patch would mix two models",
                fix="wait until nothing writes to the models, then run the same command again",
            )


class _Prefix:
    """The first `count` bytes of a stream of tiles; `rest()` gives what follows, re-tiled."""

    def __init__(self, tiles: Iterable[Any], count: int) -> None:
        self._tiles, self._left, self._over = iter(tiles), count, b""

    def __iter__(self) -> Iterator[bytes]:
        while self._left > 0:
            tile = bytes(next(self._tiles))
            self._over = tile[self._left :]
            tile = tile[: self._left]
            self._left -= len(tile)
            yield tile

    def rest(self) -> Iterator[bytes]:
        """Tiles of TILE bytes over everything after the prefix."""
        held = bytearray(self._over)
        for tile in self._tiles:
            held += tile
            if len(held) >= TILE:
                yield bytes(held[:TILE])
                del held[:TILE]
        if held:
            yield bytes(held)


def nothing_changed() -> SutureError:
    """The refusal of an edit, or of a difference, that is empty."""
    return SutureError(
        "E208",
        "nothing changed: every tensor is as it was",
        why="an empty patch would look like a finished repair",
        fix="check the method's settings, or that the two models are not the same one",
    )


def _side(dtype: str, shape: tuple[int, ...], digest: str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "hash": digest}
