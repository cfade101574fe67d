"""RKLD's teacher, worked out once: stage 1 and 2 of `suture.training.objectives.rkld`.

    original.f32    l_o of every answer position under the model as it is
    augmented/      the model becomes m_aug in place, by the loop with its own resumable state
    teacher.f32     log π_t of the same positions, from l_o and l_aug
                    the model is reset; everything but the teacher is removed

Raw float32, position after position, V numbers each; `rows.json` says whose they are, rows by hash.
The numbers tell what the answers are, so all of it is for this user alone (0600, 0700). One model
is in memory at any time, unless m_aug comes from elsewhere: it is then read beside the original.
Both work in float32, without autocast: α multiplies what bfloat16 would round away. A killed run
goes on where it was.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.checkpoint import staged_folder, write_json
from suture.checkpoint.staging import fsync
from suture.errors import SutureError
from suture.lazy import torch
from suture.progress import note, track
from suture.training.batches import Batch, collate, epoch_plan
from suture.training.logits import answer_positions
from suture.training.loop import TrainConfig, train
from suture.training.objectives.common import Frozen, Material, answer_logits, row_ids
from suture.training.state import private_folder

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.training.objectives.rkld import RKLD

Ids = tuple[int, ...]
LogTeacher = Callable[[Batch], "torch.Tensor"]
"""Batch to log π_t of its labelled positions: (positions, V) float32, the caller's to overwrite."""

_WRITE = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
_MARK_EVERY = 64 * 2**20  # bytes after which what was written is marked as safe


def make_teacher(config: RKLD, material: Material) -> LogTeacher:
    """The teacher of `config`, made unless it is on disk already; the model is left as it was."""
    with _naming(material.folder):
        return _found_or_made(config, material)


@contextmanager
def _naming(home: Path | None) -> Iterator[None]:
    """Errors name the run's own folder to delete: without a part of it alone, the rest of the run
    would be refused next."""
    try:
        yield
    except SutureError as error:
        fixes = {
            "E902": "lower learning_rate or augment_rate, or inspect the data; then delete",
            "E904": "choose another output, or delete",
        }
        if home is None or error.code not in fixes:
            raise
        fix = f"{fixes[error.code]} {home}, which holds the work of the former settings"
        raise SutureError(
            error.code, error.what, where=error.where, why=error.why, fix=fix
        ) from None


def _found_or_made(config: RKLD, material: Material) -> LogTeacher:
    if config.teacher == "live":
        return _live(config, material)
    identity = _identity(config, material)
    kept = config.cache / identity[:16] if config.cache else None
    if kept is not None and (kept / "rows.json").is_file():
        note(f"the teacher is in {kept}")
        return Teacher(kept, identity)
    if material.folder is None:
        folder = Path(tempfile.mkdtemp(prefix="suture-teacher-"))
        weakref.finalize(material.lm, shutil.rmtree, folder, ignore_errors=True)
    else:
        private_folder(material.folder)
        folder = material.folder / "teacher"
    if not (folder / "rows.json").is_file():
        _make(config, material, folder, identity)
    if kept is not None and not kept.exists():
        _hand_over(folder, kept)
        folder = kept
    return Teacher(folder, identity)


def _hand_over(folder: Path, kept: Path) -> None:
    """Put a whole teacher into the cache; it appears there whole or not at all."""
    private_folder(kept.parent)
    try:
        os.rename(folder, kept)
    except OSError:  # the cache is on another disk
        with staged_folder(kept) as stage:
            stage.chmod(0o700)
            for name in ("teacher.f32", "rows.json"):
                shutil.copy(folder / name, stage / name)  # with its mode


class Teacher:
    """log π_t from disk, found by a row's ids. Error E904: the folder holds another teacher."""

    def __init__(self, folder: Path, identity: str) -> None:
        facts = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        _check_owner(facts["identity"], identity, folder)
        self.identity = identity
        self.spans: dict[str, tuple[int, int]] = {
            row: (start, count) for row, (start, count) in facts["rows"].items()
        }
        self.table = _Table(folder / "teacher.f32", facts["vocabulary"])

    def __call__(self, batch: Batch) -> torch.Tensor:
        spans = [self.spans[_key(ids, self.identity)] for ids in row_ids(batch)]
        return self.table.read(spans).to(batch.ids.device)


def _key(ids: Ids, identity: str) -> str:
    """What a row is known by on disk. Hashed with the teacher's identity, so that the same row
    cannot be found again in another teacher; who has the row can tell that it was among these."""
    return hashlib.sha256(f"{identity} {ids!r}".encode()).hexdigest()


