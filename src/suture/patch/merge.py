"""Several patches as one: the same result as applying them in order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from suture.checkpoint.source import TensorSource
from suture.checkpoint.staging import refuse_inside, refuse_taken, staged_folder
from suture.errors import SutureError
from suture.patch.assemble import Assembly, check_deltas
from suture.patch.format import Patch, PatchInfo
from suture.patch.module import refuse_modules
from suture.patch.operations import diff
from suture.patch.patched import PatchedCheckpoint


def merge(
    patches: Sequence[Path | str | Patch],
    out: Path | str,
    *,
    base: TensorSource | None = None,
) -> PatchInfo:
    """Write one delta equal to `patches` applied in order to the folder `out`.

    Without `base` the records are copied, which needs patches on disjoint tensors; the fingerprints
    of the whole model are then known only where each patch was made on the former's result. With
    `base` bits are composed, and patches of kind `lora` may be among them. Errors: E207 wrong
    order, E208 they cancel out, E212 fewer than two, E217 a module, E220 a LoRA patch without
    `base`, E221 the same tensor twice without `base`.
    """
    opened = [item if isinstance(item, Patch) else Patch.open(item) for item in patches]
    if len(opened) < 2:
        raise SutureError(
            "E212",
            "merging takes two patches or more",
            where=", ".join(str(patch.path) for patch in opened),
            why="one patch is what it is already",
            fix="suture patch merge P1 P2... -o OUT",
        )
    refuse_taken(out)
    for patch in opened:
        refuse_inside(out, patch.path)
    facts = {
        "method": "merge",
        "seeds": sorted({seed for p in opened for seed in _seeds(p)}) or None,
        "merged": [{"name": p.path.name, "fingerprint": p.fingerprint} for p in opened],
    }
    _check_stackable(opened)
    if base is not None:
        refuse_modules(opened)
        return diff(base, PatchedCheckpoint(base, opened), out, provenance=facts)
    check_deltas(opened, "merged without its base")
    _check_disjoint(opened)
    _check_files(opened)
    first, layouts = opened[0], {p.manifest["base"].get("layout_id") for p in opened}
    start = {
        "fingerprint": _base(opened),
        "layout_id": layouts.pop() if len(layouts) == 1 else None,
        "model_type": first.manifest["base"].get("model_type"),
    }
    whole = Assembly(
        tile=first.tile,
        base=start,
        result=_result(opened),
        ties=first.manifest.get("ties") or {},
        provenance=facts,
    )
    for patch in opened:
        for record in patch.tensors.values():
            whole.add(patch, record)
    for name in dict.fromkeys(name for patch in opened for name in patch.files):
        chain = [patch for patch in opened if name in patch.files]
        if chain[0].files[name].base != chain[-1].files[name].result:
            whole.add_file(chain[0], chain[-1], name)
    with staged_folder(out) as stage:
        whole.write(stage)
    return Patch.open(out).info


def _check_disjoint(patches: Sequence[Patch]) -> None:
    seen: dict[str, Patch] = {}
    tiles = {patch.tile for patch in patches}
    for patch in patches:
        again = [name for name in patch.tensors if name in seen]
        seen.update(dict.fromkeys(patch.tensors, patch))
        if again or len(tiles) > 1:
            what = f"'{again[0]}' is in more than one patch" if again else "their tiles differ"
            raise SutureError(
                "E221",
                f"merging needs the base: {what}",
                where=", ".join(str(patch.path) for patch in patches),
                why="bit differences on the same tensor compose only over its bytes",
                fix="suture patch merge P1 P2... --base CHECKPOINT -o OUT",
            )


def _check_stackable(patches: Sequence[Patch]) -> None:
    """E207 for two patches on one tensor of which neither goes on from the other, in any order."""
    seen: dict[str, list[Patch]] = {}
    for patch in patches:
        if patch.kind == "delta":
            for name in patch.tensors:
                seen.setdefault(name, []).append(patch)
    for name, found in seen.items():
        pair = [patch.tensors[name] for patch in found]
        if len(pair) != 2 or any(a.result == b.base for a, b in (pair, pair[::-1])):
            continue
        first, second = (patch.path.name for patch in found)
        raise SutureError(
            "E207",
            f"'{first}' and '{second}' both change '{name}', and neither was made on the other's "
            "result",
            where=", ".join(str(patch.path) for patch in found),
            why="bit differences on one tensor are one after the other, or not at all",
            fix=f"add them up, rounded: suture apply BASE {first} {second} --rebase -o OUT, then "
            "suture diff BASE OUT -o PATCH",
        )


def _check_files(patches: Sequence[Patch]) -> None:
    """E207 where a small file of one patch does not go on from the former's."""
    now: dict[str, Any] = {}
    for patch in patches:
        for name, file in patch.files.items():
            if name in now and now[name] != file.base:
                raise SutureError(
                    "E207",
                    f"'{patch.path.name}' was made for another version of '{name}'",
                    where=str(patch.path),
                    why="small files stack only in the order they were made",
                    fix="give the patches in the order they were made in",
                )
            now[name] = file.result


def _base(patches: Sequence[Patch]) -> str | None:
    """The model all start from, if it is one: each was made on it or on a result before."""
    known = {patches[0].base_fingerprint}
    for patch in patches:
        if patch.base_fingerprint is None or patch.base_fingerprint not in known:
            return None
        known.add(patch.result_fingerprint)
    return patches[0].base_fingerprint


def _result(patches: Sequence[Patch]) -> str | None:
    """The model they end in, known when each was made on the former's result."""
    for before, after in pairwise(patches):
        if before.result_fingerprint is None or before.result_fingerprint != after.base_fingerprint:
            return None
    return patches[-1].result_fingerprint


def _seeds(patch: Patch) -> list[int]:
    seeds = patch.manifest.get("seeds")
    return [s for s in seeds if type(s) is int] if isinstance(seeds, list) else []
