"""Pre-training that begins with a model's weights instead of drawn ones.

A mixture whose beginning is dense is upcycled: every expert begins as a copy of the feed-forward
network (`suture.models.upcycle`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from suture.errors import SutureError
from suture.lazy import torch
from suture.training.newborn import OWN
from suture.training.pretrain_loss import check_tokenizer

# what a mixture has of its own, and what decides no function
_FREE = {"experts", "top_k", "expert_width", "moe_place", "balance_weight", "z_weight",
         "initializer_range", "ffn_width", "dropout"}  # fmt: skip


def begin_with(model: Any, folder: Path, tokenizer: Path, *, seed: int) -> None:
    """Put the weights of the checkpoint `folder` into `model`; `seed`: of an upcycling's router.

    Errors: E962 it reads other tokens, E967 its weights are not those of such a model; E976 as
    `upcycle`; those of `load_reader`.
    """
    from suture.inference.reading import load_reader
    from suture.models import upcycle
    from suture.patch import open_model

    reader = load_reader(open_model(folder), device=str(next(model.parameters()).device))
    check_tokenizer(folder, tokenizer, "the model of start")
    begun, differ = reader.model, []
    if model.config.model_type in OWN and begun.config.model_type == model.config.model_type:
        arch, other = model.config.architecture, begun.config.architecture
        differ = [
            f"{name}: {was} and {value}"
            for name, value in arch.model_dump(exclude=_FREE).items()
            if (was := getattr(other, name)) != value
        ]
        if arch.experts and not other.experts and arch.moe_place == "outer" and not differ:
            begun = upcycle(begun, experts=arch.experts, top_k=arch.top_k, seed=seed)
    there, wanted = begun.state_dict(), model.state_dict()
    if not differ:
        differ = [
            name
            for name in sorted({*there, *wanted})
            if name not in there or name not in wanted or there[name].shape != wanted[name].shape
        ]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise SutureError(
            "E967",
            "the model that is to be the beginning is no such model as the recipe's",
            where=f"start={folder}: {', '.join(differ[:3])}{more}",
            fix="correct model in the recipe, or give another start; of a dense model comes a "
            "mixture with moe_place: outer",
        )
    with torch.no_grad():
        model.load_state_dict(there)
