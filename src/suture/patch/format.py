"""patch.json and what it promises: format 1, kind `delta`.

A patch folder holds patch.json and safetensors files, never a pickle. patch.json lists one record
per touched tensor and per changed small file, each with the hash before and after; the payloads
are byte strings in tensors-00001.safetensors. `fingerprint` hashes the records (what changes, from
what to what), `integrity` everything else in patch.json, `data` lists the payload files by hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from suture.checkpoint import dtypes, folder
from suture.checkpoint.hashes import blake2b_file
from suture.checkpoint.jsonfile import read_json
from suture.checkpoint.source import TensorInfo, blake2b
from suture.checkpoint.tiles import ShardFile
from suture.errors import SutureError
from suture.patch.encodings import TILE, damaged, inflate

FORMAT, KIND = 1, "delta"
DATA = "tensors-00001.safetensors"
MANIFEST_CAP = 64 << 20
FILES_CAP = 64 << 20  # all carried small files, both versions
ENCODINGS = ("bits", "sparse", "new", "removed", "extended")
# Small files a patch may carry: text and JSON that tokenizers and configs are made of.
FILES = frozenset(
    "config.json generation_config.json tokenizer.json tokenizer_config.json tokenizer.model "
    "special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt "
    "chat_template.jinja chat_template.json".split()
)


@dataclass(frozen=True)
class Side:
    """A tensor on one side of the patch: `hash` is BLAKE2b-256 of its raw bytes."""

    dtype: str
    shape: tuple[int, ...]
    hash: str

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return dtypes.nbytes(self.dtype, self.shape)


@dataclass(frozen=True)
class Record:
    """One touched tensor. `base` is None for `new`, `result` for `removed`.

    Payloads: `NAME#delta` turns the common leading bytes into each other, `NAME#result` holds the
    rows or the tensor that only the result has, `NAME#base` what only the base has. `elements`
    counts the words that differ.
    """

    name: str
    encoding: str
    base: Side | None
    result: Side | None
    elements: int

    @property
    def common(self) -> int:
        """How many leading bytes both sides have."""
        if self.base is None or self.result is None:
            return 0
        return min(self.base.nbytes, self.result.nbytes)

    def reversed(self) -> Record:
        """The same record with its sides exchanged."""
        return replace(self, base=self.result, result=self.base)


@dataclass(frozen=True)
class FileSide:
    """A small file on one side of the patch."""

    hash: str
    bytes: int


@dataclass(frozen=True)
class FileRecord:
    """One changed small file; a side is None where the file does not exist."""

    name: str
    base: FileSide | None
    result: FileSide | None


@dataclass(frozen=True)
class PatchInfo:
    """What a patch is, in numbers: `elements` differ in `tensors` tensors, `bytes` on disk."""

    path: Path
    fingerprint: str
    base_fingerprint: str
    result_fingerprint: str
    tensors: int
    elements: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The same facts for JSON."""
        return {**asdict(self), "path": str(self.path)}


