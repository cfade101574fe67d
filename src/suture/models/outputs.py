"""What a forward pass gives back, and what it may write down on its way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from transformers.utils.generic import ModelOutput

from suture.errors import SutureError, nearest
from suture.lazy import torch

# Kinds of captured states, for layers l = 1..L (shapes: batch x positions x d unless said):
SITES = {
    "m": "m_0 embedding output, then m_l after layer l's transformation: L + 1 states",
    "a": "a_l after layer l's attention, residual and norm included",
    "branch_a": "what attention adds, before the residual",
    "branch_m": "what the outer FFN or mixture adds, before the residual",
    "q": "queries, batch x heads x positions x head width, after RoPE",
    "k": "keys that other positions see, same shape",
}


@dataclass
class Routing:
    """How one mixture distributed its tokens; padding is not counted.

    `load`: share of assignments per expert (E). `entropy`: of the router's distribution, mean over
    tokens, in nats. `dropped`: assignments that no expert took; the mixtures here drop none.
    """

    load: torch.Tensor
    entropy: torch.Tensor
    dropped: int = 0


def load_entropy(load: torch.Tensor) -> torch.Tensor:
    """Entropy of the experts' shares (E), in nats: ln E when all get as many tokens, 0 when one
    gets all."""
    found: torch.Tensor = torch.special.entr(load).sum()
    return found


@dataclass
class Notes:
    """What the layers write down during one forward pass.

    `wanted`: kinds of `SITES`. `keep`: which tokens are no padding (batch x positions), or None.
    """

    wanted: frozenset[str] = frozenset()
    keep: torch.Tensor | None = None
    sites: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    routing: list[Routing] = field(default_factory=list)
    balance: list[torch.Tensor] = field(default_factory=list)
    z: list[torch.Tensor] = field(default_factory=list)

    def state(self, kind: str, value: torch.Tensor) -> torch.Tensor:
        """`value`, remembered if it is wanted."""
        if kind in self.wanted:
            self.sites[kind].append(value)
        return value

    def auxiliary(self) -> dict[str, torch.Tensor]:
        """Mean over layers of each auxiliary loss; empty for a model without experts."""
        found = {"balance": self.balance, "z": self.z}
        return {name: torch.stack(values).mean() for name, values in found.items() if values}


def wanted(capture: Collection[str] | None) -> frozenset[str]:
    """The kinds to capture, or SutureError E974 for one that is none."""
    for kind in capture or ():
        if kind not in SITES:
            close = nearest(kind, SITES)
            raise SutureError(
                "E974",
                f"no states are called '{kind}'",
                where="capture",
                fix=f"did you mean '{close}'?" if close else f"one of: {', '.join(SITES)}",
            )
    return frozenset(capture or ())


@dataclass
class SutureOutput(ModelOutput):
    """Of a model with a head, or without one.

    `loss`: of language modelling alone, mean in nats per predicted token. `logits`: batch x
    positions x vocabulary. `auxiliary`: balance and z-loss, unweighted, apart (`penalty` weighs
    and adds them). `routing`: one entry per mixture. `sites`: kind → one tensor per layer, as
    `SITES` says.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    past_key_values: Any = None
    auxiliary: dict[str, torch.Tensor] | None = None
    routing: tuple[Routing, ...] | None = None
    sites: dict[str, tuple[torch.Tensor, ...]] | None = None
