"""Decoding-time defences: nothing of the weights changes, each next token is chosen otherwise.

A decoding says which voices it listens to and how their logits become one row. Attached to a loaded
model (`decoded`), every suite that generates measures it; log-likelihoods are the model's own and
do not change, unless the decoding is a distribution of its own (`whos_harry_potter`). One file per
method: `safe_decoding`, `self_cd`, `rose`, `whos_harry_potter`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from suture.config import named_options
from suture.errors import SutureError, nearest
from suture.lazy import torch

if TYPE_CHECKING:
    from pathlib import Path

    from suture.inference.loading import LoadedModel, Precision


class Decoding(Protocol):
    """How the next token is chosen, greedily, out of what one or more voices say."""

    @property
    def identity(self) -> dict[str, Any]:
        """Name, settings and fingerprints: whatever decides a reply besides model and prompt."""
        ...

    def voices(
        self, lm: LoadedModel, system: str | None
    ) -> Sequence[tuple[LoadedModel, str | None]]:
        """(model, system prompt) of each voice; the first is `lm`'s."""
        ...

    def heard(self, step: int) -> int:
        """How many of the voices, from the first, are listened to at `step` and from then on."""
        ...

    def combine(self, step: int, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits of the heard voices (rows x vocabulary each) to the ones to take the argmax of."""
        ...


def known_decodings() -> list[str]:
    """Names that `load_decoding` takes."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def decoding_kind(name: str) -> Any:
    """The settings class of the decodings called `name` (E532: none is)."""
    known = known_decodings()
    if name.replace("_", "-") not in known:
        close = nearest(name, known)
        raise SutureError(
            "E532",
            f"no decoding is called '{name}'",
            fix=f"did you mean '{close}'?" if close else f"there are: {', '.join(known)}",
        )
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").DECODING


def decoded(lm: LoadedModel, decoding: Decoding | None) -> LoadedModel:
    """`lm` with a decoding; one that has a method `wrap` decides likelihoods too."""
    wrap = getattr(decoding, "wrap", None)
    if wrap is None:
        return replace(lm, decoding=decoding)
    found: LoadedModel = wrap(lm)
    return found


def second_model(
    lm: LoadedModel, folder: Path | None, loaded: LoadedModel | None, *, role: str, option: str
) -> LoadedModel:
    """The model that a decoding listens to beside `lm`: the one already `loaded`, or `folder` (a
    checkpoint, an adapter or a patch of `lm`), loaded like `lm` and with its template.

    `role`: what it is to the decoding, `option`: how it is given, both for E533: no such model, or
    one of another tokenizer.
    """
    from suture.inference.loading import load
    from suture.patch import open_model

    if loaded is None:
        if folder is None:
            raise SutureError("E533", f"this decoding needs {role}", fix=f"--decoding {option}=DIR")
        precision: Precision = "bfloat16" if lm.dtype == torch.bfloat16 else "float32"
        loaded = load(open_model(folder, base=lm.source), device=str(lm.device), dtype=precision)
        loaded.template = lm.template
    if loaded.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise SutureError(
            "E533",
            f"the model and {role} have different tokenizers",
            where=f"{lm.source.path} and {loaded.source.path}",
            why="what they say of different tokens cannot be combined",
            fix="train that model from this one",
        )
    return loaded


def load_decoding(text: str | Mapping[str, Any]) -> Decoding:
    """A decoding by name and options: `self-cd:ratio=2.5`, a YAML file, or a mapping with `name`.

    Errors: E532 no such decoding, E701 and E702 unknown options and values.
    """
    name, options = named_options(text)
    found: Decoding = decoding_kind(name).load(options, where=f"--decoding {name}")
    return found
