"""RMU: misdirect the hidden states of what is to be forgotten (Li et al., WMDP, arXiv 2403.03218).

    L = γ · MSE(h_L(D_f), c · u) + α · MSE(h_L(D_r), h_L,ref(D_r))

h_L is what block L gives, at positions that hold an answer token (as in OpenUnlearning; the script
of the authors takes every position); u a random vector of length 1 with no negative entry, drawn
once by the seed; ref the model before training. The MSE is a mean over tokens and entries. Layer 7
is that of the authors' 7B runs; c and α depend on the model: look at the length of its hidden
states. The authors train the down projections of blocks L − 2 to L; here the recipe's `scope` says
what is trained, and what comes after block L gets no gradient.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.lazy import np, torch
from suture.rng import uniform
from suture.training.batches import Batch
from suture.training.loop import Objective, hidden_states
from suture.training.objectives.common import Frozen, Material
from suture.training.objectives.retain import RetainRows, Unlearning


class RMU(FrozenConfig):
    """Make the hidden states of the answers noise, and hold those of the retain rows."""

    name: Literal["rmu"] = "rmu"
    layer: int = Field(7, ge=0, description="L: block whose output is steered, from 0")
    steering: float = Field(20.0, gt=0, description="c: length that hidden states are steered to")
    gamma: float = Field(1.0, gt=0, description="γ: weight of the steering")
    alpha: float = Field(1.0, ge=0, description="α: weight of the hold on retain rows")

    @property
    def needs_retain(self) -> bool:
        return self.alpha > 0

    def build(self, material: Material) -> Objective:
        """The loss of a batch; with a hold it keeps the model before (a copy without an adapter).

        Error E932: the model has no block of that number.
        """
        find_block(material.model, self.layer)
        seed = material.train.seed

        def steer(model: Any, batch: Batch) -> torch.Tensor:
            found = block_states(model, batch, self.layer)
            target = self.steering * direction(seed, found.shape[-1]).to(found.device)
            return torch.nn.functional.mse_loss(found, target.expand_as(found))

        return Unlearning(
            steer,
            _Hold(self.layer, material) if self.needs_retain else None,
            forget_weight=self.gamma,
            retain_weight=self.alpha,
        )


class _Hold:
    """MSE(h_L, h_L,ref) on the answer tokens of retain rows."""

    def __init__(self, layer: int, material: Material) -> None:
        self.layer, self.rows, self.frozen = layer, RetainRows(material), Frozen(material.model)
        self.begin = self.rows.begin

    def __call__(self, model: Any, rows: int) -> torch.Tensor:
        batch = self.rows.draw(rows, next(model.parameters()).device)
        with self.frozen.now() as before:
            kept = block_states(before, batch, self.layer)
        return torch.nn.functional.mse_loss(block_states(model, batch, self.layer), kept)


def direction(seed: int, width: int) -> torch.Tensor:
    """u: (width,) float32, uniform entries in [0, 1) scaled to length 1."""
    entries = uniform(seed, "rmu", 0, width)
    return torch.from_numpy((entries / np.linalg.norm(entries)).astype(np.float32))


def find_block(model: Any, layer: int) -> torch.nn.Module:
    """Block `layer` of the decoder, an adapter's included. Error E932: there is none."""
    from suture.inference.capture import decoder_layers

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    _, blocks = decoder_layers(inner)
    if layer >= len(blocks):
        raise SutureError(
            "E932",
            f"the model has no block {layer}",
            why=f"its {len(blocks)} blocks are counted from 0",
            fix=f"give objective.layer between 0 and {len(blocks) - 1}",
        )
    return blocks[layer]


def block_states(model: Any, batch: Batch, layer: int) -> torch.Tensor:
    """What block `layer` gives at positions of answer tokens: (tokens, hidden), float32."""
    seen: list[Any] = []
    handle = find_block(model, layer).register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        hidden_states(model, batch)
    finally:
        handle.remove()
    states = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    found: torch.Tensor = states[batch.labels != -100].float()
    return found
