"""The formula against built models, and against what the papers report."""

from __future__ import annotations

import pytest
import torch

from suture.models import Architecture, SutureDecoder, SutureEncoder, parameters
from suture.models.configuration import SutureDecoderConfig, SutureEncoderConfig
from tiny_models import KINDS, tiny

SMALL = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 12}
LARGE = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
BIG = {
    "vocab_size": 32_000, "hidden_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 32,
    "norm": "pre", "positions": "rope", "bias": False, "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_formula_counts_what_is_built(name: str) -> None:
    arch = tiny(name)
    with torch.device("meta"):
        decoder = SutureDecoder(SutureDecoderConfig.of(arch))
        encoder = SutureEncoder(SutureEncoderConfig.of(arch))
    decoder.tie_weights()
    encoder.tie_weights()
    assert parameters(arch, "decoder").total == sum(p.numel() for p in decoder.parameters())
    assert parameters(arch, "encoder").total == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("sizes", "width", "millions"),
    [(SMALL, 4, 6.3), (SMALL, 32, 17.3), (LARGE, 4, 110), (LARGE, 32, 506)],
)
def test_sizes_of_cea(sizes: dict[str, int], width: int, millions: float) -> None:
    """CEA section 8. Its text gives no position table or head; within one per cent."""
    wide = Architecture(**sizes, ffn_width=width * sizes["hidden_size"])  # type: ignore[arg-type]
    assert parameters(wide, "encoder").total == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize("ratio", [1.0, 0.375, 0.125, 0.0])
def test_every_outer_ratio_has_the_parameters_of_the_wide_network(ratio: float) -> None:
    """CEA section 3: but for a norm here and there, and a bias."""
    wide = Architecture(**SMALL, ffn_width=4096)  # type: ignore[arg-type]
    caa = Architecture(**SMALL, ffn_width=4096, outer_ratio=ratio)  # type: ignore[arg-type]
    both = parameters(wide, "decoder").total, parameters(caa, "decoder").total
    assert both[1] == pytest.approx(both[0], rel=3e-4)


def test_sizes_of_the_mixtures() -> None:
    """CEA section 5: 1.34B dense, 14.22B with 64 experts of width d, 1.54B of them active, the same
    inside attention; TCD section 5: students of 106M and 3.68B."""
    dense = parameters(Architecture(**BIG), "decoder")  # type: ignore[arg-type]
    assert round(dense.total / 1e9, 2) == 1.34
    for place in ("before_ffn", "inner"):
        mixture = parameters(
            Architecture(**BIG, experts=64, moe_place=place),  # type: ignore[arg-type]
            "decoder",
        )
        # 14.224 without the routers, which the papers' figures leave open
        assert mixture.total == pytest.approx(14.22e9, rel=5e-4)
        assert round(mixture.active / 1e9, 2) == 1.54
    students = [
        parameters(Architecture(**sizes, experts=64), "encoder").total  # type: ignore[arg-type]
        for sizes in (SMALL, LARGE)
    ]
    assert students == [pytest.approx(106e6, rel=0.005), pytest.approx(3.68e9, rel=0.005)]
