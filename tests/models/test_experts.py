"""Grouped products against a loop over experts; the router and its losses (moe-kernels spec)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from suture.models import experts as module
from suture.models.experts import Experts
from suture.models.moe import MoE
from suture.models.outputs import Notes, load_entropy
from suture.models.router import Router, balance_loss, z_loss
from tiny_models import tiny


def _experts(E: int, d: int, h: int, **changes: Any) -> Experts:
    torch.manual_seed(E + d)
    found = Experts(
        tiny("moe", experts=E, hidden_size=d, expert_width=h, **changes)
    ).requires_grad_(True)
    with torch.no_grad():
        for weight in found.parameters():
            weight.normal_(std=0.3)
    return found


def _loop(
    experts: Experts, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Expert by expert and assignment by assignment, by their definition."""
    out = torch.zeros_like(x)
    for e in range(len(experts.up_proj)):
        for token, rank in (chosen == e).nonzero().tolist():
            y = experts.up_proj[e] @ x[token]
            y = experts.act(y if experts.up_bias is None else y + experts.up_bias[e])
            y = experts.down_proj[e] @ y
            y = y if experts.down_bias is None else y + experts.down_bias[e]
            out = out.index_add(0, torch.tensor([token]), (weights[token, rank] * y)[None])
    return out


