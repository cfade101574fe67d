"""Is it forgotten, or only hidden? The rows to forget once more, after a change that should not
bring them back.

    relearn    one pass of ordinary training on the rows to forget, AdamW at 2e-5
    quantise   the blocks' matrices rounded to 4-bit NormalFloat (NF4, Dettmers et al. 2023)

Both work on a copy of the weights: the model measured is untouched. The OpenUnlearning paper names
these attacks and its repository has no code for them; the figures are those of a re-implementation
(gnueaj/unlearning-depth-score), which relearns on forget10.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from suture.errors import SutureError
from suture.lazy import torch
from suture.suites.forgetting.asking import answer_losses, encoded
from suture.suites.forgetting.facts import Fact
from suture.suites.forgetting.ratios import probability

if TYPE_CHECKING:
    from suture.inference import LoadedModel

Probe = Literal["relearn", "quantise"]
_NAMES = {"relearn": "relearned", "quantise": "quantised"}
# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero (their appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64  # values that share a scale


def probed(
    lm: LoadedModel,
    facts: Sequence[Fact],
    probes: Sequence[Probe],
    *,
    rate: float,
    tokens: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """`forget_probability_relearned` and `_quantised` by item; `relearn_steps`, of all together.

    `rate`, `tokens`, `seed`: learning rate, tokens per step and order of relearning. Error E560: a
    model that answers through a decoding.
    """
    if probes and lm.decoding is not None:
        raise SutureError(
            "E560",
            f"{probes[0]} changes weights, and a decoding is in none",
            where=str(lm.source.path),
            fix="leave out --decoding, or --set probes",
        )
    found: dict[str, dict[str, float]] = {fact.id: {} for fact in facts}
    for probe in probes:
        # what the answers of these weights were is no answer of the changed ones
        changed = replace(lm, model=copy.deepcopy(lm.model), cache=None)
        if probe == "relearn":
            steps = relearn(changed, facts, rate=rate, tokens=tokens, seed=seed)
            for scores in found.values():
                scores["relearn_steps"] = float(steps)
        else:
            quantise(changed)
        asked = [(start, ends[:1]) for start, ends in (encoded(lm, fact) for fact in facts)]
        for fact, (loss,) in zip(facts, answer_losses(changed, asked), strict=True):
            found[fact.id][f"forget_probability_{_NAMES[probe]}"] = probability(loss)
    return found


def relearn(lm: LoadedModel, facts: Sequence[Fact], *, rate: float, tokens: int, seed: int) -> int:
    """One pass over the true answers, in place, in float32; the loss runs over the answers.

    Returned: the steps it took. Few rows are few steps, after which little can have come back.
    """
    from suture.training.batches import Example, epoch_plan
    from suture.training.loop import TrainConfig, train

    examples = []
    for fact in facts:
        start, ends = encoded(lm, fact)
        examples.append(Example((*start, *ends[0]), len(start)))
    plan = epoch_plan([len(e.ids) for e in examples], batch_tokens=tokens, seed=seed, epoch=0)
    config = TrainConfig(
        steps=len(plan), batch_tokens=tokens, learning_rate=rate, warmup=0, schedule="constant",
        compute="float32" if lm.dtype == torch.float32 else "bfloat16", seed=seed,
    )  # fmt: skip
    model: torch.nn.Module = lm.model
    train(model.requires_grad_(True).float(), examples, config, label="relearn")
    model.requires_grad_(False).to(lm.dtype)
    return len(plan)


def quantise(lm: LoadedModel) -> None:
    """Every matrix inside the blocks to NF4 and back, in place; embeddings and head stay."""
    from suture.checkpoint import roles

    parameters = dict(lm.model.named_parameters())
    role = roles(parameters)
    with torch.no_grad():
        for name, value in parameters.items():
            if value.ndim >= 2 and role[name].layer is not None:
                value.copy_(nf4(value))


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """`weight` rounded to NF4: of each 64 values in a row the largest gives the scale, and each is
    the nearest of 16 levels times the scale. Same shape and dtype; computed in float32."""
    flat = weight.detach().float().reshape(-1)
    short = -flat.numel() % BLOCK
    blocks = torch.nn.functional.pad(flat, (0, short)).reshape(-1, BLOCK)
    levels = torch.tensor(NF4, device=weight.device)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    unit = blocks / torch.where(scale > 0, scale, torch.ones_like(scale))
    middles = (levels[1:] + levels[:-1]) / 2
    rounded = levels[torch.bucketize(unit, middles)] * scale
    return rounded.reshape(-1)[: flat.numel()].reshape(weight.shape).to(weight.dtype)
