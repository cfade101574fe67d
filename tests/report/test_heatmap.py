from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from suture.report import heatmap as module
from suture.report.heatmap import HeatMap, heat_map


class Source:
    """A checkpoint in memory that counts how many tensors are out at once."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.values = tensors
        self.tensors = {
            name: SimpleNamespace(shape=tuple(t.shape), dtype=str(t.dtype))
            for name, t in tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        return self.values[name].clone()


def pair(dtype: torch.dtype) -> tuple[Source, Source]:
    torch.manual_seed(0)
    names = [
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(
            f"model.layers.{layer}.{part}.weight"
            for layer in range(3)
            for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "input_layernorm")
        ),
    ]
    before = {name: torch.randn(7, 5).to(dtype) for name in names}
    after = {name: t.clone() for name, t in before.items()}
    for layer in range(3):
        edited = after[f"model.layers.{layer}.self_attn.q_proj.weight"]
        edited[layer : layer + 2] *= 1.25
    after["model.layers.1.mlp.down_proj.weight"] += 0.5
    return Source(before), Source(after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_against_numpy(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", 8)  # several tiles, the last one short
    before, after = pair(dtype)
    heat = heat_map(before, after)
    for layer in range(3):
        for matrix, part in (("q", "self_attn.q_proj"), ("down", "mlp.down_proj")):
            name = f"model.layers.{layer}.{part}.weight"
            old = before.values[name].float().numpy().astype(np.float64)
            new = after.values[name].float().numpy().astype(np.float64)
            cell = heat.cell(layer, matrix)
            assert cell is not None
            assert cell.norm == pytest.approx(
                np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-6
            )
            assert cell.changed == pytest.approx(float(np.mean(new != old)))
            assert cell.entries == old.size
    assert heat.tensors == 14
    assert heat.tensors_changed == 4
    assert heat.cell(0, "k").norm == 0 == heat.cell(0, "k").changed
    assert heat.matrices == ["q", "k", "down", "norm"]
    assert [cell.matrix for cell in heat.outside] == ["embed", "norm"]


def test_signed_zero_counts_and_zero_base_has_no_ratio() -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    heat = heat_map(Source({name: torch.zeros(4)}), Source({name: -torch.zeros(4)}))
    assert heat.cell(0, "q").changed == 1
    assert heat.cell(0, "q").norm == 0
    heat = heat_map(Source({name: torch.zeros(4)}), Source({name: torch.ones(4)}))
    assert heat.cell(0, "q").norm is None


def test_tensors_that_cannot_be_compared_are_named() -> None:
    before = Source({"a.weight": torch.ones(2), "b.weight": torch.ones(2), "c": torch.ones(())})
    after = Source({"a.weight": torch.ones(3), "d.weight": torch.ones(2), "c": torch.ones(())})
    heat = heat_map(before, after)
    assert (heat.only_before, heat.only_after, heat.reshaped) == (
        ("b.weight",),
        ("d.weight",),
        ("a.weight",),
    )
    assert heat.entries == 1


def test_survives_json() -> None:
    heat = heat_map(*pair(torch.float32))
    assert HeatMap.from_dict(json.loads(json.dumps(heat.as_dict()))) == heat
