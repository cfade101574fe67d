"""Attention written out for short rows, against torch's own kernel in float32."""

from __future__ import annotations

import pytest
import torch

from suture.models import fused

KERNEL = torch.nn.functional.scaled_dot_product_attention


def _heads(n: int, m: int) -> list[torch.Tensor]:
    torch.manual_seed(n + m)
    return [torch.randn(2, 3, length, 16, requires_grad=True) for length in (n, m, m)]


def _close(made: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(made.float(), expected, atol=0.04, rtol=0.04)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_values_and_gradients_are_the_kernels(causal: bool, scale: float | None) -> None:
    q, k, v = _heads(9, 9)
    expected = KERNEL(q, k, v, is_causal=causal, scale=scale)
    away = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, v), away)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.is_short(k)
        made = fused.attention(q, k, v, None, causal=causal, scale=scale)
    assert made.dtype == torch.bfloat16
    _close(made, expected)
    gradients = torch.autograd.grad(made, (q, k, v), away.bfloat16())
    for found, gradient in zip(gradients, wanted, strict=True):
        _close(found, gradient)


def test_a_mask_hides_and_a_query_that_sees_nothing_gets_zero() -> None:
    q, k, v = _heads(4, 6)
    visible = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    visible[0, 0, 2] = False
    expected = KERNEL(q, k, v, attn_mask=visible)
    with torch.autocast("cpu", torch.bfloat16):
        made = fused.attention(q, k, v, visible, causal=False)
    _close(made, expected)
    assert (made[0, :, 2] == 0).all()
    assert torch.isfinite(torch.autograd.grad(made.sum(), q)[0]).all()


def test_long_rows_and_float32_are_left_to_the_kernel() -> None:
    q, k, v = _heads(fused.SHORT + 1, fused.SHORT + 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.is_short(k)
        assert torch.equal(
            fused.attention(q, k, v, None, causal=True), KERNEL(q, k, v, is_causal=True)
        )
    q, k, v = _heads(5, 5)
    assert not fused.is_short(k)
    assert torch.equal(fused.attention(q, k, v, None, causal=True), KERNEL(q, k, v, is_causal=True))
