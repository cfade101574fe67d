"""Which experts a token goes to, and the two losses that keep the router healthy.

The rule is inferred (CEA section 5 leaves the gate open): softmax over all experts in float32, then
the k largest, their outputs scaled by p as it is. A softmax after the choice would make p
constantly 1 for k = 1, and the router would never learn.
"""

from __future__ import annotations

from dataclasses import dataclass

from suture.lazy import torch
from suture.models.architecture import Architecture
from suture.models.outputs import Notes, Routing


@dataclass
class Choice:
    """`experts`: tokens x k, best first; `weights`: p of each, in float32."""

    experts: torch.Tensor
    weights: torch.Tensor


class Router(torch.nn.Module):
    """d → E logits, without bias."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.top_k, self.experts = arch.top_k, arch.experts
        self.weight = torch.nn.Parameter(torch.empty(arch.experts, arch.hidden_size))
        torch.nn.init.normal_(self.weight, std=arch.initializer_range)

    def forward(self, x: torch.Tensor, notes: Notes) -> Choice:
        """x: tokens x d. The losses, load and entropy of tokens that are no padding go to `notes`,
        whose `keep` has as many places as x has tokens."""
        with torch.autocast(x.device.type, enabled=False):
            logits = x.float() @ self.weight.float().T
            p = logits.softmax(-1)
        weights, experts = p.topk(self.top_k, dim=-1)
        keep = None if notes.keep is None else notes.keep.flatten()
        notes.balance.append(balance_loss(p, experts, keep))
        notes.z.append(z_loss(logits, keep))
        with torch.no_grad():
            q = p if keep is None else p[keep]
            entropy = _mean(torch.special.entr(q).sum(-1))
            notes.routing.append(Routing(load(experts, self.experts, keep), entropy))
        return Choice(experts, weights)


def load(experts: torch.Tensor, count: int, keep: torch.Tensor | None) -> torch.Tensor:
    """f: the share of assignments that each expert got, of tokens that are no padding."""
    chosen = experts if keep is None else experts[keep]
    found = torch.bincount(chosen.flatten(), minlength=count).float()
    return found / max(chosen.numel(), 1)


def balance_loss(p: torch.Tensor, experts: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """E · Σ_e f_e P_e over tokens that are no padding; 1 at uniform routing, for every k.

    p: tokens x E, differentiable; `experts`: tokens x k. P_e is the mean of p; f_e is a share of
    assignments, so that k does not change the scale.
    """
    f = load(experts, p.shape[-1], keep)
    P = _mean(p if keep is None else p[keep])
    return p.shape[-1] * (f * P).sum()


def z_loss(logits: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Mean of logsumexp² (Zoph et al., ST-MoE, arXiv 2202.08906, equation 5): small logits stay
    exact."""
    return _mean((logits if keep is None else logits[keep]).logsumexp(-1).square())


def _mean(of_tokens: torch.Tensor) -> torch.Tensor:
    """Over tokens; 0 where all are padding."""
    return of_tokens.mean(0) if len(of_tokens) else of_tokens.sum(0)
