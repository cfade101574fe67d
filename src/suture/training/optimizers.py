"""What moves the weights: AdamW, or Muon for the matrices inside blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suture.lazy import torch

if TYPE_CHECKING:
    from suture.training.loop import TrainConfig


def build_optimizers(
    model: torch.nn.Module, config: TrainConfig
) -> list[tuple[torch.optim.Optimizer, float]]:
    """AdamW for everything, or Muon for the matrices inside blocks and AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inside = parameter.ndim == 2 and ".layers." in name and config.muon_rate > 0
            (matrices if inside else others).append(parameter)
    optimizers: list[tuple[torch.optim.Optimizer, float]] = []
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=config.muon_rate, weight_decay=config.weight_decay, momentum=0.95
        )
        optimizers.append((muon, config.muon_rate))
    if others:
        adamw = torch.optim.AdamW(
            others,
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
        )
        optimizers.append((adamw, config.learning_rate))
    return optimizers
