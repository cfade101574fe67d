"""Short rows in training: every family's numbers, as exact as with transformers' own attention."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from suture.training.short_rows import quick_attention
from tiny_families import DECODERS, MORE, build

IDS = torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(0))
ATTEND = torch.ones_like(IDS)
ATTEND[1, 6:] = 0
ATTEND[2, 9:] = 0


def _gradient(model: Any, dtype: torch.dtype, attend: torch.Tensor | None, how: Any) -> Any:
    labels = IDS if attend is None else IDS.masked_fill(attend == 0, -100)
    model.zero_grad()
    with how(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(input_ids=IDS, attention_mask=attend, labels=labels, use_cache=False).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("attend", [ATTEND, None], ids=["padded", "whole"])
@pytest.mark.parametrize("family", [*DECODERS, *MORE])
def test_gradients_are_as_exact_as_before(family: str, attend: torch.Tensor | None) -> None:
    model = build(family).float().eval()
    exact = _gradient(model, torch.float32, attend, nullcontext)
    off = {
        how: (_gradient(model, torch.bfloat16, attend, how) - exact).norm() / exact.norm()
        for how in (nullcontext, quick_attention)
    }
    assert off[quick_attention] < 1.5 * off[nullcontext] + 1e-3


def test_what_transformers_calls_sdpa_is_its_own_again() -> None:
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with quick_attention():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not own
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own
