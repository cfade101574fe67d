"""suture.json: what a folder held when it was written, by hash, so that `verify` can tell.

Format 1 hashed every file, by BLAKE2b. Format 2 hashes a shard's header and every tensor in it,
which covers the same bytes and is known while they are written, and other files whole, by BLAKE3.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from suture.checkpoint import folder
from suture.checkpoint.hashes import Content, hash_file, old_hash_file
from suture.checkpoint.jsonfile import read_json
from suture.checkpoint.source import content_hash
from suture.checkpoint.tiles import ShardFile, scan
from suture.errors import SutureError
from suture.progress import track

FORMAT = 2
_CAP = 256 << 20


def read_manifest(path: Path) -> dict[str, Any] | None:
    """suture.json of a checkpoint folder, None when there is none; E126 for an unknown format."""
    if not (path / folder.MANIFEST).is_file():
        return None
    folder.inside(path, folder.MANIFEST)
    manifest = read_json(path / folder.MANIFEST, cap=_CAP, code="E126")
    version = manifest.get("format")
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise SutureError(
            "E126",
            f"manifest format {version!r} is not known; this version reads up to {FORMAT}",
            where=str(path / folder.MANIFEST),
            why="by older rules a changed file could pass for an intact one",
            fix="install a newer Suture",
        )
    return manifest


def changed_files(
    path: Path, manifest: dict[str, Any], seen: dict[str, Content] | None = None
) -> list[str]:
    """Files that no longer match the manifest: missing, changed, or weights it does not list.

    Every byte is read. `seen` receives what the tensors were found to be, where they were hashed.
    """
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise SutureError("E126", "the manifest lists no files", where=str(path / folder.MANIFEST))
    wrong = []
    for name, entry in track(listed.items(), "hashing files", total=len(listed)):
        file = folder.inside(path, name)
        if not file.is_file():
            wrong.append(f"{name} (missing)")
        elif not isinstance(entry, dict) or not _same(file, entry, manifest, seen):
            wrong.append(f"{name} (changed)")
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors") and name not in listed:
            wrong.append(f"{name} (not listed)")
    return wrong


def _same(
    file: Path, entry: dict[str, Any], manifest: dict[str, Any], seen: dict[str, Content] | None
) -> bool:
    if manifest["format"] == 1:
        return old_hash_file(file) == entry.get("blake2b")
    if "header" not in entry:
        return hash_file(file) == entry.get("hash")
    if file.stat().st_size != entry.get("bytes"):
        return False
    try:
        shard = ShardFile(file, file.name)
    except SutureError:
        return False
    if content_hash(shard.header()) != entry["header"]:
        return False
    tensors, ties = manifest.get("tensors"), manifest.get("ties")
    if not isinstance(tensors, dict) or not isinstance(ties, dict):
        return False
    same = True
    for info in shard.tensors.values():
        found = scan(info.dtype, shard.tiles(info))
        if seen is not None:
            seen[info.name] = found
        wanted = tensors.get(info.name) or tensors.get(ties.get(info.name, ""))
        same = same and found.hash == wanted
    return same
