"""Patches of format 1, whose hashes are BLAKE2b, rewritten in today's format.

The payloads stay byte for byte; only patch.json is new. Its hashes are of the same tensors, so the
base has to be at hand: every touched tensor is read from it, checked by the old hashes on both
sides of the change, and hashed anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from suture.checkpoint import folder
from suture.checkpoint.hashes import old_hash, old_hash_file
from suture.checkpoint.jsonfile import read_json
from suture.checkpoint.source import TensorSource, iter_tiles, layout_id
from suture.checkpoint.staging import staged_folder
from suture.errors import SutureError
from suture.patch.assemble import Assembly, fingerprint_with
from suture.patch.encodings import damaged, inflate
from suture.patch.format import DATA, FileSide, Patch, PatchInfo, Record, Side
from suture.patch.manifest import FORMAT, MANIFEST_CAP, NAMED, canonical, check_there, malformed
from suture.patch.patched import decoded
from suture.progress import track


def upgrade(patch: Path | str, base: TensorSource, out: Path | str) -> PatchInfo:
    """Write the format-1 patch again as today's format to `out`.

    Raises SutureError E201 when there is no patch, E202 when it is of another format, E204 or E205
    when it is damaged, E206 when `base` is not the model it was made for.
    """
    old = _open(Path(patch))
    written = dict(old.manifest)
    provenance = {
        **{key: written.get(key) for key in NAMED},
        **(written.get("provenance") or {}),
        "upgraded": {"format": 1, "fingerprint": written["fingerprint"]},
    }
    records = [
        _again(old, record, base) for record in track(old.tensors.values(), "reading weights")
    ]
    assembly = Assembly(
        tile=old.tile,
        base={
            "fingerprint": base.fingerprint(),
            "layout_id": layout_id(base.tensors),
            "model_type": base.config.get("model_type"),
        },
        result=fingerprint_with(base, records),
        ties=written.get("ties") or {},
        provenance=provenance,
    )
    for record in records:
        assembly.add(old, record)
    for name, file in old.files.items():
        before, after = _file(old, name, "base", file.base), _file(old, name, "result", file.result)
        old.files[name] = replace(file, base=before, result=after)
        assembly.add_file(old, old, name)
    with staged_folder(out) as stage:
        assembly.write(stage)
    return Patch.open(out).info


def _open(path: Path) -> Patch:
    """The patch as it was written, its own BLAKE2b hashes checked."""
    check_there(path)
    manifest = read_json(path / folder.PATCH, cap=MANIFEST_CAP, code="E204")
    if manifest.get("format") != 1:
        raise SutureError(
            "E202",
            f"patch format {manifest.get('format')!r} cannot be upgraded",
            where=str(path),
            why=f"format 1 is rewritten as format {FORMAT}; nothing else is",
            fix="use the patch as it is",
        )
    where = str(path / folder.PATCH)
    try:
        rest = {key: value for key, value in manifest.items() if key != "integrity"}
        if old_hash([canonical(rest)]) != manifest["integrity"]:
            raise malformed("its contents do not match its own hash", where)
        file = folder.inside(path, DATA)
        if old_hash_file(file) != manifest["data"][DATA]["blake2b"]:
            raise damaged(f"'{DATA}' has been altered", str(file))
        return Patch.written(path, manifest)
    except (KeyError, TypeError):
        raise malformed("a field is missing", where) from None
    except OSError:
        raise damaged(f"'{DATA}' is missing", str(path)) from None


def _again(old: Patch, record: Record, base: TensorSource) -> Record:
    """The record with today's hashes, after both sides were found to be what the old ones say."""
    before = after = None
    if record.base is not None:
        info = base.tensors.get(record.name)
        sides = record.base.dtype, record.base.shape
        same = info is not None and (info.dtype, info.shape) == sides
        if not same or old_hash(iter_tiles(base, record.name, old.tile)) != record.base.hash:
            raise SutureError(
                "E206",
                f"wrong base: '{record.name}' is not what the patch was made for",
                where=str(base.path),
                why="today's hashes are taken from the tensors themselves",
                fix="give the checkpoint the patch was made from",
            )
        before = replace(record.base, hash=base.tensor_hash(record.name))
    if record.result is not None:
        after = _after(old, record, record.result, base)
    return replace(record, base=before, result=after)


def _after(old: Patch, record: Record, side: Side, base: TensorSource) -> Side:
    was, now = hashlib.blake2b(digest_size=32), blake3()
    for tile in decoded(old, record, base):
        was.update(tile)
        now.update(tile)
    if was.hexdigest() != side.hash:
        raise damaged(f"'{record.name}' does not come out as listed", str(old.path))
    return replace(side, hash=now.hexdigest())


def _file(old: Patch, name: str, part: str, side: FileSide | None) -> FileSide | None:
    if side is None:
        return None
    info = old.payload(f"file:{name}", part)
    assert info is not None  # `Patch.written` has seen it
    content = inflate(old.read(info, 0, info.nbytes), side.bytes)
    if old_hash([content]) != side.hash:
        raise damaged(f"'{name}' is not what the patch lists", str(old.path))
    return replace(side, hash=blake3(content).hexdigest())