class Patch:
    """An opened patch: records checked against their own hashes, data against its file hashes.

    `reverse` is True for a patch seen from its result (`reversed()`), as `revert` uses it.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], data: ShardFile, *, reverse: bool = False
    ) -> None:
        self.path, self.manifest, self._data, self.reverse = path, manifest, data, reverse
        self.tensors: dict[str, Record] = {}
        for record in _tensor_records(manifest, str(path)):
            self.tensors[record.name] = record.reversed() if reverse else record
        self.files: dict[str, FileRecord] = {}
        for file in _file_records(manifest, str(path)):
            if reverse:
                file = FileRecord(file.name, file.result, file.base)
            self.files[file.name] = file

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open and check a patch folder; nothing is applied yet.

        Errors: E201 no patch, E202 a format this version does not know, E203 a kind it does not
        know, E204 patch.json malformed or altered, E205 data truncated, altered or renamed.
        """
        path = Path(path)
        folder.require_folder(path)
        if not (path / folder.PATCH).is_file():
            raise SutureError(
                "E201",
                f"no {folder.PATCH} in '{path.name}'",
                where=str(path),
                fix="give the folder that suture diff or suture derive wrote",
            )
        where = str(folder.inside(path, folder.PATCH))
        manifest = read_json(path / folder.PATCH, cap=MANIFEST_CAP, code="E204")
        version, kind = manifest.get("format"), manifest.get("kind")
        if type(version) is not int or not 1 <= version <= FORMAT:
            raise SutureError(
                "E202",
                f"patch format {version!r} is not known; this version reads up to {FORMAT}",
                where=where,
                why="reading it by older rules could give another model",
                fix="install a newer Suture",
            )
        if kind != KIND:
            raise SutureError(
                "E203",
                f"patch kind {kind!r} is not known; this version reads '{KIND}'",
                where=where,
                fix="install a newer Suture",
            )
        _check_hashes(manifest, where)
        patch = cls(path, manifest, _open_data(path, manifest))
        patch._check_payloads()
        return patch

    def reversed(self) -> Patch:
        """The same patch seen from its result: applying it takes the change out."""
        return Patch(self.path, self.manifest, self._data, reverse=not self.reverse)

    @property
    def info(self) -> PatchInfo:
        """Numbers and fingerprints (of the patch as written, whichever way it is seen)."""
        sizes = (entry["bytes"] for entry in self.manifest["data"].values())
        return PatchInfo(
            path=self.path,
            fingerprint=self.manifest["fingerprint"],
            base_fingerprint=self.manifest["base"]["fingerprint"],
            result_fingerprint=self.manifest["result"]["fingerprint"],
            tensors=len(self.tensors),
            elements=sum(record.elements for record in self.tensors.values()),
            bytes=(self.path / folder.PATCH).stat().st_size + sum(sizes),
        )

    @property
    def fingerprint(self) -> str:
        """Hash over the records: the same change has the same fingerprint however compressed."""
        return str(self.manifest["fingerprint"])

    @property
    def base_fingerprint(self) -> str:
        """Fingerprint of the model this patch, as seen, starts from."""
        return str(self.manifest["result" if self.reverse else "base"]["fingerprint"])

    @property
    def result_fingerprint(self) -> str:
        """Fingerprint of the model this patch, as seen, ends in."""
        return str(self.manifest["base" if self.reverse else "result"]["fingerprint"])

    @property
    def tile(self) -> int:
        """Raw bytes per encoded tile."""
        return int(self.manifest["tile"])

    def payload(self, name: str, part: str) -> TensorInfo | None:
        """Where a payload lies; `part` is delta, base or result *as seen*."""
        if self.reverse and part in ("base", "result"):
            part = "base" if part == "result" else "result"
        return self._data.tensors.get(f"{name}#{part}")

    def read(self, info: TensorInfo, start: int, count: int) -> bytes:
        """`count` bytes of a payload from `start`."""
        raw = bytearray(count)
        self._data.read_into(memoryview(raw), info.start + start)
        return bytes(raw)

    def file_bytes(self, name: str) -> bytes | None:
        """The new content of a small file as seen, None where the patch removes it."""
        side = self.files[name].result
        if side is None:
            return None
        info = self.payload(f"file:{name}", "result")
        if info is None:
            raise damaged(f"the content of '{name}' is missing", str(self.path))
        content = inflate(self.read(info, 0, info.nbytes), side.bytes)
        if blake2b(content) != side.hash:
            raise damaged(f"'{name}' is not what the patch lists", str(self.path))
        return content

    def _check_payloads(self) -> None:
        """Exactly the payloads the records need: a renamed or foreign one is damage."""
        needed = set()
        for record in self.tensors.values():
            needed |= {f"{record.name}#{part}" for part in parts(record)}
        for file in self.files.values():
            sides = {"base": file.base, "result": file.result}
            needed |= {f"file:{file.name}#{part}" for part, side in sides.items() if side}
        found = set(self._data.tensors)
        if needed != found:
            odd = sorted(needed ^ found)
            raise damaged(f"records and data do not match: {', '.join(odd[:4])}", str(self.path))


def parts(record: Record) -> tuple[str, ...]:
    """Which payloads a record has, as written."""
    return {
        "bits": ("delta",),
        "sparse": ("delta",),
        "new": ("result",),
        "removed": ("base",),
        "extended": ("delta", "result"),
    }[record.encoding]


