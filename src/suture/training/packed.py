"""Text packed into one file of token ids that is read where it lies, and blocks of it.

    FOLDER/packed.json     what is in it: sources, hashes, tokens, settings
    FOLDER/tokenizer/      the tokenizer that wrote it
    FOLDER/train.bin       ids, little-endian, 2 bytes each (4 where the vocabulary needs them)
    FOLDER/dev.bin         the sections that are held out, in the same form

Sections follow one another as they do in their document and an end token closes what is
contiguous; a block may begin and end anywhere. Which blocks form step n is a pure function of
(seed, n): nothing is read up to there, and a killed run goes on with the same blocks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.checkpoint import staged_folder, write_json
from suture.data import sha256_file
from suture.errors import SutureError
from suture.lazy import np, torch
from suture.progress import note
from suture.rng import generator
from suture.training.batches import Batch, Step
from suture.training.documents import (
    SECTION,
    TextSource,
    documents,
    drawn,
    held_out,
    kind_of,
    sections,
)
from suture.training.vocabulary import (
    TrainedTokenizer,
    end_of_text,
    tokenizer_files,
    train_tokenizer,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from suture.training.loop import TrainConfig

PARTS = ("train", "dev")
_TOGETHER = 256  # sections tokenized at once

Prepare = Callable[["NDArray[np.int64]", int, "NDArray[np.int64]"], "NDArray[np.int64]"]
"""(ids (rows, length) that may be changed, epoch, numbers of the blocks) to labels."""


@dataclass(frozen=True)
class Packed:
    """A folder of packed text. `facts`: what packed.json says."""

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Packed:
        """Error E944: there is none, or its files are not whole."""
        try:
            found = cls(folder, json.loads((folder / "packed.json").read_text(encoding="utf-8")))
            sizes = [len(found.tokens(part)) == found.facts["tokens"][part] for part in PARTS]
        except (OSError, ValueError, KeyError) as error:
            raise _not_packed(folder, str(error)) from None
        if not all(sizes):
            raise _not_packed(folder, "a token file has another length than packed.json says")
        return found

    def tokens(self, part: str) -> NDArray[Any]:
        """The ids of `train` or `dev`, memory-mapped, read-only."""
        file = self.folder / f"{part}.bin"
        kind = np.dtype(self.facts["dtype"])
        if file.stat().st_size == 0:
            return np.empty(0, kind)
        return np.memmap(file, kind, mode="r")

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def identity(self) -> str:
        """Hash of everything that decides the ids."""
        return str(self.facts["identity"])


def pack(
    sources: Sequence[TextSource], tokenizer: Path | TrainedTokenizer, share: float, folder: Path
) -> Packed:
    """Pack the texts unless `folder` holds just that already.

    `tokenizer`: a folder that has one, or how to train one on the part that is trained on.
    `share`: of the sections, held out. Errors: E944 the folder holds other text; those of
    `characters`; E505 a tokenizer that cannot be loaded, E945 one without an end token.
    """
    from suture.inference.loading import load_tokenizer

    identity = packing_identity(sources, tokenizer, share)
    if (folder / "packed.json").is_file():
        found = Packed.open(folder)
        if found.identity != identity:
            raise SutureError(
                "E944",
                "this folder holds other text, or another tokenizer's tokens",
                where=str(folder),
                fix="give another folder as pretrain.packed, or remove this one",
            )
        return found
    characters(sources, share)
    note(f"packing {', '.join(source.name for source in sources)}")
    with staged_folder(folder) as stage:
        own = stage / "tokenizer"
        if isinstance(tokenizer, TrainedTokenizer):
            train_tokenizer(_trained_on(sources, share), tokenizer, own)
        else:
            own.mkdir()
            load_tokenizer(tokenizer)  # before it is copied: E505 names the folder of the recipe
            for name in tokenizer_files(tokenizer):
                (own / name).write_bytes((tokenizer / name).read_bytes())
        coder = load_tokenizer(own)
        write_json(stage / "packed.json", _write(sources, coder, share, stage, identity))
    return Packed.open(folder)


def characters(sources: Sequence[TextSource], share: float) -> dict[str, int]:
    """Of both parts; nothing is tokenized.

    Errors: E943 no section is held out, or none is left to train on; those of `documents`.
    """
    found = dict.fromkeys(PARTS, 0)
    places: list[float] = []
    for source in sources:
        for document in documents(source):
            for section in sections(document.text):
                places.append(drawn(section))
                found[PARTS[places[-1] < share]] += len(section)
    if not found["dev"] or not found["train"]:
        least = math.ceil(100 * min(places)) / 100
        enough = len(places) > 1 and least < 0.5 and not found["dev"]
        raise SutureError(
            "E943",
            f"of {len(places)} sections of text {'none' if not found['dev'] else 'each'} is held "
            f"out at a share of {share:g}",
            where="pretrain.texts",
            why=f"whole sections of about {SECTION} characters are held out, drawn by their words",
            fix=f"use --set pretrain.held_out={least:g}, or give more text"
            if enough
            else "give more text",
        )
    return found


def source_facts(source: TextSource) -> dict[str, Any]:
    """Which text a source is and how it is read; neither its name nor paths enter."""
    told = source.model_dump(mode="json", exclude={"name", "files", "licence"})
    return {
        "reading": told | {"kinds": [kind_of(file) for file in source.files]},
        "sha256": [sha256_file(file) for file in source.files],
    }


def packing_identity(
    sources: Sequence[TextSource], tokenizer: Path | TrainedTokenizer, share: float
) -> str:
    """Hash of the files' content, of how they are read, of the tokenizer and of what is held out.

    Paths do not enter. Error E940: a file is not there.
    """
    state = hashlib.sha256(f"packed 2 {share!r}".encode())
    for source in sources:
        for file in source.files:
            if not file.is_file():
                raise SutureError(
                    "E940",
                    "there is no such text file",
                    where=str(file),
                    fix="check the path; the folder of all: --set pretrain.root=DIR",
                )
        told = {"name": source.name, **source_facts(source)}
        state.update(json.dumps(told, sort_keys=True).encode())
    if isinstance(tokenizer, TrainedTokenizer):
        state.update(tokenizer.fingerprint().encode())
    else:
        for name in tokenizer_files(tokenizer):
            state.update(f"{name} {sha256_file(tokenizer / name)}".encode())
    return state.hexdigest()


class Blocks:
    """Blocks of `length` tokens, one after the other, in an order of their own every epoch.

    What is left over at the end of the text, and at the end of an epoch's order what does not fill
    a step, is left out. `prepare` gives the labels and may change what is read; without it every
    token is its own label. A supply of `suture.training.loop.train`.
    """

    def __init__(
        self, tokens: NDArray[Any], length: int, *, identity: str, prepare: Prepare | None = None
    ) -> None:
        self.tokens, self.length, self.prepare = tokens, length, prepare
        self._identity = identity

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    @property
    def identity(self) -> str:
        """What decides the batches besides the training's settings."""
        return f"{self._identity} {len(self.tokens)} {self.length}"

    def rows_per_step(self, config: TrainConfig) -> int:
        return config.batch_rows or max(1, config.batch_tokens // self.length) * config.accumulate

    def check(self, config: TrainConfig, name: str) -> None:
        """Error E943: the text does not fill one step."""
        wanted = self.rows_per_step(config)
        if len(self) < wanted:
            raise SutureError(
                "E943",
                f"the text has {len(self.tokens)} tokens, {len(self)} blocks of {self.length}, and "
                f"one step takes {wanted} blocks",
                where=name,
                fix="give more text, or lower train.batch_rows or train.batch_tokens",
            )

    def resolved(self, config: TrainConfig) -> TrainConfig:
        """`config` with steps and warm-up as numbers."""
        each = len(self) // self.rows_per_step(config)
        changes: dict[str, int] = {}
        if config.warmup == "epoch":
            changes["warmup"] = each
        if config.epochs is not None:
            changes["steps"] = each * config.epochs
        return config.model_copy(update=changes)

    def steps(self, config: TrainConfig, first: int) -> Iterator[Step]:
        """Endless steps, beginning at step `first` of the order of `config.seed`."""
        rows = self.rows_per_step(config)
        piece = max(1, config.batch_tokens // self.length)
        each, pieces = len(self) // rows, -(-rows // piece)
        number = first
        while True:
            epoch, place = divmod(number, each)
            chosen = _order(len(self), config.seed, epoch)[place * rows : (place + 1) * rows]
            batches = [self.batch(chosen[at : at + piece], epoch) for at in range(0, rows, piece)]
            yield Step(batches, number * pieces, epoch, place + 1 == each)
            number += 1

    def batch(self, numbers: NDArray[np.int64], epoch: int) -> Batch:
        """The blocks of these numbers, as pass `epoch` reads them."""
        ids = np.stack([self.tokens[i * self.length : (i + 1) * self.length] for i in numbers])
        ids = ids.astype(np.int64)
        labels = ids if self.prepare is None else self.prepare(ids, epoch, numbers)
        read = torch.from_numpy(ids)
        return Batch(read, torch.ones_like(read), torch.from_numpy(labels.copy()))


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return generator(seed, f"epoch {epoch}").permutation(count)


def _trained_on(sources: Sequence[TextSource], share: float) -> Iterator[str]:
    """Sections that are trained on, of all sources by turns, so that a tokenizer that looks at a
    part of the text has seen every domain."""
    streams = [
        (s for d in documents(source) for s in sections(d.text) if not held_out(s, share))
        for source in sources
    ]
    while streams:
        left = []
        for stream in streams:
            section = next(stream, None)
            if section is not None:
                yield section
                left.append(stream)
        streams = left


def _write(
    sources: Sequence[TextSource], coder: Any, share: float, stage: Path, identity: str
) -> dict[str, Any]:
    """Both token files and what packed.json says of them."""
    end = end_of_text(coder, stage)
    kind = "<u2" if len(coder) <= 2**16 else "<u4"
    pad = end if coder.pad_token_id is None else int(coder.pad_token_id)
    counts = dict.fromkeys(PARTS, 0)
    told = []
    handles = {part: (stage / f"{part}.bin").open("wb") for part in PARTS}
    try:
        for source in sources:
            before = dict(counts)
            texts = 0
            for part, ids in _coded(source, coder, share, end):
                if part is None:
                    texts += 1
                    continue
                handles[part].write(np.asarray(ids, dtype=kind).tobytes())
                counts[part] += len(ids)
            told.append(
                {
                    "name": source.name,
                    "licence": source.licence,
                    "documents": texts,
                    "tokens": {part: counts[part] - before[part] for part in PARTS},
                    **source_facts(source),
                }
            )
        for handle in handles.values():
            handle.flush()
            os.fsync(handle.fileno())
    finally:
        for handle in handles.values():
            handle.close()
    return {
        "identity": identity, "dtype": kind, "vocabulary": len(coder), "end": end, "pad": pad,
        "held_out": share, "tokens": counts, "sources": told,
    }  # fmt: skip


def _coded(
    source: TextSource, coder: Any, share: float, end: int
) -> Iterator[tuple[str | None, list[int]]]:
    """(part, ids) section by section, the end token behind the last of what is contiguous, and
    (None, []) for every document begun."""
    for document in documents(source):
        yield None, []
        pieces = list(sections(document.text))
        parts = [PARTS[held_out(piece, share)] for piece in pieces]
        for at in range(0, len(pieces), _TOGETHER):
            some = pieces[at : at + _TOGETHER]
            # verbose=False: no warning that a section is longer than a model's context
            ids = coder(some, add_special_tokens=False, verbose=False)["input_ids"]
            for place, one in enumerate(ids, at):
                follows = parts[place : place + 2] == [parts[place]] * 2
                yield parts[place], one if follows else [*one, end]


def _not_packed(folder: Path, why: str) -> SutureError:
    return SutureError(
        "E944",
        "this is no whole folder of packed text",
        where=f"{folder}: {why}",
        fix="remove it; the training packs the text again",
    )
