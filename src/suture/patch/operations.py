"""diff, apply and revert, and how a model is opened and edits are drained."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.checkpoint import folder
from suture.checkpoint.adapter import open_adapter
from suture.checkpoint.reader import Checkpoint
from suture.checkpoint.sink import Courier, StagedSink
from suture.checkpoint.source import (
    Edit,
    Sink,
    TensorInfo,
    TensorSource,
    content_hash,
    iter_tiles,
)
from suture.checkpoint.staging import (
    crash_point,
    disk_errors,
    is_sealed,
    refuse_inside,
    refuse_taken,
    remove_stale,
    roll_forward,
)
from suture.checkpoint.writer import CheckpointWriter
from suture.errors import SutureError
from suture.patch.card import card
from suture.patch.encodings import TILE
from suture.patch.format import FILES, Patch, PatchInfo
from suture.patch.module import refuse_modules
from suture.patch.order import nothing_to_do
from suture.patch.patched import PatchedCheckpoint, is_rounded
from suture.patch.rebase import Rebased, RebasedCheckpoint, changes
from suture.patch.undo import (
    Applied,
    history,
    undo_facts,
    undo_for,
    undo_path,
    went_in_with_others,
)
from suture.patch.writer import PatchWriter, nothing_changed
from suture.progress import note, track
from suture.versions import versions


def open_model(
    path: Path | str,
    *,
    base: TensorSource | None = None,
    patches: Sequence[Path | str] = (),
    allow_nonfinite: bool = False,
) -> TensorSource:
    """Open whatever folder the user named: a checkpoint, a LoRA adapter or a patch.

    Adapters and patches need `base` (E119, E211). `patches` are applied on top, in order, while
    reading.
    """
    path = Path(path)
    kind = folder.folder_kind(path)
    source: TensorSource
    if kind == "checkpoint":
        source = Checkpoint.open(path, allow_nonfinite=allow_nonfinite)
    elif kind == "adapter":
        source = open_adapter(path, base)
    elif base is None:
        raise SutureError(
            "E211",
            f"'{path.name}' is a patch: it needs the model it belongs to",
            where=str(path),
            why="a patch holds what changes in a model, not the model",
            fix="give a checkpoint for the model, and the patch after it: suture apply "
            "CHECKPOINT PATCH -o OUT, or --model CHECKPOINT --patch PATCH",
        )
    else:
        source = PatchedCheckpoint(base, [path])
    return PatchedCheckpoint(source, patches) if patches else source


def drain(edits: Iterable[Edit], sinks: Sequence[Sink]) -> None:
    """Put every edit into every sink in one pass; publish all of them, or on any failure none.

    Tensors that a killed run had finished are not computed again. All sinks are prepared before
    the first is published, so that only a rename can fail in between; those already published are
    then removed. Interrupted from the keyboard, resumable sinks keep what is finished, and a run
    that was only giving names leaves the rest of that to the next one. Raises E208 when no edit
    changed anything.
    """
    courier, sealed = Courier(), False
    try:
        for count, edit in enumerate(edits, 1):
            courier.deliver(edit, sinks)
            crash_point(f"after-tensor:{count}")
        courier.settle()
        counts = [sink.changed for sink in sinks if hasattr(sink, "changed")]
        if counts and not any(counts):
            raise nothing_changed()
        for sink in sinks:
            sink.prepare()
        stages = [sink.stage for sink in sinks if isinstance(sink, StagedSink)]
        sealed = len(stages) == len(sinks) and all(stage.identity for stage in stages)
        for stage in stages:
            stage.mark([stage.out for stage in stages])
        for sink in sinks:
            sink.publish()
    except BaseException as error:
        courier.wait()
        interrupted = isinstance(error, KeyboardInterrupt)
        for sink in sinks:
            if not (interrupted and sealed):
                sink.withdraw()
            sink.suspend(sealed=sealed) if interrupted else sink.abort()
        raise


def diff(
    base: Path | str | TensorSource,
    edited: Path | str | TensorSource,
    out: Path | str,
    *,
    provenance: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> PatchInfo:
    """Write the exact patch that turns `base` into `edited` to the folder `out`.

    `edited` may be an adapter folder on `base`. Tensors may be changed, new, removed, or have rows
    appended; small files that tokenizers and configs are made of are carried. Errors: E208 when
    the two are the same, E209 when a tensor changed its dtype or shape otherwise.
    """
    refuse_taken(out)
    before = _source(base, allow_nonfinite)
    after = (
        open_model(edited, base=before, allow_nonfinite=allow_nonfinite)
        if isinstance(edited, str | Path)
        else edited
    )
    refuse_inside(out, after.path)
    refuse_modules(getattr(after, "patches", ()))
    check_comparable(before, after)
    kinds = [source.config.get("model_type") for source in (before, after)]
    if kinds[0] != kinds[1]:
        note(
            f"note: the base is a {kinds[0]} model and the edited one a {kinds[1]} model; the "
            "patch turns one into the other"
        )
    for source in (before, after):
        source.fingerprint()  # refuses NaN before anything is staged
    writer = PatchWriter(before, out, provenance)
    try:
        put_differences(writer, before, after)
        writer.close()
    except SutureError as error:
        if error.code != "E208":
            raise
        raise SutureError(
            "E208",
            "the two models are the same: every tensor and every small file",
            where=f"{before.path}, {after.path}",
            why=error.why,
            fix="check that the two folders are the ones you mean",
        ) from None
    finally:
        writer.abort()
    assert writer.info is not None
    return writer.info


def put_differences(
    writer: PatchWriter,
    before: TensorSource,
    after: TensorSource,
    *,
    skip: Container[str] = (),
    label: str = "diff",
) -> None:
    """Record everything that differs between two models, tensors and small files, but for the
    tensors in `skip`. `label`: what progress is called."""
    names = [*before.tensors, *(name for name in after.tensors if name not in before.tensors)]
    for name in track([name for name in names if name not in skip], label):
        old, new = before.tensors.get(name), after.tensors.get(name)
        if new is None:
            assert old is not None
            writer.put_removed(old)
        elif old is None:
            writer.put_new(new, iter_tiles(after, name, TILE), after.tensor_hash(name))
        elif old.shape != new.shape or before.tensor_hash(name) != after.tensor_hash(name):
            digest = after.tensor_hash(name)
            writer.put_tiles(old, iter_tiles(after, name, TILE), new.shape, digest)
    for name in sorted(FILES):
        contents = [_content(source.path, name) for source in (before, after)]
        if contents[0] != contents[1]:
            writer.put_file(name, *contents)


def apply(
    base: Path | str | TensorSource,
    patches: Sequence[Path | str | Patch],
    out: Path | str,
    *,
    rebase: bool = False,
    origin: Path | str | TensorSource | None = None,
    allow_nonfinite: bool = False,
) -> Applied:
    """Write `base` with `patches` applied in order to the folder `out`, bit-exactly.

    `rebase`: where a patch does not fit, add its difference as numbers and round once; `origin`
    (which implies it) is the model such a patch was made from, if that is neither `base` nor the
    result of an earlier patch. A rounded step, and so every LoRA patch, also writes the exact undo
    patch OUT.undo. Returns what was applied; its `path` is the output. Errors: E117 NaN in the base
    or from a patch, E205 damaged patch, E206 wrong base, E207 wrong order, E213 to E215 what cannot
    be rebased, E217 a module; nothing is written then.
    """
    if not patches:
        raise SutureError(
            "E212",
            "no patch given",
            where=str(out),
            why="a copy of the base would look like a finished repair",
            fix="suture apply BASE PATCH... -o OUT",
        )
    if not is_sealed(out):
        refuse_taken(out, undo_path(out))
    opened = [item if isinstance(item, Patch) else Patch.open(item) for item in patches]
    refuse_modules(opened)
    source = _source(base, allow_nonfinite)
    for input_path in (source.path, *(patch.path for patch in opened)):
        refuse_inside(out, input_path)
    rebase = rebase or origin is not None
    origins = [] if origin is None else [_source(origin, allow_nonfinite)]
    patched = (
        RebasedCheckpoint(source, opened, origins) if rebase else PatchedCheckpoint(source, opened)
    )
    if all(isinstance(layer, Rebased) and layer.changes_nothing for layer in patched.layers):
        raise nothing_to_do(source, opened[-1])
    undo = undo_path(out) if patched.rounded else None
    if undo is None:  # a killed run may have staged one
        with disk_errors(Path(out)):
            remove_stale(Path(os.path.abspath(undo_path(out))))
    infos = [patch.info for patch in opened]
    identity = None
    if undo is not None:
        identity = _identity(opened, [source, *origins], rebase, allow_nonfinite)
    steps = list(zip(opened, map(is_rounded, patched.layers), strict=True))
    facts = [
        {
            "fingerprint": patch.fingerprint,
            "reverted": patch.reverse,
            "name": patch.path.name,
            **({"rounded": True} if rounded else {}),
        }
        for patch, rounded in steps
    ]
    earlier = history(source)
    if undo is None or identity is None or not roll_forward([undo, out], identity):
        sinks: list[Any] = []
        try:
            if undo is not None:
                made = undo_facts(opened, Path(out))
                sinks.append(PatchWriter(source, undo, made, identity=identity, resume=False))
                put_differences(sinks[0], source, patched, label="undo patch")
            writer = CheckpointWriter(
                patched,
                out,
                card=lambda: card(
                    source, steps, patched.fingerprint(), undo.name if undo else None, earlier
                ),
                provenance=lambda: {
                    "base_fingerprint": source.fingerprint(),
                    "patches": facts,
                    **({"earlier": earlier} if earlier else {}),
                    **({} if undo is None else {"undo": undo.name}),
                },
                identity=identity,
                resume=False,
                origin=source,
            )
            sinks.append(writer)
            writer.close() if undo is None else drain((), sinks)
        finally:
            for sink in sinks:
                sink.abort()
    return Applied(
        path=Path(out),
        fingerprint=infos[0].fingerprint
        if len(infos) == 1
        else content_hash("\n".join(info.fingerprint for info in infos).encode()),
        base_fingerprint=source.fingerprint(),
        result_fingerprint=patched.fingerprint(),
        tensors=len({name for patch in opened for name in patch.tensors}),
        elements=sum(info.elements for info in infos),
        bytes=sum(info.bytes for info in infos),
        files=tuple(sorted({name for patch in opened for name in patch.files})),
        undo=undo,
        changes=changes(patched) if undo is not None or rebase else (),
    )


def _identity(
    patches: Sequence[Patch], models: Sequence[TensorSource], rebase: bool, allow_nonfinite: bool
) -> str:
    """A name for what `apply` makes of these inputs, by their contents."""
    facts = [(patch.path.name, patch.fingerprint, patch.reverse) for patch in patches]
    prints = [model.fingerprint() for model in models]
    what = ["apply", facts, prints, rebase, allow_nonfinite, versions()]
    return content_hash(json.dumps(what).encode())


def revert(
    edited: Path | str | TensorSource,
    patch: Path | str | Patch,
    out: Path | str,
    *,
    allow_nonfinite: bool = False,
) -> Applied:
    """Write `edited` with `patch` taken out to `out`: bit for bit what it was applied to.

    A patch that went in with rounding is taken out by the undo patch that lies beside `edited`
    (E216 when it is gone).
    """
    opened = patch if isinstance(patch, Patch) else Patch.open(patch)
    source = _source(edited, allow_nonfinite)
    undo = undo_for(source, opened)
    back = (undo or opened).reversed()
    try:
        return apply(source, [back], out, allow_nonfinite=allow_nonfinite)
    except SutureError as error:
        raise went_in_with_others(source, opened, error) from None


def _source(model: Path | str | TensorSource, allow_nonfinite: bool) -> TensorSource:
    if isinstance(model, str | Path):
        return open_model(model, allow_nonfinite=allow_nonfinite)
    return model


def _content(path: Path, name: str) -> bytes | None:
    file = folder.inside(path, name)
    return file.read_bytes() if file.is_file() else None


def check_comparable(before: TensorSource, after: TensorSource) -> None:
    """E209 unless every shared tensor keeps its dtype, and its shape but for appended rows."""
    for name, old in before.tensors.items():
        new = after.tensors.get(name)
        if new is None or _extends(old, new):
            continue
        raise SutureError(
            "E209",
            f"'{name}' is {old.dtype} {list(old.shape)} in the base and "
            f"{new.dtype} {list(new.shape)} in the edited model",
            where=f"{before.path}, {after.path}",
            why="a patch is the difference between two versions of one model; a copy in another "
            "dtype or size is another model",
            fix="save the edited model in the base's dtype, or give the base it was trained from",
        )


def _extends(old: TensorInfo, new: TensorInfo) -> bool:
    if old.dtype != new.dtype:
        return False
    grown = bool(old.shape) and old.shape[1:] == new.shape[1:] and old.shape[0] < new.shape[0]
    return old.shape == new.shape or grown
