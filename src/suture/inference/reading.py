"""A model that only reads: decoder or encoder, for its loss on texts and for its states.

`load` is for models that continue a text; here an encoder will do, and no chat template is asked
for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.inference.filling import fill, skeleton
from suture.inference.loading import check_device, load_tokenizer, model_config
from suture.lazy import torch, transformers

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource


@dataclass
class Reader:
    """A model in evaluation mode and its tokenizer. `causal`: it sees nothing of what follows.

    `context`: tokens it can read at once. `mask`: the id that stands for a masked token, None for
    a causal model.
    """

    model: Any
    tokenizer: Any
    source: TensorSource
    causal: bool
    context: int
    mask: int | None

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def fingerprint(self) -> str:
        """The content fingerprint of the source."""
        return self.source.fingerprint()


def load_reader(source: TensorSource, *, device: str = "auto") -> Reader:
    """The model of a folder in float32, its weights frozen.

    Errors: E501 to E505 as `load`; E512 neither a causal nor a masked language model, or a masked
    one whose tokenizer has no mask token.
    """
    check_device(device)
    config = model_config(source)
    masked: Any = transformers.AutoModelForMaskedLM._model_mapping
    plain: Any = transformers.AutoModelForCausalLM._model_mapping
    declared = str((source.config.get("architectures") or [""])[0])
    encoder = type(config) in masked and (
        declared.endswith(("MaskedLM", "Encoder")) or type(config) not in plain
    )
    if not encoder and type(config) not in plain:
        raise _no_reader(source, f"a {config.model_type} model predicts no tokens of a text")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = masked[type(config)] if encoder else None
    model = skeleton(config, torch.float32, torch.device(device), source, kind=kind)
    fill(model, source)
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    tokenizer = load_tokenizer(source.path)
    mask = tokenizer.mask_token_id if encoder else None
    if encoder and not isinstance(mask, int):
        raise _no_reader(source, "the tokenizer of this masked language model has no mask token")
    room = getattr(config, "max_position_embeddings", None)
    return Reader(
        model, tokenizer, source, not encoder, room if isinstance(room, int) else 1024, mask
    )  # fmt: skip


def _no_reader(source: TensorSource, what: str) -> SutureError:
    return SutureError(
        "E512",
        what,
        where=str(source.path / "config.json"),
        fix="give a decoder such as GPT, or an encoder such as BERT with its own tokenizer",
    )
