"""From a dense model to a mixture: every expert begins as a copy of the feed-forward network.

Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055): attention, embeddings and norms are kept,
the router is new. Our router scales an expert's output by its probability, which is about 1/E at
the start; so that the mixture begins as the function that the dense model is, the copies' second
matrix is multiplied by E/k (inferred: the paper renormalises the gate instead, which would leave a
router with k = 1 without a gradient). The experts chosen are those of the largest probability, so
the router must begin almost even: its weights are drawn much smaller than those of a new model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.lazy import np, torch
from suture.models.architecture import Architecture
from suture.models.registry import build
from suture.rng import generator

if TYPE_CHECKING:
    from suture.models.decoder import SutureDecoder
    from suture.models.encoder import SutureEncoder

_SPREAD = 2e-3  # of the router's logits at the start: p within 1% of 1/E, and no ties
_OF_EXPERT = {
    "fc1.weight": "up_proj",
    "fc1.bias": "up_bias",
    "fc2.weight": "down_proj",
    "fc2.bias": "down_bias",
}


def upcycle(
    dense: SutureDecoder | SutureEncoder,
    *,
    experts: int,
    top_k: int = 1,
    noise: float = 0.0,
    seed: int = 0,
) -> SutureDecoder | SutureEncoder:
    """A mixture with `experts` copies of the dense model's outer FFN; `dense` stays as it is.

    `noise`: standard deviation of what is added to each copy's matrices, relative to their own;
    0 leaves it to the router to tell the experts apart. `seed`: of router and noise. Raises
    SutureError E976 where there is nothing to copy, E971 for more experts per token than there are.
    """
    arch = dense.config.architecture
    if experts < 1:
        raise SutureError(
            "E971",
            f"each token is to go to {top_k} experts, and there are {experts}",
            where="experts",
            fix="give experts=2 or more",
        )
    if arch.experts or not arch.outer_width:
        raise SutureError(
            "E976",
            "the model has experts already" if arch.experts else "the model has no outer FFN",
            where="upcycle",
            why="the experts are to be copies of it",
            fix="give a dense model with an outer_ratio above 0",
        )
    changes = {"experts": experts, "top_k": top_k, "expert_width": arch.outer_width}
    wanted = Architecture.load({**arch.model_dump(), **changes, "moe_place": "outer"})
    others = {
        name: getattr(dense.config, name)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id")
    }
    model = build(dense.config.kind, wanted, seed=seed, **others)
    model.load_state_dict(
        {**model.state_dict(), **_copied(dense.state_dict(), experts, top_k, noise, seed)}
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("router.weight"):  # its input is of unit size, a norm has made it
                weight.mul_(_SPREAD / (arch.initializer_range * arch.hidden_size**0.5))
    return model.to(dense.dtype)  # type: ignore[arg-type,no-any-return]


def _copied(
    state: dict[str, Any], experts: int, top_k: int, noise: float, seed: int
) -> dict[str, torch.Tensor]:
    """The dense model's tensors under the mixture's names."""
    found = {}
    for name, value in state.items():
        block, mlp, leaf = name.rpartition(".mlp.")
        if not mlp:
            found[name] = value
            continue
        copies = value.expand(experts, *value.shape).clone()
        if noise and leaf.endswith("weight"):
            drawn = generator(seed, f"upcycle\0{name}").standard_normal(
                tuple(copies.shape), dtype=np.float32
            )
            copies += torch.from_numpy(drawn).to(copies) * (noise * value.float().std())
        if leaf.startswith("fc2"):
            copies *= experts / top_k
        found[f"{block}.mlp.experts.{_OF_EXPERT[leaf]}"] = copies
    return found
