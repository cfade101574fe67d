"""CKA, effective rank and load entropy at values that are known."""

from __future__ import annotations

import pytest
import torch

from suture.models import build
from suture.suites.features import by_layer, cka, effective_rank, load_entropy
from tiny_models import tiny


def test_cka_at_known_values() -> None:
    u = torch.randn(200, 6)
    turn = torch.linalg.qr(torch.randn(6, 6)).Q
    assert cka(u, 5 * u @ turn + 3) == pytest.approx(1)
    assert cka(u, torch.randn(200, 6)) < 0.1
    # columns x and y of equal length at right angles: one of two shared, ‖·‖² = 1 / (√2 · 1)
    x = torch.tensor([1.0, -1, 1, -1])
    y = torch.tensor([1.0, 1, -1, -1])
    assert cka(torch.stack((x, y), 1), x[:, None]) == pytest.approx(2**-0.5)
    assert cka(u, torch.zeros(200, 3)) == 0


def test_effective_rank_counts_equal_directions() -> None:
    waves = torch.linalg.qr(torch.randn(50, 4) - torch.randn(50, 4).mean(0)).Q
    waves = torch.linalg.qr(waves - waves.mean(0)).Q
    assert effective_rank(waves) == pytest.approx(4, rel=1e-4)
    assert effective_rank(waves[:, :1] @ torch.randn(1, 7)) == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.ones(5, 3)) == 0


def test_load_entropy() -> None:
    assert load_entropy(torch.full((8,), 0.125)) == pytest.approx(1)
    assert load_entropy(torch.tensor([1.0, 0, 0, 0])) == 0
    assert load_entropy(torch.tensor([0.5, 0.5, 0, 0])) == pytest.approx(0.5)


def test_layer_by_layer() -> None:
    ids = torch.randint(1, 61, (4, 12))
    keep = torch.ones(4, 12, dtype=torch.bool)
    keep[0, 5:] = False
    student, teacher = (build("encoder", tiny(name)) for name in ("moe", "vanilla"))
    outs = [model(ids, capture={"a", "m"}) for model in (student, teacher)]
    rows = by_layer(*outs, keep)
    assert [(row["site"], row["layer"]) for row in rows] == [
        ("a", 1), ("a", 2), ("m", 0), ("m", 1), ("m", 2),
    ]  # fmt: skip
    assert rows[2]["cka"] == pytest.approx(1)  # the embedding of one seed is the same
    assert rows[2]["relation_distance"] == pytest.approx(0, abs=1e-9)
    assert all(0 <= row["cka"] <= 1 + 1e-9 for row in rows)
    assert all(1 <= row["effective_rank_student"] <= 16 for row in rows)
