"""Membership attacks: can one tell from a model whether it was trained on a row?

Each attack gives one score per row, higher where the row looks less like a member (Carlini et al.
2021 for loss and zlib; Shi et al. 2024 for min-k; Zhang et al. 2025 for min-k++). The AUC of
held-out rows against rows to forget is near 1 while they are memorised and 0.5 when nobody can
tell; MUSE's PrivLeak compares it with a model that never saw them.

Per-token scores leave the end token out, as open-unlearning does; the loss includes it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

from suture.errors import SutureError

_Z = 1.959963984540054


def zlib_score(loss: float, text: str) -> float:
    """`loss` per byte of the compressed `text` (UTF-8, zlib's default level)."""
    return loss / len(zlib.compress(text.encode("utf-8")))


def min_k(logprobs: Sequence[float], k: float = 0.4) -> float:
    """Minus the mean of the lowest `k` share of the token log-probabilities, at least one token.

    `k`: 0.4 in TOFU's configuration and in PrivLeak, 0.2 elsewhere.
    """
    lowest = sorted(logprobs)[: max(1, int(len(logprobs) * k))]
    return -math.fsum(lowest) / len(lowest)


def min_k_plus_plus(
    logprobs: Sequence[float],
    means: Sequence[float],
    variances: Sequence[float],
    k: float = 0.4,
) -> float:
    """`min_k` of (log p - mean) / deviation, both of log p over the vocabulary under p itself.

    Where the distribution is uniform or certain the deviation is 0 and so is the score (inferred).
    """
    scaled = [
        (value - mean) / math.sqrt(variance) if variance > 1e-12 else 0.0
        for value, mean, variance in zip(logprobs, means, variances, strict=True)
    ]
    return min_k(scaled, k)


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """P(a score of `others` is higher than one of `members`), ties counted half.

    `members`: of rows to forget; `others`: of held-out rows.
    """
    if not members or not others:
        raise ValueError("an AUC needs rows on both sides")
    order = sorted([(value, 0) for value in members] + [(value, 1) for value in others])
    below = 0  # members passed so far
    wins = at = 0
    while at < len(order):
        end = at
        while end < len(order) and order[end][0] == order[at][0]:
            end += 1
        new = sum(1 - side for _, side in order[at:end])
        wins += (end - at - new) * (2 * below + new)
        below += new
        at = end
    return wins / (2 * len(members) * len(others))


def auc_interval(value: float, members: int, others: int) -> tuple[float, float]:
    """The 95% interval of an AUC from so many independent rows on either side.

    Newcombe (2006), method 5: the AUCs that a score test with Hanley and McNeil's variance does not
    reject. It stays within 0 and 1 and has a width even where the estimate is 0 or 1.
    """
    if members < 1 or others < 1:
        raise ValueError("an AUC needs rows on both sides")
    rest = (members + others) / 2 - 1

    def kept(truth: float) -> bool:
        spread = 1 + rest * ((1 - truth) / (2 - truth) + truth / (1 + truth))
        variance = truth * (1 - truth) * spread / (members * others)
        return (value - truth) ** 2 <= _Z**2 * variance

    ends = []
    for bound in (0.0, 1.0):
        inside, outside = value, bound
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if kept(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def privleak(auc_min_k: float, retrained: float) -> float:
    """MUSE's PrivLeak in percent, from `mia_auc_min_k` of the model and of the retrained reference.

    MUSE turns the AUC round: A = 1 - AUC is near 0 when memorised. PrivLeak is
    100 (A - A_retrain) / A_retrain: about -100 when memorised, 0 like the reference, positive when
    forgotten beyond it. Published A_retrain: 0.4772 on MUSE news, 0.5393 on MUSE books. Raises
    SutureError E552 where A_retrain is 0: the reference itself would count as fully memorised.
    """
    base = 1.0 - retrained
    if base <= 0.0:
        raise SutureError(
            "E552",
            "PrivLeak is not defined: the reference tells every row to forget from held-out ones",
            why="it divides by 1 - AUC of the reference, which is 0",
            fix="check that the reference was trained without the rows to forget",
        )
    return 100.0 * ((1.0 - auc_min_k) - base) / base
