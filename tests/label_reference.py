"""MBTIBench's estimator written down once more, one vote at a time, as its specification reads."""

from __future__ import annotations

from collections import Counter
from math import prod
from statistics import median_low

from suture.labels.scale import Scale


def released(rows: list[tuple[int, ...]]) -> tuple[list[float], list[float], int]:
    """(posterior of the first pole, soft label) per row, and the number of M steps.

    `rows`: an odd number of votes each, 0 and 1 on the first pole, 2 and 3 on the second.
    """
    n, annotators = len(rows), range(len(rows[0]))
    z = [median_low(row) for row in rows]
    C = [
        [[1 + sum(z[i] == a and rows[i][k] == c for i in range(n)) for c in range(4)]
         for a in range(4)]
        for k in annotators
    ]  # fmt: skip
    total = sum(cell for k in C for line in k for cell in line)
    p = [sum(C[k][a][c] for k in annotators for c in range(4)) / total for a in range(4)]
    first, second = p[0] + p[1], p[2] + p[3]
    F = [[(p[0] * C[k][0][c] + p[1] * C[k][1][c]) / first for c in range(4)] for k in annotators]
    S = [[(p[2] * C[k][2][c] + p[3] * C[k][3][c]) / second for c in range(4)] for k in annotators]

    def posterior(row: tuple[int, ...]) -> float:
        f = first * prod(F[k][row[k]] for k in annotators)
        s = second * prod(S[k][row[k]] for k in annotators)
        return f / (f + s)

    former, steps = [float(label < 2) for label in z], 0
    while True:
        r = [posterior(row) for row in rows]
        first = sum(value > 0.5 for value in r) / n
        second = 1 - first
        if max(abs(a - b) for a, b in zip(r, former, strict=True)) < 0.1:
            break
        former = r
        for k in annotators:
            for c in range(4):
                F[k][c] = sum(r[i] for i in range(n) if rows[i][k] == c) / sum(r)
                S[k][c] = sum(1 - r[i] for i in range(n) if rows[i][k] == c) / (n - sum(r))
        steps += 1
    r = [posterior(row) for row in rows]
    return r, spread(rows, r), steps


def spread(rows: list[tuple[int, ...]], r: list[float]) -> list[float]:
    """Soft labels by rank on each side of .5, items counted."""
    count = Counter(rows)
    of = dict(zip(rows, r, strict=True))
    symbols = Scale.named("F/S").symbols  # type: ignore[union-attr]

    def name(row: tuple[int, ...]) -> list[str]:
        return [symbols[c] for c in row]

    right = sorted((u for u in count if of[u] >= 0.5), key=lambda u: (of[u], name(u)))
    left = sorted((u for u in count if of[u] < 0.5), key=lambda u: (-of[u], name(u)))
    soft = {}
    for side, sign in ((right, 1), (left, -1)):
        middles, before = [], 0
        for u in side:
            middles.append(before + count[u] / 2)
            before += count[u]
        for u, m in zip(side, middles, strict=True):
            soft[u] = 1 - (0.5 + sign * m / (2 * max(middles)))
    return [soft[row] for row in rows]
