"""What no model can be is refused by name, before torch is needed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from suture.errors import SutureError
from suture.models import Architecture, SutureDecoderConfig
from tiny_models import TINY


@pytest.mark.parametrize(
    ("code", "changes", "says"),
    [
        ("E970", {"num_attention_heads": 3}, "3 heads do not divide a hidden size of 16"),
        ("E970", {"num_attention_heads": 16, "positions": "rope"}, "odd width of 1"),
        ("E971", {"experts": 2, "top_k": 3}, "to 3 experts, and there are 2"),
        ("E972", {"ffn_width": 10, "outer_ratio": 0.25}, "into 2.5 and 7.5"),
        ("E973", {"experts": 2, "outer_ratio": 0.0}, "outer_ratio 0 leaves none"),
        ("E701", {"ffn_widht": 3}, "ffn_widht"),
        ("E702", {"direct_pathway": "loose"}, "loose"),
    ],
)
def test_refusals(code: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SutureError, match=says) as refused:
        Architecture.load({**TINY, **changes})
    assert refused.value.code == code
    assert refused.value.fix
    if code != "E701":  # transformers keeps keys it does not know
        with pytest.raises(SutureError, match=says):
            SutureDecoderConfig(
                **{**TINY, **changes, "num_experts_per_tok": changes.get("top_k", 1)}
            )


def test_defaults_that_hang_on_others() -> None:
    post, pre = Architecture(), Architecture(norm="pre")
    assert (post.kind_of_norm, post.residual_of_inner) == ("layer", "add_norm")
    assert (pre.kind_of_norm, pre.residual_of_inner) == ("rms", "add")
    assert post.total_width == post.outer_width == 512
    assert not post.has_inner


def test_widths_add_up() -> None:
    """Floats like 0.1 have no exact binary form, and the widths are whole all the same."""
    for eighths in range(9):
        arch = Architecture(ffn_width=4096, outer_ratio=eighths / 8)
        assert arch.outer_width + arch.inner_width == 4096
    arch = Architecture(ffn_width=1000, outer_ratio=0.1)
    assert (arch.outer_width, arch.inner_width) == (100, 900)


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({}, 512),
        ({"ffn_width": 4096, "outer_ratio": 0.25}, 1024),
        ({"moe_place": "inner"}, 128),
        ({"moe_place": "inner", "ffn_width": 4096, "outer_ratio": 0.125}, 3584),
        ({"moe_place": "before_ffn"}, 128),
        ({"expert_width": 7}, 7),
    ],
)
def test_width_of_an_expert(changes: dict[str, Any], width: int) -> None:
    """That of the network it stands for; d where it stands for none."""
    assert Architecture(experts=4, **changes).width_of_expert == width


def test_nothing_heavy_is_imported_for_it() -> None:
    code = (
        "import sys; from suture.models import Architecture, parameters; "
        "parameters(Architecture(), 'decoder'); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
