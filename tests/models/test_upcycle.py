"""A mixture made from a dense model begins as that model."""

from __future__ import annotations

import pytest
import torch

from suture.errors import SutureError
from suture.models import build, upcycle
from tiny_models import tiny

IDS = torch.randint(1, 61, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("kind", "name"), [("encoder", "vanilla"), ("decoder", "caa")])
def test_it_begins_as_the_dense_model(kind: str, name: str, k: int) -> None:
    """Exactly so with an even router; nearly so with the router it has."""
    dense = build(kind, tiny(name, initializer_range=0.02), seed=5, pad_token_id=3).eval()  # type: ignore[arg-type]
    before = {part: weight.clone() for part, weight in dense.state_dict().items()}
    mixture = upcycle(dense, experts=4, top_k=k).eval()
    assert mixture.config.architecture.experts == 4
    assert mixture.config.pad_token_id == 3
    torch.testing.assert_close(mixture(IDS).logits, dense(IDS).logits, rtol=0, atol=1e-3)
    with torch.no_grad():
        for part, weight in mixture.named_parameters():
            if "router" in part:
                weight.zero_()
    torch.testing.assert_close(mixture(IDS).logits, dense(IDS).logits, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(weight, before[part]) for part, weight in dense.state_dict().items())


@pytest.mark.parametrize("k", [1, 2])
def test_at_the_papers_size_the_branch_is_the_dense_one(k: int) -> None:
    """64 experts on 768 dimensions: the chosen p is the largest of 64, and still about 1/64."""
    arch = tiny("vanilla", hidden_size=768, num_hidden_layers=1, ffn_width=32,
                initializer_range=0.02)  # fmt: skip
    dense = build("encoder", arch, seed=1).eval()
    mixture = upcycle(dense, experts=64, top_k=k).eval()
    with torch.no_grad():
        wanted, made = (m(IDS, capture={"branch_m"}).sites["branch_m"][0] for m in (dense, mixture))
    assert torch.linalg.norm(made - wanted) < 0.01 * torch.linalg.norm(wanted)
    router = mixture.get_parameter("model.layers.0.mlp.router.weight")
    assert len(router.unique(dim=0)) == 64  # no ties, which would all go to one expert
    with pytest.raises(SutureError, match="E971"):
        upcycle(dense, experts=0)


def test_noise_tells_the_copies_apart_and_hangs_on_the_seed() -> None:
    dense = build("encoder", tiny("vanilla"))
    name = "model.layers.0.mlp.experts.up_proj"
    one, same, other = (
        upcycle(dense, experts=3, noise=0.1, seed=seed).state_dict()[name] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    spread = (one - dense.state_dict()["model.layers.0.mlp.fc1.weight"]).std() / one.std()
    assert spread == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize(("name", "says"), [("moe", "experts already"), ("cea", "no outer FFN")])
def test_nothing_to_copy(name: str, says: str) -> None:
    with pytest.raises(SutureError, match=says) as refused:
        upcycle(build("decoder", tiny(name)), experts=2)
    assert refused.value.code == "E976"
    with pytest.raises(SutureError, match="E971"):
        upcycle(build("decoder", tiny("vanilla")), experts=2, top_k=3)
