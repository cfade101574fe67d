"""What a student's states have in common with its teacher's, layer by layer (tcd.md section 4).

Numbers on captured states (`capture=` of our models) of the same input: linear CKA (Kornblith et
al., ICML 2019, arXiv 1905.00414), the distance of TCD's relations, and of each model alone its
effective rank (Roy & Vetterli, EUSIPCO 2007) and how evenly its routers spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from suture.lazy import torch
from suture.training.objectives.tcd import distance

if TYPE_CHECKING:
    from suture.models.outputs import SutureOutput


def cka(U: torch.Tensor, V: torch.Tensor) -> float:
    """Linear CKA of n x d and n x e states of the same n positions: 1 up to rotation and scale, and
    with few positions never near 0. ‖VᵀU‖² / (‖UᵀU‖ ‖VᵀV‖), columns centred, in float64."""
    u, v = (x.double() - x.double().mean(0) for x in (U, V))
    scale = (u.T @ u).norm() * (v.T @ v).norm()
    return float(((v.T @ u).norm() ** 2 / scale).item()) if scale else 0.0


def effective_rank(U: torch.Tensor) -> float:
    """exp of the entropy of the singular values' shares, from 1 to min(n, d); columns centred."""
    values = torch.linalg.svdvals(U.double() - U.double().mean(0))
    if not values.sum():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp().item())


def load_entropy(load: torch.Tensor) -> float:
    """Entropy of an expert load over its maximum log E: 1 spread evenly, 0 all to one."""
    if len(load) < 2:
        return 1.0
    even = torch.log(torch.tensor(float(len(load))))
    return float((torch.special.entr(load.float()).sum() / even).item())


def by_layer(
    student: SutureOutput,
    teacher: SutureOutput,
    keep: torch.Tensor | None = None,
    kinds: Sequence[str] = ("a", "m"),
) -> list[dict[str, float | int | str]]:
    """One row per state that both have captured: site, layer, cka, relation_distance and the
    effective rank of each. `keep`: batch x N, False at padding."""
    rows: list[dict[str, float | int | str]] = []
    for kind in kinds:
        pairs = zip((student.sites or {})[kind], (teacher.sites or {})[kind], strict=True)
        for layer, (u, v) in enumerate(pairs, start=0 if kind == "m" else 1):
            u, v = u.detach(), v.detach()
            flat_u, flat_v = (x.flatten(0, 1) if keep is None else x[keep] for x in (u, v))
            rows.append(
                {
                    "site": kind,
                    "layer": layer,
                    "cka": cka(flat_u, flat_v),
                    "relation_distance": distance(u, v, keep).item(),
                    "effective_rank_student": effective_rank(flat_u),
                    "effective_rank_teacher": effective_rank(flat_v),
                }
            )
    return rows
