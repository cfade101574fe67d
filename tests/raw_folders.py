"""Checkpoint folders written byte by byte, right or wrong on purpose."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Raw = tuple[str, tuple[int, ...], bytes]  # dtype, shape, little-endian bytes


def pack(tensors: Mapping[str, Raw], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file, written independently of the code under test."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": span}
        data += raw
    return pack_header(json.dumps(header)) + data


def pack_header(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def write_raw(
    path: Path,
    tensors: Mapping[str, Raw],
    *,
    config: dict[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """A folder with these tensors; the default config makes no claims about layers."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or {"model_type": "odd"}))
    if shards == 1:
        (path / "model.safetensors").write_bytes(pack(tensors))
        return path
    names = list(tensors)
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = names[index::shards]
        (path / file).write_bytes(pack({name: tensors[name] for name in part}))
        weight_map.update(dict.fromkeys(part, file))
    write_index(path, weight_map)
    return path


def write_index(path: Path, weight_map: Mapping[str, Any]) -> None:
    text = json.dumps({"metadata": {}, "weight_map": dict(weight_map)})
    (path / "model.safetensors.index.json").write_text(text)


def floats(*values: float) -> Raw:
    return "F32", (len(values),), struct.pack(f"<{len(values)}f", *values)


def listing(path: Path) -> dict[str, bytes]:
    """Every file below `path` with its bytes: to show that nothing was written or touched."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
