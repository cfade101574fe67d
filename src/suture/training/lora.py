"""Low-rank adapters through peft: trained in float32, saved as the ordinary PEFT folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.lazy import torch


class LoraConfig(FrozenConfig):
    """Rank, scale (alpha / rank) and the modules that get an adapter."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1)


def attach(model: Any, config: LoraConfig, *, seed: int) -> Any:
    """`model` with trainable adapters on `config.targets`, all other weights frozen.

    Errors: E908 peft is not installed, E909 no module has such a name.
    """
    try:
        import peft
    except ImportError:
        raise SutureError(
            "E908", "LoRA training needs peft", fix="pip install 'suture[train]'"
        ) from None
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules=list(config.targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws A from the global generator
        try:
            return peft.get_peft_model(model, settings)
        except ValueError as error:
            raise SutureError(
                "E909",
                f"no module to adapt: {', '.join(config.targets)}",
                where=str(error)[:200],
                fix="name the last part of module names, as `suture inspect CKPT` shows them",
            ) from None


def save_adapter(model: Any, out: Path, *, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors; appears whole or not at all."""
    from suture.checkpoint import staged_folder

    with staged_folder(out) as stage:
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(stage, safe_serialization=True)
