"""One patch as several on disjoint tensors: applied in any order they give what it gave."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from suture.checkpoint.roles import role
from suture.checkpoint.source import TensorSource
from suture.checkpoint.staging import refuse_inside, refuse_taken, staged_folder
from suture.errors import SutureError
from suture.patch.assemble import Assembly, check_deltas, fingerprint_with
from suture.patch.format import Patch, PatchInfo, Record
from suture.patch.patched import check_base

REST = "rest"
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def split(
    patch: Path | str | Patch,
    out: Path | str,
    *,
    tensors: Sequence[str] = (),
    layers: Sequence[str] = (),
    base: TensorSource | None = None,
) -> list[PatchInfo]:
    """Write the parts of a delta to `out`/part-1, part-2, … and what is left to `out`/rest.

    One part per pattern in `tensors` (shell wildcards over whole names) and per range in `layers`
    ("0-11", "12,13"); a tensor goes with the first that takes it. Changed small files go with
    appended rows if there are any, else with the rest. `base`, if given, makes the fingerprints of
    the parts' results known. Errors: E220 another kind than delta, E222 a part that would be empty,
    a range that cannot be read, or nothing to split by.
    """
    opened = patch if isinstance(patch, Patch) else Patch.open(patch)
    check_deltas([opened], "split")
    refuse_taken(out)
    refuse_inside(out, opened.path)
    if base is not None:
        check_base(base, opened)
    chosen = _choose(opened, [*map(_pattern, tensors), *map(_layers, layers)], [*tensors, *layers])
    grown = [name for name, part in chosen.items() if _appends(part)]
    with_files = grown[0] if grown else list(chosen)[-1]
    with staged_folder(out) as stage:
        for name, records in chosen.items():
            part = _assembly(opened, name, base, records)
            for record in records:
                part.add(opened, record)
            for file in opened.files if name == with_files else ():
                part.add_file(opened, opened, file)
            (stage / name).mkdir()
            part.write(stage / name)
    return [Patch.open(Path(out) / name).info for name in chosen]


def _choose(
    patch: Patch, takes: Sequence[Callable[[str], bool]], said: Sequence[str]
) -> dict[str, list[Record]]:
    """Part name → its records, in the order of the patch; the rest last."""
    if not takes:
        raise SutureError(
            "E222",
            "nothing to split by",
            where=str(patch.path),
            why="a part is the tensors that one pattern or range takes",
            fix="give --tensors PATTERN or --layers RANGE, each as often as there are parts",
        )
    found: dict[str, list[Record]] = {f"part-{i}": [] for i in range(1, len(takes) + 1)}
    found[REST] = []
    for name, record in patch.tensors.items():
        part = next((i for i, take in enumerate(takes, 1) if take(name)), None)
        found[REST if part is None else f"part-{part}"].append(record)
    for (label, records), text in zip(found.items(), said, strict=False):
        if not records:
            raise SutureError(
                "E222",
                f"'{text}' takes no tensor of the patch ({label})",
                where=str(patch.path),
                why="an empty patch is an error",
                fix="suture patch info PATCH --tensors lists them; earlier parts take first",
            )
    if not found[REST] and (not patch.files or any(map(_appends, found.values()))):
        del found[REST]
    return found


def _assembly(
    patch: Patch, name: str, base: TensorSource | None, records: Sequence[Record]
) -> Assembly:
    of = {"name": patch.path.name, "fingerprint": patch.fingerprint}
    start = {key: patch.manifest["base"].get(key) for key in ("layout_id", "model_type")}
    known = patch.base_fingerprint if base is None else base.fingerprint()
    return Assembly(
        tile=patch.tile,
        base={"fingerprint": known, **start},
        result=None if base is None else fingerprint_with(base, records),
        ties=patch.manifest.get("ties") or {},
        provenance={"method": "split", "part": name, "of": of},
    )


def _appends(records: Sequence[Record]) -> bool:
    return any(record.encoding == "extended" for record in records)


def _pattern(text: str) -> Callable[[str], bool]:
    return lambda name: fnmatchcase(name, text)


def _layers(text: str) -> Callable[[str], bool]:
    """Whether a tensor lies in one of the layers of "0-3,7"; E222 for anything else."""
    wanted: list[tuple[int, int]] = []
    for piece in text.split(","):
        found = _RANGE.fullmatch(piece.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise SutureError(
                "E222",
                f"'{text}' is no range of layers",
                where="--layers",
                why="layers are counted from 0, first to last",
                fix="write --layers 0-11 or 0-3,8",
            )
        wanted.append((first, last))

    def takes(name: str) -> bool:
        layer = role(name).layer
        return layer is not None and any(first <= layer <= last for first, last in wanted)

    return takes