def _routes(T: int, E: int, k: int, how: str) -> torch.Tensor:
    if how == "one":  # all tokens to one expert, the others empty
        return torch.arange(k).expand(T, k).clone() + (E - k)
    drawn = torch.Generator().manual_seed(T)
    return torch.rand(T, E if how == "all" else E - 2, generator=drawn).topk(k, dim=-1).indices


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", ["all", "empty", "one"])
@pytest.mark.parametrize(("T", "k"), [(13, 1), (13, 2), (1, 2)])
def test_grouped_is_the_loop_in_values_and_gradients(
    T: int, k: int, how: str, bias: bool, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 experts of 8 → 12 → 8; 13 tokens do not divide among them."""
    if not kernel:
        monkeypatch.setattr(module, "has_kernel", lambda *_: False)
    experts, chosen = _experts(5, 8, 12, bias=bias), _routes(T, 5, k, how)
    x = torch.randn(T, 8, requires_grad=True)
    weights = torch.rand(T, k, requires_grad=True)
    given = [x, weights, *experts.parameters()]
    made, wanted = experts(x, chosen, weights), _loop(experts, x, chosen, weights)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-6)
    g = torch.randn(T, 8)
    for got, expected in zip(
        torch.autograd.grad(made, given, g), torch.autograd.grad(wanted, given, g), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)


def test_the_kernel_is_left_out_where_strides_break_its_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """16 bytes are 4 floats or 8 bfloat16; width 6 and 10 are neither."""
    x, weight = torch.zeros(3, 8), torch.zeros(2, 12, 8)
    assert module.has_kernel(x, weight)
    assert not module.has_kernel(x.bfloat16(), weight.bfloat16())  # 12 is no multiple of 8
    assert not module.has_kernel(torch.zeros(3, 6), torch.zeros(2, 12, 6))
    assert not module.has_kernel(x, torch.zeros(2, 10, 8))
    assert not module.has_kernel(x.bfloat16(), weight)
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    assert not module.has_kernel(x, weight)
    odd = _experts(3, 6, 10, num_attention_heads=1)
    chosen, weights = _routes(7, 3, 1, "all"), torch.rand(7, 1)
    x = torch.randn(7, 6)
    torch.testing.assert_close(
        odd(x, chosen, weights), _loop(odd, x, chosen, weights), rtol=1e-5, atol=1e-6
    )


def test_autocast_reaches_the_experts() -> None:
    moe, x = MoE(tiny("moe")), torch.randn(9, 16)
    exact = moe(x, Notes())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        notes = Notes()
        made = moe(x, notes)
    assert made.dtype == torch.float32
    assert notes.balance[0].dtype == torch.float32
    assert not torch.equal(made, exact)
    torch.testing.assert_close(made, exact, rtol=0.05, atol=0.02)
    made.sum().backward()
    assert all(weight.grad is not None for weight in moe.parameters())


def test_no_tokens_and_second_derivatives() -> None:
    experts = _experts(3, 8, 8)
    assert experts(
        torch.zeros(0, 8), torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1)
    ).shape == (0, 8)
    rows = torch.tensor([2, 0, 5, 1])
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradgradcheck(lambda t: module._Dispatch.apply(t, rows, 6, 2) ** 2, x)
    torch.autograd.gradgradcheck(lambda t: module._Combine.apply(t, rows, 6, 2) ** 2, y)


def test_one_gradient_for_all_experts() -> None:
    """The trap of `W[e]`: a gradient of all experts for each of them. Peak memory says so."""
    experts = _experts(32, 64, 64, bias=False)
    x, chosen, weights = torch.randn(64, 64), _routes(64, 32, 1, "all"), torch.rand(64, 1)
    size = experts.up_proj.nbytes
    with torch.profiler.profile(profile_memory=True) as seen:
        experts(x, chosen, weights).sum().backward()
    taken = sum(max(event.self_cpu_memory_usage, 0) for event in seen.events())
    assert taken < 8 * size  # 2 gradients and small things; a loop would take 64


def test_the_router_learns_with_one_expert_per_token() -> None:
    """k = 1: the output is scaled by p itself; a softmax after the choice would be constant."""
    moe = MoE(tiny("moe"))
    x = torch.randn(9, 16)
    moe(x, Notes()).square().sum().backward()
    assert moe.router.weight.grad is not None
    assert moe.router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("k", [1, 2])
def test_the_balance_loss_is_one_at_uniform_routing(k: int) -> None:
    p = torch.full((8, 4), 0.25, requires_grad=True)
    even = torch.arange(8 * k).reshape(8, k) % 4
    loss = balance_loss(p, even, None)
    assert loss == 1
    skewed = torch.softmax(torch.tensor([[3.0, 0.0, 0.0, 0.0]]).expand(8, 4), dim=-1)
    to_first = skewed.topk(k).indices
    assert balance_loss(skewed, to_first, None) > 1
    lopsided = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(8, 4).clone().requires_grad_(True)
    balance_loss(lopsided, to_first, None).backward()
    assert lopsided.grad is not None
    assert (lopsided.grad[:, 0] > lopsided.grad[:, 3]).all()  # the crowded expert is pushed down


def test_load_entropy() -> None:
    assert load_entropy(torch.full((8,), 0.125)).item() == pytest.approx(math.log(8))
    assert load_entropy(torch.tensor([1.0, 0, 0, 0])) == 0
    assert load_entropy(torch.tensor([0.5, 0.5, 0, 0])).item() == pytest.approx(math.log(2))


def test_losses_load_and_entropy_do_not_see_padding() -> None:
    router = Router(tiny("moe", top_k=2))
    x = torch.randn(2, 6, 16)
    keep = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    other = torch.where(keep[..., None], x, torch.randn(2, 6, 16) * 5)
    notes = [Notes(keep=keep), Notes(keep=keep), Notes()]
    router(x.flatten(0, 1), notes[0])
    router(other.flatten(0, 1), notes[1])
    router(x[keep], notes[2])
    for one in notes[1:]:
        torch.testing.assert_close(one.balance, notes[0].balance)
        torch.testing.assert_close(one.z, notes[0].z)
        torch.testing.assert_close(one.routing[0].load, notes[0].routing[0].load)
        torch.testing.assert_close(one.routing[0].entropy, notes[0].routing[0].entropy)


def test_z_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    ln2 = torch.log(torch.tensor(2.0))
    assert z_loss(logits, None) == pytest.approx(float((ln2**2 + (1 + ln2) ** 2) / 2))
    assert z_loss(logits, torch.tensor([True, False])) == pytest.approx(float(ln2**2))


def test_permuting_tokens_permutes_outputs_and_nothing_else() -> None:
    moe = MoE(tiny("moe", top_k=2))
    x, order = torch.randn(11, 16), torch.randperm(11)
    torch.testing.assert_close(moe(x[order], Notes()), moe(x, Notes())[order])


def test_bfloat16_keeps_the_router_in_float32() -> None:
    moe = MoE(tiny("moe")).bfloat16()
    notes, x = Notes(), torch.randn(9, 16, dtype=torch.bfloat16)
    out = moe(x, notes)
    assert out.dtype == torch.bfloat16
    assert notes.balance[0].dtype == torch.float32
    exact = moe.float()(x.float(), Notes())
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)


def test_a_mixture_costs_about_what_a_dense_network_of_its_active_work_costs() -> None:
    """64 experts, 4096 tokens, one each. A gradient of all experts for each of them would take
    thirty times as long as the dense network; here five is the limit, two the rule."""
    experts, x = _experts(64, 128, 256, bias=False), torch.randn(4096, 128, requires_grad=True)
    chosen, weights = torch.randint(0, 64, (4096, 1)), torch.rand(4096, 1)
    dense = torch.nn.Sequential(
        torch.nn.Linear(128, 256, bias=False),
        torch.nn.GELU(),
        torch.nn.Linear(256, 128, bias=False),
    )

    def seconds(run: Callable[[], torch.Tensor]) -> float:
        least = float("inf")
        for _ in range(4):
            began = time.process_time()
            run().sum().backward()
            least = min(least, time.process_time() - began)
        return least

    assert seconds(lambda: experts(x, chosen, weights)) < 5 * seconds(lambda: dense(x))


@pytest.mark.parametrize(("mean", "step"), [(0, 8), (31, 8), (64, 16), (255, 16), (512, 64)])
def test_rows_are_rounded_up_to_few_numbers(mean: int, step: int) -> None:
    assert module._step(mean) == step


def test_the_order_of_tokens_within_an_expert_is_theirs() -> None:
    by_expert = torch.tensor([2, 0, 2, 1, 0, 2])
    counts = torch.bincount(by_expert, minlength=4)
    rows, expert = module._rows(by_expert, counts, counts)
    assert rows.tolist() == [3, 0, 4, 2, 1, 5]
    assert expert.tolist() == [0, 0, 1, 2, 2, 2]
    rows, expert = module._rows(by_expert, counts, torch.tensor([4, 4, 4, 0]))
    assert rows.tolist() == [8, 0, 9, 4, 1, 10]
    assert expert.tolist() == [0] * 4 + [1] * 4 + [2] * 4
