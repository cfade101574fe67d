"""patch.json: versions, kinds and hashes, checked before a record is believed.

`fingerprint` hashes what changes from what to what, `integrity` everything else in patch.json,
`data` lists the payload files by hash. A fingerprint is null where it is not known: in a patch that
was merged or split without its base at hand. Format 1 hashed by BLAKE2b and knew the kind `delta`
alone; `suture.patch.upgrade` rewrites it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.checkpoint import folder
from suture.checkpoint.hashes import hash_file
from suture.checkpoint.jsonfile import read_json
from suture.checkpoint.source import TensorSource, content_hash, layout_id
from suture.errors import SutureError
from suture.patch.encodings import damaged
from suture.versions import versions

FORMAT = 2
KINDS = ("delta", "lora", "module")
NAMED = ("recipe", "method", "seeds", "measurements")  # provenance keys with a place of their own
MANIFEST_CAP = 64 << 20
_RECORDS = 1  # how records are hashed: the same in every format, so that fingerprints compare


def read_manifest(path: Path) -> dict[str, Any]:
    """patch.json of a patch folder, its own hashes checked.

    Errors: E201 no patch, E202 a format this version does not know, E203 a kind that the format
    does not have, E204 patch.json malformed or altered.
    """
    check_there(path)
    where = str(folder.inside(path, folder.PATCH))
    manifest = read_json(path / folder.PATCH, cap=MANIFEST_CAP, code="E204")
    version, kind = manifest.get("format"), manifest.get("kind")
    if version == 1:
        raise SutureError(
            "E202",
            "the patch is of format 1, by an early Suture",
            where=where,
            why="its hashes are of another kind (BLAKE2b) and cannot be compared with today's",
            fix=f"suture patch upgrade {path} --base CKPT -o NEW, with the model it was made for",
        )
    if type(version) is not int or version != FORMAT:
        raise SutureError(
            "E202",
            f"patch format {version!r} is not known; this version reads format {FORMAT}",
            where=where,
            why="reading it by older rules could give another model",
            fix="install a newer Suture",
        )
    if kind not in KINDS:
        raise SutureError(
            "E203",
            f"patch kind {kind!r} is not known; format {version} has {', '.join(KINDS)}",
            where=where,
            why="only who knows the kind knows what it does to a model",
            fix="install a newer Suture",
        )
    _check_hashes(manifest, where)
    return manifest


def check_there(path: Path) -> None:
    """SutureError E201 unless the folder holds a patch.json."""
    if not (path / folder.PATCH).is_file():
        found = f"no {folder.PATCH} in '{path.name}'" if path.is_dir() else None
        raise SutureError(
            "E201",
            found or f"'{path}' is {'a file' if path.exists() else 'not there'}, no patch folder",
            where=str(path),
            why=f"{folder.PATCH} says what a patch changes, and in which model",
            fix="give the folder that suture diff or suture derive wrote",
        )


def new_manifest(
    kind: str, base: TensorSource, provenance: Mapping[str, Any], *, result: str | None = None
) -> dict[str, Any]:
    """The fields that say what a patch belongs to and where it came from; records come next.

    `result`: the fingerprint of the model it leads to, None where it is not known.
    """
    start = {
        "fingerprint": base.fingerprint(),
        "layout_id": layout_id(base.tensors),
        "model_type": base.config.get("model_type"),
    }
    return head(kind, start, result, provenance, getattr(base, "ties", {}))


def head(
    kind: str,
    base: Mapping[str, Any],
    result: str | None,
    provenance: Mapping[str, Any],
    ties: Mapping[str, str],
) -> dict[str, Any]:
    """The same for a base that is not at hand: `base` as another patch.json has it."""
    return {
        "format": FORMAT,
        "kind": kind,
        "base": dict(base),
        "result": {"fingerprint": result},
        **{key: provenance.get(key) for key in NAMED},
        "provenance": {key: value for key, value in provenance.items() if key not in NAMED},
        "versions": versions(),
        "ties": dict(ties),
    }


def side_entry(dtype: str, shape: Sequence[int], digest: str) -> dict[str, Any]:
    """A tensor before or after, as patch.json has it."""
    return {"dtype": dtype, "shape": list(shape), "hash": digest}


def record_entry(name: str, encoding: str, base: Any, result: Any, elements: int) -> dict[str, Any]:
    """One touched tensor, as patch.json has it; a side is None where there is no such tensor."""
    return {
        "name": name,
        "encoding": encoding,
        "base": base,
        "result": result,
        "elements": elements,
    }


def records_hash(
    kind: str, tensors: Iterable[Any], files: Iterable[Any], module: Any = None
) -> str:
    """The patch fingerprint: what changes from which hash to which, not how it is stored."""
    bare = [
        [item["name"], item["base"], item["result"]] for group in (tensors, files) for item in group
    ]
    rest = [] if module is None else [module]
    return _digest([_RECORDS, kind, sorted(bare, key=lambda item: item[0]), *rest])


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the fingerprint and the hash over the rest, as the last step of writing."""
    manifest["fingerprint"] = _fingerprint(manifest)
    manifest["integrity"] = _digest(manifest)
    return manifest


def data_entries(files: Iterable[Path]) -> dict[str, Any]:
    """The `data` field: every payload file with its size and hash."""
    return {f.name: {"bytes": f.stat().st_size, "hash": hash_file(f)} for f in files}


def check_data(path: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
    """Exactly these payload files, byte for byte as they were written; E204 or E205 otherwise."""
    listed = set(manifest["data"])
    if listed != set(names):
        raise malformed(f"data files {sorted(listed)} are not known", str(path))
    for name, entry in manifest["data"].items():
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
            raise malformed(f"the entry of '{name}' is not complete", str(path))
        file = folder.inside(path, name)
        if not file.is_file():
            raise damaged(f"'{name}' is missing", str(path))
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise damaged(f"'{name}' has {size:,} bytes instead of {entry['bytes']:,}", str(file))
        if hash_file(file) != entry.get("hash"):
            raise damaged(f"'{name}' has been altered", str(file))


def malformed(what: str, where: str) -> SutureError:
    """The refusal of a patch.json that cannot be believed."""
    return SutureError(
        "E204",
        f"malformed patch.json: {what}",
        where=where,
        why="a patch is only as good as its list of what it changes",
        fix="copy the patch again from where it came from",
    )


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    return records_hash(
        manifest["kind"], manifest["tensors"], manifest["files"], manifest.get("module")
    )


def canonical(value: Any) -> bytes:
    """JSON in the one spelling that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(value: Any) -> str:
    return content_hash(canonical(value))


def _check_hashes(manifest: dict[str, Any], where: str) -> None:
    try:
        rest = {key: value for key, value in manifest.items() if key != "integrity"}
        same = _digest(rest) == manifest["integrity"]
        same = same and _fingerprint(manifest) == manifest["fingerprint"]
        sides = [manifest[side]["fingerprint"] for side in ("base", "result")]
        fields = all(isinstance(side, str | None) for side in sides)
        fields = fields and isinstance(manifest["data"], dict)
    except (KeyError, TypeError):
        raise malformed("a field is missing", where) from None
    if not same or not fields:
        raise malformed("its contents do not match its own hash", where)