def records_hash(kind: str, tensors: Iterable[Any], files: Iterable[Any]) -> str:
    """The patch fingerprint: what changes from which hash to which, not how it is stored."""
    bare = [
        [item["name"], item["base"], item["result"]] for group in (tensors, files) for item in group
    ]
    return _digest([FORMAT, kind, sorted(bare, key=lambda item: item[0])])


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the fingerprint and the hash over the rest, as the last step of writing."""
    manifest["fingerprint"] = records_hash(manifest["kind"], manifest["tensors"], manifest["files"])
    manifest["integrity"] = _digest(manifest)
    return manifest


def _digest(value: Any) -> str:
    return blake2b(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def _check_hashes(manifest: dict[str, Any], where: str) -> None:
    try:
        rest = {key: value for key, value in manifest.items() if key != "integrity"}
        whole = _digest(rest) == manifest["integrity"]
        records = records_hash(KIND, manifest["tensors"], manifest["files"])
        same = whole and records == manifest["fingerprint"] and 8 <= manifest["tile"] <= TILE * 16
        fields = isinstance(manifest["data"], dict) and all(
            isinstance(manifest[side]["fingerprint"], str) for side in ("base", "result")
        )
    except (KeyError, TypeError):
        raise _malformed("a field is missing", where) from None
    if not same or not fields or manifest["tile"] % 8:
        raise _malformed("its contents do not match its own hash", where)


def _open_data(path: Path, manifest: Mapping[str, Any]) -> ShardFile:
    """The payload file, checked to be byte for byte the one that was written."""
    if set(manifest["data"]) != {DATA}:
        raise _malformed(f"data files {sorted(manifest['data'])} are not known", str(path))
    file, entry = folder.inside(path, DATA), manifest["data"][DATA]
    if not file.is_file():
        raise damaged(f"'{DATA}' is missing", str(path))
    size = file.stat().st_size
    if size != entry["bytes"]:
        raise damaged(f"'{DATA}' has {size:,} bytes instead of {entry['bytes']:,}", str(file))
    if blake2b_file(file) != entry["blake2b"]:
        raise damaged(f"'{DATA}' has been altered", str(file))
    return ShardFile(file, DATA)


def _malformed(what: str, where: str) -> SutureError:
    return SutureError(
        "E204",
        f"malformed patch.json: {what}",
        where=where,
        why="a patch is only as good as its list of what it changes",
        fix="copy the patch again from where it came from",
    )


def _tensor_records(manifest: Mapping[str, Any], where: str) -> list[Record]:
    records: dict[str, Record] = {}
    for item in manifest["tensors"]:
        try:
            sides = [
                None if s is None else Side(str(s["dtype"]), tuple(map(int, s["shape"])), s["hash"])
                for s in (item["base"], item["result"])
            ]
            base, result = sides
            record = Record(item["name"], item["encoding"], base, result, int(item["elements"]))
            shaped = all(s.dtype in dtypes.BITS and s.nbytes >= 0 for s in sides if s)
        except (KeyError, TypeError, ValueError):
            raise _malformed("a tensor record is not complete", where) from None
        if not shaped or not _sides_fit(record) or record.name in records:
            raise _malformed(f"the record of '{record.name}' contradicts itself", where)
        records[record.name] = record
    return list(records.values())


def _sides_fit(record: Record) -> bool:
    base, result = record.base, record.result
    if record.encoding == "new":
        return base is None and result is not None
    if record.encoding == "removed":
        return base is not None and result is None
    if base is None or result is None or base.dtype != result.dtype:
        return False
    if record.encoding == "extended":
        grown = base.shape[1:] == result.shape[1:] and bool(base.shape)
        return grown and base.shape[0] < result.shape[0]
    return record.encoding in ("bits", "sparse") and base.shape == result.shape


def _file_records(manifest: Mapping[str, Any], where: str) -> list[FileRecord]:
    records: dict[str, FileRecord] = {}
    total = 0
    for item in manifest["files"]:
        try:
            sides = [
                None if s is None else FileSide(str(s["hash"]), int(s["bytes"]))
                for s in (item["base"], item["result"])
            ]
            record = FileRecord(item["name"], *sides)
        except (KeyError, TypeError, ValueError):
            raise _malformed("a file record is not complete", where) from None
        total += sum(side.bytes for side in sides if side)
        if record.name not in FILES or record.name in records or total > FILES_CAP:
            raise _malformed(f"it may not carry the file '{record.name}'", where)
        records[record.name] = record
    return list(records.values())
