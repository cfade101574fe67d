"""The direct pathway and the strict mask against a loop over queries (CEA sections 3 and 11)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch

from suture.models import attention

B, H, N, M, D = 2, 3, 5, 9, 4
GRID = list(product([True, False], [N, 1, M], [True, False]))  # causal, queries, padding


def _drawn(n: int) -> list[torch.Tensor]:
    """q, kG, vG, kR, vR in float64: n queries at the end of M positions."""
    drawn = torch.Generator().manual_seed(n)
    shapes = [(B, H, n, D), (B, H, M, D), (B, H, M, D), (B, H, n, D), (B, H, n, D)]
    return [
        torch.randn(shape, generator=drawn, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


def _visible(n: int, causal: bool, padded: bool) -> torch.Tensor | None:
    """Row 0 has three places of padding at the left, row 1 none."""
    if not padded:
        return None
    seen = torch.ones(B, 1, n, M, dtype=torch.bool)
    seen[0, :, :, :3] = False
    return seen.tril(M - n) if causal else seen


def _by_query(
    given: list[torch.Tensor], visible: torch.Tensor | None, causal: bool, mode: str
) -> torch.Tensor:
    """The definition, one query at a time."""
    q, kG, vG, kR, vR = given
    n = q.shape[2]
    out = torch.zeros_like(q)
    for b, h, i in product(range(B), range(H), range(n)):
        own = M - n + i
        seen = [
            j
            for j in range(M)
            if (visible is None or bool(visible[b, 0, i, j])) and (not causal or j <= own)
        ]
        if mode == "strict":
            seen = [j for j in seen if j != own]
        if not seen:
            continue
        raw = mode == "exact"
        keys = [kR[b, h, i] if raw and j == own else kG[b, h, j] for j in seen]
        values = [vR[b, h, i] if raw and j == own else vG[b, h, j] for j in seen]
        p = (torch.stack(keys) @ q[b, h, i] / D**0.5).softmax(0)
        out[b, h, i] = p @ torch.stack(values)
    return out


def _same(one: torch.Tensor, other: torch.Tensor, given: list[torch.Tensor]) -> None:
    """Values and all gradients agree, and none is NaN."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
    drawn = torch.randn(one.shape, generator=torch.Generator().manual_seed(1), dtype=one.dtype)
    pairs = [
        torch.autograd.grad(
            out, given, drawn, allow_unused=True, retain_graph=True, materialize_grads=True
        )
        for out in (one, other)
    ]
    for got, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("causal", "n", "padded"), GRID)
def test_direct_pathway_is_its_definition(causal: bool, n: int, padded: bool) -> None:
    given, visible = _drawn(n), _visible(n, causal, padded)
    wanted = _by_query(given, visible, causal, "exact")
    if padded and n == M:  # what a query at a place of padding sees means nothing
        visible_rows = torch.ones(B, 1, n, 1, dtype=torch.bool)
        visible_rows[0, :, :3] = False
    else:
        visible_rows = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for form in (attention.direct_dense, attention.direct_joined):
        made = form(*given, visible, causal=causal)
        _same(made * visible_rows, wanted * visible_rows, given)


def test_the_two_forms_agree_with_the_log_sum_exp() -> None:
    """Form (b) as the spec writes it: a = sigmoid(q·kR/√dh - lse); O = a VR + (1 - a) Oc."""
    given = _drawn(M)
    q, kG, vG, kR, vR = given
    scores = (q @ kG.transpose(-1, -2) / D**0.5).masked_fill(
        ~torch.ones(M, M, dtype=torch.bool).tril(-1), -torch.inf
    )
    lse = scores.logsumexp(-1, keepdim=True)
    a = torch.sigmoid((q * kR).sum(-1, keepdim=True) / D**0.5 - lse)
    Oc = attention.strict(q, kG, vG, None, causal=True)
    written = a * vR + (1 - a) * Oc
    for form in (attention.direct_dense, attention.direct_joined):
        torch.testing.assert_close(form(*given, None, causal=True), written, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("causal", "n", "padded"), GRID)
@pytest.mark.parametrize("form", [attention.strict, attention.strict_fused])
def test_strict_sees_others_only(
    form: Callable[..., torch.Tensor], causal: bool, n: int, padded: bool
) -> None:
    given, visible = _drawn(n), _visible(n, causal, padded)
    made = form(*given[:3], visible, causal=causal)
    _same(made, _by_query(given, visible, causal, "strict"), given[:3])


def test_strict_is_the_shift_and_its_first_row_is_zero() -> None:
    q, kG, vG, _, _ = _drawn(M)
    made = attention.strict(q, kG, vG, None, causal=True)
    assert not made[:, :, 0].any()
    shifted = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, 1:], kG[:, :, :-1], vG[:, :, :-1], is_causal=True
    )
    torch.testing.assert_close(made[:, :, 1:], shifted, rtol=0, atol=1e-14)
    alone = attention.strict_fused(q[:, :, :1], kG[:, :, :1], vG[:, :, :1], None, causal=True)
    assert not alone.any()


@pytest.mark.parametrize(("causal", "n", "padded"), GRID)
@pytest.mark.parametrize("form", [attention.plain, attention.plain_fused])
def test_without_a_pathway_it_is_attention(
    form: Callable[..., torch.Tensor], causal: bool, n: int, padded: bool
) -> None:
    given, visible = _drawn(n), _visible(n, causal, padded)
    made = form(*given[:3], visible, causal=causal)
    _same(made, _by_query(given, visible, causal, "none"), given[:3])
