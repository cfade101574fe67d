"""What a sweep of knobs need not find out again, kept in a folder by what it was made from.

Refusals and importance belong to the aligned model; second moments of the inputs, where they are
those of the unedited tuned model (`--inputs frozen`), to the tuned one; SafePatching keeps its two
importances. A key covers everything the
content depends on: models, rows and template by hash, the settings that matter, dtype, device and
library versions. What is found under it is used as it is, bit by bit; a folder appears when it is
whole, and a file whose hash is wrong is refused (E437).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.checkpoint import dtypes
from suture.checkpoint.source import content_hash
from suture.checkpoint.staging import staged_folder
from suture.errors import SutureError
from suture.progress import note

if TYPE_CHECKING:
    import torch

    from suture.checkpoint import TensorSource
    from suture.data import Pair

_INDEX = "index.json"


class Stored(Mapping[str, "torch.Tensor"]):
    """Tensors of a finished folder by name, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, Any] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))

    def __getitem__(self, name: str) -> torch.Tensor:
        entry = self.index["tensors"][name]
        path = self.folder / entry["file"]
        raw = path.read_bytes()
        if content_hash(raw) != entry["hash"]:
            raise SutureError(
                "E437",
                "a cached file is not what was written",
                where=str(path),
                why="a result from damaged numbers would look like any other",
                fix=f"remove {self.folder} and run again",
            )
        return dtypes.from_bytes(bytearray(raw), entry["dtype"], tuple(entry["shape"]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.index["tensors"])

    def __len__(self) -> int:
        return len(self.index["tensors"])


class Under(Mapping[str, "torch.Tensor"]):
    """Of what is stored the tensors named `prefix`/NAME, by NAME."""

    def __init__(self, stored: Stored, prefix: str) -> None:
        self._stored, self._prefix = stored, f"{prefix}/"

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._stored[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        own = (name for name in self._stored if name.startswith(self._prefix))
        return (name.removeprefix(self._prefix) for name in own)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Cache:
    """A folder of such folders, one per kind and key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, kind: str, made_from: Mapping[str, Any]) -> Stored | None:
        """What was kept, or None."""
        place = self._place(kind, made_from)
        if not (place / _INDEX).is_file():
            return None
        note(f"{kind}: reused from {place}")
        return Stored(place)

    def keep(
        self,
        kind: str,
        made_from: Mapping[str, Any],
        tensors: Iterator[tuple[str, torch.Tensor]],
        **facts: Any,
    ) -> Stored:
        """Write tensors as they come; visible when all are there."""
        place = self._place(kind, made_from)
        place.parent.mkdir(parents=True, exist_ok=True)
        entries: dict[str, Any] = {}
        with staged_folder(place, overwrite=True) as stage:
            for number, (name, value) in enumerate(tensors):
                raw = dtypes.to_bytes(value)
                (stage / f"{number}.bin").write_bytes(raw)
                entries[name] = {
                    "file": f"{number}.bin",
                    "dtype": dtypes.safetensors_dtype(value.dtype),
                    "shape": list(value.shape),
                    "hash": content_hash(raw),
                }
            index = {"made_from": dict(made_from), "tensors": entries, **facts}
            (stage / _INDEX).write_text(json.dumps(index), encoding="utf-8")
            (stage / _INDEX).chmod(0o600)  # replies of a model stay with its user
        return Stored(place)

    def _place(self, kind: str, made_from: Mapping[str, Any]) -> Path:
        text = json.dumps({"kind": kind, **made_from}, sort_keys=True)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def rows_hash(rows: Sequence[Pair]) -> str:
    """Identity of prompts and responses, in their order."""
    text = json.dumps([[row.prompt, row.response] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_bytes(shapes: Sequence[tuple[int, ...]], width: int) -> int:
    """Bytes of tensors of these shapes."""
    return width * sum(math.prod(shape) for shape in shapes)


def identity(
    source: TensorSource, rows: Sequence[Pair], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a forward pass of `source` over `rows` depends on."""
    from suture.data import ChatTemplate
    from suture.versions import versions

    return {
        "model": source.fingerprint(),
        "template": ChatTemplate.from_folder(
            source.path, override=options["chat_template"]
        ).fingerprint,
        "rows": rows_hash(rows),
        "device": options["device"],
        "dtype": options["dtype"],
        "libraries": versions(),
    }
