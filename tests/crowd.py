"""Votes of a made-up crowd."""

from __future__ import annotations

from typing import Any

import numpy as np

from suture.labels.scale import Scale
from suture.labels.votes import Votes

TWO = Scale.named("F/S")
assert TWO is not None


def graded(items: int, annotators: int, seed: int, missing: float = 0.0) -> Any:
    """Votes (items, annotators) on four graded symbols, -1 for none; each item keeps one vote."""
    rng = np.random.default_rng(seed)
    pole = rng.random(items) < 0.45
    right = rng.random((items, annotators)) < rng.uniform(0.65, 0.9, annotators)
    weak = rng.random((items, annotators)) < 0.6
    on_second = pole[:, None] == right
    cells = np.where(on_second, np.where(weak, 2, 3), np.where(weak, 1, 0))
    gone = rng.random((items, annotators)) < missing
    gone[np.arange(items), rng.integers(0, annotators, items)] = False
    return np.where(gone, -1, cells)


def votes(cells: Any, scale: Scale = TWO) -> Votes:
    return Votes.of_table(cells, scale)