def teacher_bytes(positions: int, vocabulary: int) -> int:
    """What the teacher takes on disk; while it is made, twice that."""
    return 4 * positions * vocabulary


@dataclass(frozen=True)
class _Positions:
    """The fixed batches in which both models are read. `spans`: ids, first position and number of
    positions of every row; `ends`: positions up to and with each batch."""

    batches: list[Batch]
    spans: list[tuple[Ids, int, int]]
    ends: list[int]


def _positions(config: RKLD, material: Material) -> _Positions:
    unique = list({example.ids: example for example in material.examples}.values())
    plan = epoch_plan(
        [len(e.ids) for e in unique], batch_tokens=material.train.batch_tokens, seed=0, epoch=0
    )
    found = _Positions([], [], [])
    total = 0
    for rows in plan:
        batch = config.counted(collate([unique[row] for row in rows]), material.lm.stops)
        counts = answer_positions(batch).sum(1).tolist()
        for ids, count in zip(row_ids(batch), counts, strict=True):
            found.spans.append((ids, total, count))
            total += count
        found.batches.append(batch)
        found.ends.append(total)
    return found


def _make(config: RKLD, material: Material, folder: Path, identity: str) -> None:
    """Everything in `folder`, from wherever a former process left off."""
    claim = folder / "claim.json"
    if claim.is_file():
        _check_owner(json.loads(claim.read_text(encoding="utf-8"))["identity"], identity, folder)
    places = _positions(config, material)
    vocabulary = int(material.model.get_output_embeddings().weight.shape[0])
    size = teacher_bytes(places.ends[-1], vocabulary)
    private_folder(folder)
    if not claim.is_file():
        _check_room(folder, 2 * size)
        write_json(claim, {"identity": identity}, mode=0o600)
    shape = f"{places.ends[-1]:,} positions x {vocabulary:,} tokens"
    note(f"teacher: {shape}, {size / 2**20:,.0f} MiB")

    original = _Table(folder / "original.f32", vocabulary)
    original.write(places, lambda at: _logits(material.model, places.batches[at]), "original model")
    teacher = _Table(folder / "teacher.f32", vocabulary)

    with _augmented(config, material, folder / "augmented", identity) as augmented:

        def log_teacher(at: int) -> torch.Tensor:
            first = places.ends[at - 1] if at else 0
            before = original.read([(first, places.ends[at] - first)])
            after = _logits(augmented, places.batches[at])
            return log_probabilities(config, before.to(after.device), after)

        teacher.write(places, log_teacher, "augmented model")
    rows = {_key(ids, identity): (first, count) for ids, first, count in places.spans}
    facts = {"identity": identity, "vocabulary": vocabulary, "rows": rows}
    write_json(folder / "rows.json", facts, mode=0o600)
    original.remove()
    shutil.rmtree(folder / "augmented", ignore_errors=True)


def log_probabilities(
    config: RKLD, original: torch.Tensor, augmented: torch.Tensor
) -> torch.Tensor:
    """log π_t of logits (..., V) of both models, float32."""
    return config.teacher_logits(original, augmented).log_softmax(-1)


