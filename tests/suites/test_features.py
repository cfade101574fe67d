"""CKA and effective rank at values that are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from suture.errors import SutureError
from suture.inference.reading import load_reader
from suture.inference.text_loss import windows
from suture.patch import open_model
from suture.suites import measure
from suture.suites.features import Moments, Row, rows_of
from suture.training.objectives.tcd import cosines
from training_corpus import tiny_model


def cka(u: torch.Tensor, v: torch.Tensor) -> float:
    """Position by position, as a long text is read."""
    moments = Moments()
    for at in range(0, len(u), 3):
        moments.add(u[at : at + 3], v[at : at + 3])
    return moments.cka()


def effective_rank(u: torch.Tensor) -> float:
    moments = Moments()
    moments.add(u, u)
    one, other = moments.effective_ranks()
    assert one == other
    return one


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
    assert cka(u, torch.full((200, 3), 0.1)) == 0


def test_effective_rank_counts_equal_directions() -> None:
    waves = torch.linalg.qr(torch.randn(50, 4) - torch.randn(50, 4).mean(0)).Q
    waves = torch.linalg.qr(waves - waves.mean(0)).Q
    assert effective_rank(waves) == pytest.approx(4, rel=1e-4)
    assert effective_rank(waves[:, :1] @ torch.randn(1, 7)) == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.full((5, 3), 0.1)) == 0


# --- the suite ---


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vanilla and a mixture of one corpus, a list of texts, two teachers that cannot be."""
    folder = tmp_path_factory.mktemp("features")
    mixture = {"experts": 4, "expert_width": 16, "top_k": 1}
    for name, kind, shape in (
        ("vanilla", "encoder", {}),
        ("moe", "encoder", mixture),
        ("decoder", "decoder", {}),
        ("deep", "encoder", {"num_hidden_layers": 3}),
    ):
        tiny_model(folder / name, kind, steps=2, **shape)
    (folder / "other.txt").write_text("We sell 3 apples, 5 pears & 7 plums! " * 60)
    domains = [{"name": "shop", "files": "other.txt"}]
    (folder / "domains.yaml").write_text(yaml.safe_dump({"texts": domains}))
    return folder


def found(home: Path, name: str, teacher: str) -> Any:
    return measure(
        "features", open_model(home / name / "model"), data=home / "domains.yaml", device="cpu",
        options={"passages": 4, "length": 200, "teacher": str(home / teacher / "model")},
    )  # fmt: skip


def test_a_model_is_like_itself(home: Path) -> None:
    itself = found(home, "vanilla", "vanilla")
    assert itself.metrics["cka"] == pytest.approx(1)
    assert itself.metrics["relation_distance"] == 0
    assert itself.metrics["effective_rank"] == itself.metrics["effective_rank_teacher"]
    assert "load_entropy" not in itself.metrics
    assert [row.item for row in itself.rows] == ["m0", "a1", "m1", "a2", "m2"]


def test_a_student_site_by_site(home: Path) -> None:
    """Against all states held at once, every window read alone."""
    measured = found(home, "moe", "vanilla")
    assert [row.item for row in measured.rows[-2:]] == ["mixture1", "mixture2"]
    assert 0 <= measured.metrics["load_entropy"] <= math.log(4)
    student, teacher = (load_reader(open_model(home / n / "model")) for n in ("moe", "vanilla"))
    texts = ["We sell 3 apples, 5 pears & 7 plums! " * 3, "We sell 5 pears. " * 9]
    states: dict[str, list[list[torch.Tensor]]] = {}
    for window in windows(student, texts, lambda ids, number: ids):
        ids = torch.tensor([window.ids])
        for model in (student.model, teacher.model):
            sites = model(ids, capture={"a", "m"}).sites
            for name, state in {"a2": sites["a"][1], "m2": sites["m"][2]}.items():
                kept = states.setdefault(name, [[], []])
                kept[model is teacher.model].append(state[0])
    rows = {row.item: row.scores for row in plain_rows(student, teacher, texts)}
    for name, (mine, theirs) in states.items():
        u, v = (torch.cat(one).double() for one in (mine, theirs))
        u, v = u - u.mean(0), v - v.mean(0)
        expected = (v.T @ u).norm() ** 2 / ((u.T @ u).norm() * (v.T @ v).norm())
        assert rows[name]["cka"] == pytest.approx(expected.item(), rel=1e-4)
        shares = torch.linalg.svdvals(u)
        shares = shares / shares.sum()
        rank = (-(shares * shares.clamp(min=1e-30).log()).sum()).exp().item()
        assert rows[name]["effective_rank"] == pytest.approx(rank, rel=1e-3)
        gaps = [
            (cosines(x, x) - cosines(y, y)).square()[~torch.eye(len(x), dtype=torch.bool)].mean()
            for x, y in zip(mine, theirs, strict=True)
        ]
        apart = torch.stack(gaps).mean().item()
        assert rows[name]["relation_distance"] == pytest.approx(apart, rel=1e-4)


def plain_rows(student: Any, teacher: Any, texts: list[str]) -> list[Row]:
    """The suite's rows where an encoder reads nothing masked."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("suture.suites.features.masking", lambda reader: lambda ids, number: ids)
        return rows_of(student, teacher.model, texts)


@pytest.mark.parametrize(
    ("teacher", "code"), [("decoder", "E979"), ("deep", "E978"), (None, "E562")]
)
def test_teachers_that_cannot_be(home: Path, teacher: str | None, code: str) -> None:
    options = {"teacher": str(home / teacher / "model")} if teacher else {}
    with pytest.raises(SutureError) as caught:
        measure(
            "features", open_model(home / "moe" / "model"), data=home / "domains.yaml",
            options={"passages": 4, "length": 200, **options}, device="cpu",
        )  # fmt: skip
    assert caught.value.code == code
