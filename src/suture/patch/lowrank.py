"""A patch as a PEFT adapter: the best low-rank approximation of each matrix's difference.

For a linear layer's difference D (outputs x inputs), the Eckart-Young theorem names the nearest
matrix of rank r: D ≈ U_r Σ_r V_rᵀ. With G = DᵀD or DDᵀ, whichever is smaller, in float64, its
eigenvectors are the singular vectors of that side, and one product gives the other side; square
roots of Σ go into both factors, so that s = 1. One matrix is in memory at a time, in float32, and
G beside it. Only linear layers can be exported; embeddings, norms, biases, new and removed tensors
are listed as left out.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from suture.checkpoint import dtypes, folder
from suture.checkpoint.families import is_transposed
from suture.checkpoint.header import build_header
from suture.checkpoint.jsonfile import write_json
from suture.checkpoint.roles import role
from suture.checkpoint.source import TensorInfo, TensorSource
from suture.checkpoint.staging import refuse_inside, refuse_taken, staged_folder
from suture.errors import SutureError
from suture.lazy import torch
from suture.patch.format import Patch, PatchInfo
from suture.patch.lora import write_manifest
from suture.patch.module import refuse_modules
from suture.patch.patched import PatchedCheckpoint
from suture.progress import track

_NOT_LINEAR = frozenset({"embed", "position", "token_type", "patch", "norm"})
_SPOOL = ".factors"
_NOISE = 1e-14  # shares of ‖D‖² below it are float32 noise
_COLUMNS = 1 << 10  # columns of D widened to float64 at a time


@dataclass(frozen=True)
class Module:
    """One exported matrix. `relative_error`: ‖D - BA‖ / ‖D‖ with the factors as they are written;
    `energy`: share of ‖D‖² that is kept."""

    name: str
    rank: int
    relative_error: float
    energy: float

    def as_dict(self) -> dict[str, Any]:
        """The same facts for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Exported(PatchInfo):
    """What `to_lora` wrote, and what it had to leave out."""

    modules: tuple[Module, ...] = ()
    left_out: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same facts for JSON."""
        modules = [module.as_dict() for module in self.modules]
        return {**super().as_dict(), "modules": modules, "left_out": list(self.left_out)}


def to_lora(
    base: TensorSource,
    patches: Sequence[Path | str | Patch],
    out: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> Exported:
    """Write the change that `patches` make to `base` as a PEFT adapter to the folder `out`.

    `rank`: of every factor pair, at most. `energy`: share of ‖D‖² that each matrix must keep, in
    (0, 1]; with both, the smaller rank. The folder is a patch of kind `lora` too. Errors: E206 and
    E207 as in `apply`, E223 a rank or energy that makes no sense, E224 no linear layer is changed.
    """
    _check_size(rank, energy)
    refuse_taken(out)
    refuse_inside(out, base.path)
    opened = [item if isinstance(item, Patch) else Patch.open(item) for item in patches]
    refuse_modules(opened)
    patched = PatchedCheckpoint(base, opened)
    names, left_out = _linear(base, patched)
    if not names:
        raise SutureError(
            "E224",
            "the patch changes no linear layer, so there is nothing to export",
            where=", ".join(str(patch.path) for patch in patched.patches),
            why=f"an adapter holds low-rank changes of matrices; here: {', '.join(left_out[:6])}",
            fix="ship the patch itself; it is exact",
        )
    transposed = is_transposed(names[0], base.config)  # so are all: `_linear` sees to it
    with staged_folder(out) as stage:
        modules: list[Module] = []
        factors: list[tuple[str, str, tuple[int, ...]]] = []
        with open(stage / _SPOOL, "xb") as spool:
            for name in track(names, "low-rank export"):
                difference = _difference(base, patched, name)
                if transposed:
                    difference = difference.T.contiguous()
                b, a, module = _factorise(name, difference, rank, energy)
                modules.append(module)
                stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
                for part, value in (("A", a), ("B", b)):
                    spool.write(dtypes.to_bytes(value))
                    factors.append((f"{stem}{part}.weight", "F32", tuple(value.shape)))
        _finish(stage, factors, modules, transposed=transposed)
        facts = {
            "method": "to-lora",
            "of": [{"name": p.path.name, "fingerprint": p.fingerprint} for p in patched.patches],
            "rank": rank,
            "energy": energy,
            "measurements": {"modules": [module.as_dict() for module in modules]},
            "left_out": left_out,
        }
        write_manifest(stage, base, facts)
    info = Patch.open(out).info
    return Exported(**vars(info), modules=tuple(modules), left_out=tuple(left_out))


def _linear(base: TensorSource, patched: PatchedCheckpoint) -> tuple[list[str], list[str]]:
    """Changed weights of linear layers, and everything else that changed."""
    names, others = [], []
    touched = {name for patch in patched.patches for name in patch.tensors}
    for name in [*base.tensors, *(n for n in patched.tensors if n not in base.tensors)]:
        if name not in touched:
            continue
        old, new = base.tensors.get(name), patched.tensors.get(name)
        if old is not None and new is not None and _is_linear(old) and old.shape == new.shape:
            if base.tensor_hash(name) != patched.tensor_hash(name):
                names.append(name)
        else:
            others.append(name)
    turned = [name for name in names if is_transposed(name, base.config)]
    if turned and len(turned) < len(names):  # one adapter has one orientation
        others += [name for name in names if name not in turned]
        names = turned
    return names, others + sorted({f for patch in patched.patches for f in patch.files})


def _is_linear(info: TensorInfo) -> bool:
    found = role(info.name)
    return (
        info.name.endswith(".weight")
        and len(info.shape) == 2
        and min(info.shape) > 0
        and info.dtype in dtypes.FLOATS
        and found.matrix not in _NOT_LINEAR
        and found.expert is None  # held fused in memory, where an adapter finds no module
    )


def _difference(base: TensorSource, patched: TensorSource, name: str) -> torch.Tensor:
    old, new = base.read(name), patched.read(name)
    if old.dtype == torch.float64:
        return (new - old).float()
    return new.float().sub_(old.float())


def _factorise(
    name: str, d: torch.Tensor, rank: int | None, energy: float | None
) -> tuple[torch.Tensor, torch.Tensor, Module]:
    """B (outputs x r) and A (r x inputs) of the nearest matrix of rank r, float32."""
    wide = d.shape[0] < d.shape[1]
    values, vectors = torch.linalg.eigh(_gram(d if wide else d.T))
    squares, vectors = values.flip(0).clamp_(min=0), vectors.flip(1)  # largest first
    total = float(squares.sum())
    r = _rank(squares, total, rank, energy)
    roots = squares[:r].sqrt().sqrt()  # square roots of the singular values
    near = vectors[:, :r] * roots
    inverse = torch.where(roots > 0, 1 / roots, torch.zeros_like(roots))
    far = _product(d.T if wide else d, vectors[:, :r]) * inverse
    b, a = (near, far.T) if wide else (far, near.T)
    b, a = b.float().contiguous(), a.float().contiguous()
    error, whole = _error(d, b, a)
    relative = math.sqrt(error / whole) if whole > 0 else 0.0
    kept = float(squares[:r].sum()) / total if total > 0 else 1.0
    return b, a, Module(name, r, relative, min(1.0, kept))


def _gram(d: torch.Tensor) -> torch.Tensor:
    """DDᵀ in float64, a few columns of D at a time."""
    found = torch.zeros(d.shape[0], d.shape[0], dtype=torch.float64)
    for start in range(0, d.shape[1], _COLUMNS):
        part = d[:, start : start + _COLUMNS].double()
        found.addmm_(part, part.T)
    return found


def _product(d: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """D times a narrow matrix in float64, a few rows of D at a time."""
    pieces = [d[i : i + _COLUMNS].double() @ right for i in range(0, d.shape[0], _COLUMNS)]
    return torch.cat(pieces)


def _rank(squares: torch.Tensor, total: float, rank: int | None, energy: float | None) -> int:
    """The smallest rank that keeps `energy`, at most `rank` and at most what there is."""
    most = max(1, int((squares > total * _NOISE).sum()))
    if energy is not None:
        kept = torch.cumsum(squares, 0)
        most = min(most, 1 + int((kept < energy * total).sum()))
    return most if rank is None else min(most, rank)


def _error(d: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> tuple[float, float]:
    """‖D - BA‖² and ‖D‖² in float64, a few rows at a time."""
    error = whole = 0.0
    right = a.double()
    for start in range(0, d.shape[0], _COLUMNS):
        rows = d[start : start + _COLUMNS].double()
        left = rows - b[start : start + _COLUMNS].double() @ right
        error += float((left * left).sum())
        whole += float((rows * rows).sum())
    return error, whole


def _finish(
    stage: Path,
    factors: Sequence[tuple[str, str, tuple[int, ...]]],
    modules: Sequence[Module],
    *,
    transposed: bool,
) -> None:
    """adapter_config.json and adapter_model.safetensors as PEFT reads them; α = r, so s = 1."""
    ranks = {module.name.removesuffix(".weight"): module.rank for module in modules}
    most = max(ranks.values())
    pattern = {name: rank for name, rank in ranks.items() if rank != most}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "use_rslora": False,
        "target_modules": sorted(ranks),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
    }
    write_json(stage / folder.ADAPTER_CONFIG, config)
    header, _starts = build_header(factors, {"format": "pt"})
    with open(stage / folder.ADAPTER_WEIGHTS, "xb") as file, open(stage / _SPOOL, "rb") as spool:
        file.write(header)
        shutil.copyfileobj(spool, file, 1 << 20)
    (stage / _SPOOL).unlink()


def _check_size(rank: int | None, energy: float | None) -> None:
    """E223 unless they say how large the adapter is to be."""
    if rank is not None and rank < 1:
        what = f"an adapter of rank {rank} holds nothing"
    elif energy is not None and not 0 < energy <= 1:
        what = f"energy {energy:g} is no share of the change: above 0, at most 1"
    elif rank is None and energy is None:
        what = "neither a rank nor an energy was given"
    else:
        return
    raise SutureError(
        "E223",
        what,
        where="--rank, --energy",
        why="they decide how much of the change the adapter keeps",
        fix="give --rank 16, or --energy 0.95 for the share of the squared change to keep",
    )
