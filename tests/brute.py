"""IRR written a second time, densely and without thought for speed: the tests' judge.

numpy float64; one row, one entry at a time, from left to right, each removal an exact OBS step on
the inverse of the trailing submatrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def fights(delta: float, v: float, policy: str) -> bool:
    if policy == "code":
        return bool(np.sign(delta) != np.sign(v))
    return delta * v <= 0 if policy == "paper" else delta * v < 0


def mask_of(delta: Array, v: Array, F: Array | None, removed: float, policy: str) -> Array:
    """Removal mask of one block: interfering entries but the int(s·n) least important ones."""
    rows, columns = delta.shape
    found = [
        (r, c) for r in range(rows) for c in range(columns) if fights(delta[r, c], v[r, c], policy)
    ]
    kept = int(round(1 - removed, 12) * len(found))
    ranked = sorted(found, key=lambda at: 0.0 if F is None else F[at])  # stable, row-major
    mask = np.zeros_like(delta, dtype=bool)
    for at in ranked[kept:]:
        mask[at] = True
    return mask


def obs_block(delta: Array, H: Array, mask: Array, first: int) -> None:
    """Remove the entries of `mask` (columns from `first`), compensating everything to the right."""
    for j in range(first, first + mask.shape[1]):
        inverse = np.linalg.inv(H[j:, j:])
        for r in range(delta.shape[0]):
            if mask[r, j - first]:
                delta[r, j:] -= delta[r, j] / inverse[0, 0] * inverse[0]
                delta[r, j] = 0.0


def damp(H: Array, share: float) -> Array:
    return H + share * np.diag(H).mean() * np.eye(len(H))


def irr(
    delta: Array,
    v: Array,
    F: Array | None,
    *,
    removed: float,
    policy: str = "code",
    block: int,
    solver: str,
    H_task: Array | None = None,
    H_safe: Array | None = None,
    balance: float = 1.0,
    damping: float = 0.01,
) -> Array:
    """δ̂ of one matrix."""
    delta = delta.copy()
    if solver == "none":
        for first in range(0, delta.shape[1], block):
            part = np.s_[:, first : first + block]
            delta[part][mask_of(delta[part], v[part], at(F, part), removed, policy)] = 0.0
        return delta
    assert H_task is not None
    alive = np.flatnonzero(np.diag(H_task) > 0)
    delta[:, np.setdiff1d(np.arange(delta.shape[1]), alive)] = 0.0
    signs = delta
    live = np.ix_(alive, alive)
    if solver == "sequential":
        H_live = damp(H_task, damping)[live]
    else:
        assert H_safe is not None
        task = damp(H_task / np.diag(H_task).mean(), damping)[live]
        safe = (H_safe / np.diag(H_safe).mean())[live]
        H_live = task + balance * safe
        signs = delta.copy()
        delta[:, alive] = delta[:, alive] @ task @ np.linalg.inv(H_live)
    H = np.eye(delta.shape[1])
    H[live] = H_live
    for first in range(0, delta.shape[1], block):
        part = np.s_[:, first : first + block]
        seen = delta if solver == "sequential" else signs
        mask = mask_of(seen[part], v[part], at(F, part), removed, policy)
        obs_block(delta, H, mask, first)
    return delta


def at(F: Array | None, part: Any) -> Array | None:
    return None if F is None else F[part]