class _Table:
    """Rows of V float32 numbers in a file that is only appended to. What a mark beside it does not
    vouch for is written again after a kill."""

    def __init__(self, path: Path, vocabulary: int) -> None:
        self.path, self.vocabulary = path, vocabulary
        self.mark = path.with_suffix(".mark.json")

    def write(self, places: _Positions, table: Callable[[int], torch.Tensor], label: str) -> None:
        """`table(n)` of every batch n that is not there yet."""
        done = 0
        if self.mark.is_file():
            done = int(json.loads(self.mark.read_text(encoding="utf-8"))["batches"])
        with os.fdopen(os.open(self.path, _WRITE, 0o600), "r+b") as file:
            file.truncate(4 * self.vocabulary * (places.ends[done - 1] if done else 0))
            file.seek(0, 2)
            fresh = 0
            for at in track(range(done, len(places.batches)), f"teacher: {label}"):
                fresh += file.write(table(at).cpu().contiguous().numpy().data)
                if fresh > _MARK_EVERY or at + 1 == len(places.batches):
                    file.flush()
                    fsync(self.path)
                    write_json(self.mark, {"batches": at + 1}, mode=0o600)
                    fresh = 0

    def read(self, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """The rows of every (first, count), one span after the other: (rows, V), fresh memory."""
        found = torch.empty(sum(count for _, count in spans), self.vocabulary)
        at = 0
        with self.path.open("rb", buffering=0) as file:
            for first, count in spans:
                file.seek(4 * self.vocabulary * first)
                rest: Any = found[at : at + count].numpy().data.cast("B") if count else b""
                while len(rest):  # one call gives 2 GiB at most
                    read = file.readinto(rest)
                    if not read:
                        raise SutureError("E904", "the file is cut short", where=str(self.path))
                    rest = rest[read:]
                at += count
        return found

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.mark.unlink(missing_ok=True)


@contextmanager
def _augmented(
    config: RKLD, material: Material, folder: Path | None, identity: str
) -> Iterator[Any]:
    """m_aug while this lasts: another model, or the trained one, which is then reset exactly.

    The weights before are kept on disk meanwhile, so that they do not take memory a second time.
    """
    if config.augmented is not None:
        from suture.inference import load

        source = _augmented_source(config, material)
        yield load(source, device=str(material.lm.device), dtype="float32").model
        return
    trained = {n: p for n, p in material.model.named_parameters() if p.requires_grad}
    before = _Weights(trained, folder)
    train(
        material.model,
        material.examples,
        augmenting(config, material.train),
        state=folder,
        identity=identity,
        label="augmented model",
    )
    try:
        yield material.model
    finally:
        before.restore(trained)


def augmenting(config: RKLD, train: TrainConfig) -> TrainConfig:
    """How the augmented model is trained: like the student, for `augment_epochs`."""
    changes = {"steps": None, "epochs": config.augment_epochs, "patience": None}
    rate = config.augment_rate or train.learning_rate
    return train.model_copy(update={**changes, "learning_rate": rate})


class _Weights:
    """Parameters as they are now: on disk, or without a folder in memory."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], folder: Path | None) -> None:
        self.file = None if folder is None else folder / "before.safetensors"
        self.held: dict[str, torch.Tensor] = {}
        if self.file is None:
            self.held = {name: p.detach().cpu().clone() for name, p in parameters.items()}
            return
        from safetensors.torch import save_file

        self.file.parent.mkdir(parents=True, exist_ok=True)
        held = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
        save_file(held, self.file)

    def restore(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        if self.file is not None:
            from safetensors.torch import load_file

            self.held = load_file(self.file)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.held[name])


def _augmented_source(config: RKLD, material: Material) -> TensorSource:
    """The user's augmented model, of the same kind and tokenizer (E122, E123)."""
    from suture.checkpoint import compare_layouts
    from suture.patch import open_model

    assert config.augmented is not None
    source = open_model(config.augmented, base=material.lm.source)
    compare_layouts(material.lm.source, source, names=("model", "augmented"))
    return source


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    """Of the batch's labelled positions, without gradients, all of it in float32."""
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return answer_logits(model, batch.to(device))


def _live(config: RKLD, material: Material) -> LogTeacher:
    """log π_t worked out anew for every batch, by two more models in memory."""
    original = Frozen(material.model)
    identity = _identity(config, material)
    folder = material.folder / "augmented" if material.folder else None
    with _augmented(config, material, folder, identity) as model:
        augmented = model if config.augmented else copy.deepcopy(model)

    def log_teacher(batch: Batch) -> torch.Tensor:
        with original.now() as before:
            l_o = _logits(before, batch)
        return log_probabilities(config, l_o, _logits(augmented, batch))

    return log_teacher


def _identity(config: RKLD, material: Material) -> str:
    """SHA-256 over what decides the teacher: models, formula, rows, how they are read."""
    lm, train = material.lm, augmenting(config, material.train)
    augmented: str | dict[str, Any] = train.model_dump(mode="json")
    if config.augmented is not None:
        augmented = _augmented_source(config, material).fingerprint()
    trained: list[Any] = [n for n, p in material.model.named_parameters() if p.requires_grad]
    for adapter in getattr(material.model, "peft_config", {}).values():
        trained += [adapter.r, adapter.lora_alpha]
    facts = [
        lm.fingerprint, augmented, None if config.augmented else trained, train.batch_tokens,
        config.alpha, config.space, config.dead_zone, config.include_eos,
    ]  # fmt: skip
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for example in material.examples:
        found.update(repr((example.loss_from, example.ids)).encode())
    return found.hexdigest()


def _check_owner(found: str, identity: str, folder: Path) -> None:
    if found != identity:
        raise SutureError(
            "E904",
            "this folder holds the teacher of another run: other settings, data or model",
            where=str(folder),
            why="going on would mix the two",
            fix="choose another output, or delete that folder",
        )


def _check_room(folder: Path, need: int) -> None:
    """Error E918: the disk has no room for the teacher."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise SutureError(
            "E918",
            f"the teacher takes {need / 1e9:.1f} GB while it is made, {free / 1e9:.1f} GB are free",
            where=str(folder),
            fix="write the output to another disk, or give teacher: live (three models in memory)",
        )
