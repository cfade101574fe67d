"""Resumable training state on disk: safetensors for numbers, JSON for the rest, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.checkpoint.staging import fsync
from suture.errors import SutureError
from suture.lazy import torch


def save_state(
    folder: Path,
    model: torch.nn.Module,
    optimizers: Sequence[tuple[torch.optim.Optimizer, float]],
    step: int,
    identity: str,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Replace the state in `folder`; a kill at any moment leaves the former one or this one.

    `identity`: hash of everything that decides the run (settings, data, starting weights);
    `notes`: what else a resumed run must know, for JSON. Returns the state's own folder.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"model/{name}"] = parameter.detach().cpu().contiguous()
    for place, (optimizer, _) in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{place}/{index}/{key}"] = value.cpu().contiguous()
                else:
                    scalars[f"{place}/{index}/{key}"] = value
    stage = folder / f"step-{step:08d}.tmp"
    shutil.rmtree(stage, ignore_errors=True)
    private_folder(folder)
    stage.mkdir()
    save_file(tensors, stage / "state.safetensors")
    fsync(stage / "state.safetensors")
    facts = {"step": step, "identity": identity, "scalars": scalars, "notes": dict(notes or {})}
    with open(stage / "state.json", "w", encoding="utf-8") as handle:
        json.dump(facts, handle)
        handle.flush()
        os.fsync(handle.fileno())
    former = _states(folder)
    final = folder / f"step-{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    os.rename(stage, final)
    fsync(folder)
    for old in former:
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load_state(
    folder: Path,
    model: torch.nn.Module,
    optimizers: Sequence[tuple[torch.optim.Optimizer, float]],
    identity: str,
) -> tuple[int, dict[str, Any]]:
    """Restore the newest whole state into model and optimisers.

    Gives the step to continue at and the state's notes; 0 and none where there is no state.

    Error E904: the folder holds the state of another configuration.
    """
    from safetensors.torch import load_file

    states = _states(folder)
    if not states:
        return 0, {}
    newest = states[-1]
    facts = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    if facts["identity"] != identity:
        raise SutureError(
            "E904",
            "this folder holds the state of another run: other settings, data or model",
            where=str(folder),
            why="resuming would mix the two",
            fix="choose another output, or delete that folder",
        )
    tensors = load_file(newest / "state.safetensors")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith("model/"):
                parameters[name.removeprefix("model/")].copy_(tensor)
    for place, (optimizer, _) in enumerate(optimizers):
        restored: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer" and rest.startswith(f"{place}/"):
                _, index, key = rest.split("/", 2)
                restored.setdefault(int(index), {})[key] = tensor
        for name, value in facts["scalars"].items():
            where, index, key = name.split("/", 2)
            if int(where) == place:
                restored.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": restored})
    return int(facts["step"]), dict(facts.get("notes") or {})


def private_folder(folder: Path) -> None:
    """Make `folder` unless it is there, for this user alone: weights and tables that are on the
    way to forgetting something still tell it. Its parents are made like any folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _states(folder: Path) -> list[Path]:
    """Whole states, oldest first."""
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.name.startswith("step-") and p.suffix != ".tmp")
    return sorted(path for path in found if (path / "state.json").is_file())
