from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import brute
from suture.errors import SutureError
from suture.methods.identify import interfering, most_important
from suture.methods.recalibrate import Problem, SecondMoment, balanced, sequential, sweep

SHAPES = [(5, 12), (12, 5), (8, 8), (3, 17)]  # rows x d: wide, tall (k, v of grouped queries), odd


def layer(rows: int, d: int, *, seed: int = 0, dead: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    X, S = normal(d, 40) * torch.rand(d, 1, generator=g), normal(d, 30)
    gone = torch.randperm(d, generator=g)[:dead]
    X[gone] = 0.0
    return {
        "delta": normal(rows, d) * 0.1,
        "v": normal(rows, d),
        "F": torch.rand(rows, d, generator=g, dtype=torch.float64),
        "H_task": 2 / 8 * X @ X.T,
        "H_safe": 2 / 6 * S @ S.T,
        "X": X,
        "gone": gone,
    }


def ours(
    L: dict[str, Any], solver: str, *, removed: float, block: int, balance: float = 1.0
) -> torch.Tensor:
    def choose(values: torch.Tensor, columns: slice) -> torch.Tensor:
        unsafe = interfering(values, L["v"][:, columns], "code")
        return most_important(unsafe, L["F"][:, columns], removed)

    problem = (
        sequential(L["delta"], L["H_task"], damping=0.01)
        if solver == "sequential"
        else balanced(L["delta"], L["H_task"], L["H_safe"], balance=balance, damping=0.01)
    )
    return sweep(problem, choose, block=block)


def by_force(L: dict[str, Any], solver: str, **options: Any) -> np.ndarray[Any, Any]:
    values = {k: L[k].numpy() for k in ("delta", "v", "F", "H_task", "H_safe")}
    return brute.irr(solver=solver, **values, **options)


@pytest.mark.parametrize("solver", ["sequential", "balanced"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dead", [0, 2])
@pytest.mark.parametrize("block", [1, 4, 128])
@pytest.mark.parametrize("removed", [0.0, 0.4, 1.0])
def test_the_sweep_equals_brute_force(
    solver: str, shape: tuple[int, int], dead: int, block: int, removed: float
) -> None:
    L = layer(*shape, dead=dead)
    expected = by_force(L, solver, removed=removed, block=block)
    np.testing.assert_allclose(
        ours(L, solver, removed=removed, block=block).numpy(), expected, rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("balance", [0.3, 1.0, 10.0])
def test_balanced_with_an_empty_mask_is_the_closed_form(
    shape: tuple[int, int], balance: float
) -> None:
    """Stationarity of (δ̂−δ) H_t (δ̂−δ)ᵀ + λ δ̂ H_s δ̂ᵀ, checked as a gradient, not by inverting."""
    L = layer(*shape)
    found = ours(L, "balanced", removed=0.0, block=128, balance=balance).numpy()
    task = L["H_task"].numpy() / np.diag(L["H_task"]).mean() + 0.01 * np.eye(shape[1])
    safe = L["H_safe"].numpy() / np.diag(L["H_safe"]).mean()
    gradient = (found - L["delta"].numpy()) @ task + balance * found @ safe
    np.testing.assert_allclose(gradient, 0.0, atol=1e-10)


def test_balance_grows_from_the_tuned_to_the_aligned_layer() -> None:
    L = layer(8, 8)
    norms = [
        float(ours(L, "balanced", removed=0.0, block=128, balance=b).norm())
        for b in (1e-6, 0.3, 3.0, 1e6)
    ]
    assert norms == sorted(norms, reverse=True)
    assert norms[0] == pytest.approx(float(L["delta"].norm()), rel=1e-3)
    assert norms[-1] < 1e-3 * norms[0]


def test_without_balance_and_in_one_block_balanced_is_irr() -> None:
    L = layer(6, 9, dead=1)
    torch.testing.assert_close(
        ours(L, "balanced", removed=0.6, block=128, balance=0.0),
        ours(L, "sequential", removed=0.6, block=128),
    )


@pytest.mark.parametrize("solver", ["sequential", "balanced"])
def test_removed_entries_and_dead_columns_are_exactly_zero(solver: str) -> None:
    L = layer(12, 20, dead=3)
    masks: list[torch.Tensor] = []

    def choose(values: torch.Tensor, columns: slice) -> torch.Tensor:
        masks.append(interfering(values, L["v"][:, columns], "code"))
        return masks[-1]

    args = (L["delta"], L["H_task"])
    problem = (
        sequential(*args, damping=0.01)
        if solver == "sequential"
        else balanced(*args, L["H_safe"], balance=1.0, damping=0.01)
    )
    found = sweep(problem, choose, block=8)
    mask = torch.cat(masks, dim=1)
    assert mask.any()
    assert not found[mask].any()
    assert not found[:, L["gone"]].any()
    assert problem.dead.nonzero().flatten().tolist() == sorted(L["gone"].tolist())


@pytest.mark.parametrize("seed", range(5))
def test_recalibration_lowers_the_error_on_the_inputs(seed: int) -> None:
    """Order of §3.3(c): compensated ≤ plain zeroing, for one fixed mask."""
    L = layer(10, 24, seed=seed)
    mask = interfering(L["delta"], L["v"], "code")
    problem = sequential(L["delta"], L["H_task"], damping=1e-8)
    found = sweep(problem, lambda _values, columns: mask[:, columns], block=8)
    zeroed = L["delta"].masked_fill(mask, 0.0)
    error = float(((found - L["delta"]) @ L["X"]).square().sum())
    assert error < float(((zeroed - L["delta"]) @ L["X"]).square().sum())


def test_one_removal_costs_what_obs_says() -> None:
    """Loss ½ e H eᵀ rises by δ_q² / (2 [H⁻¹]_qq) when the first entry goes."""
    L = layer(1, 6)
    problem = sequential(L["delta"], L["H_task"], damping=0.01)
    first = torch.zeros(1, 6, dtype=torch.bool)
    first[0, 0] = True
    e = sweep(problem, lambda _v, columns: first[:, columns], block=128) - L["delta"]
    H = torch.from_numpy(brute.damp(L["H_task"].numpy(), 0.01))
    rise = float(0.5 * e @ H @ e.T)
    expected = float(L["delta"][0, 0] ** 2 / (2 * torch.linalg.inv(H)[0, 0]))
    assert rise == pytest.approx(expected, rel=1e-9)


def test_the_mask_of_a_block_sees_what_compensation_made_of_it() -> None:
    L = layer(6, 12)
    seen: list[torch.Tensor] = []

    def choose(values: torch.Tensor, columns: slice) -> torch.Tensor:
        seen.append(values.clone())
        return interfering(values, L["v"][:, columns], "code")

    sweep(sequential(L["delta"], L["H_task"], damping=0.01), choose, block=4)
    assert torch.equal(seen[0], L["delta"][:, :4])
    assert not torch.equal(seen[1], L["delta"][:, 4:8])
    seen.clear()
    sweep(
        balanced(L["delta"], L["H_task"], L["H_safe"], balance=1.0, damping=0.01), choose, block=4
    )
    assert torch.equal(torch.cat(seen, 1), L["delta"])


def test_the_factor_is_that_of_the_inverse() -> None:
    L = layer(2, 15)
    R = sequential(L["delta"], L["H_task"], damping=0.01).R
    H = torch.from_numpy(brute.damp(L["H_task"].numpy(), 0.01))
    assert torch.equal(R, R.triu())
    torch.testing.assert_close(R.T @ R, torch.linalg.inv(H), rtol=1e-9, atol=1e-12)


def test_damping_escalates_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    from suture import progress

    progress.silent = False  # the fixture restores it
    delta = torch.ones(2, 4, dtype=torch.float64)
    x = torch.ones(4, 1, dtype=torch.float64)
    problem: Problem = sequential(delta, x @ x.T, damping=0.0, name="layer")  # rank one
    assert problem.damping > 0
    assert "layer: damping raised from 0" in capsys.readouterr().err
    assert not torch.equal(problem.R, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    H = torch.eye(3, dtype=torch.float64)
    H[1, 2] = H[2, 1] = bad
    with pytest.raises(SutureError) as caught:
        sequential(torch.ones(1, 3, dtype=torch.float64), H, damping=0.01, name="layer")
    assert caught.value.code == "E407"
    assert caught.value.where == "layer"


def test_second_moment_is_two_over_n_times_the_sum() -> None:
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 6, generator=g) for n in (5, 9, 2)]
    moment = SecondMoment(torch.device("cpu"))
    for part in parts:
        moment.add(("q", "k"), part)
    found = moment.result(3)
    x = torch.cat(parts).double()
    torch.testing.assert_close(found["q"], 2 / 3 * x.T @ x, rtol=1e-5, atol=1e-6)
    assert found["q"] is found["k"]


def test_the_running_update_of_the_published_code_is_the_same_matrix() -> None:
    """H ← H·n/(n+1) + 2/(n+1) x xᵀ over sequences, §3.3."""
    g = torch.Generator().manual_seed(1)
    moment = SecondMoment(torch.device("cpu"))
    H = torch.zeros(4, 4, dtype=torch.float64)
    for n in range(5):
        x = torch.randn(7, 4, generator=g)
        moment.add(("v",), x)
        H = H * n / (n + 1) + 2 / (n + 1) * (x.double().T @ x.double())
    torch.testing.assert_close(moment.result(5)["v"], H, rtol=1e-5, atol=1e-6)
