"""The states of a text's tokens at one layer of a model that reads: an encoder or a decoder.

Any folder that transformers has a bare model for will do, whatever head it carries: of BERT the one
for masked words, of DeBERTa the one for entailment, of Llama the one for the next token. Heads are
left out; a tensor of the layers below that is missing or has no place is refused. A decoder's state
of a token knows what stands before it, an encoder's knows the whole text. float32 throughout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.inference.batching import plan_rows
from suture.inference.filling import fill_trunk, skeleton
from suture.inference.loading import check_device, load_bare, load_tokenizer, model_config
from suture.lazy import torch, transformers

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource

BATCH_TOKENS = 4096
_OWN = ("suture-decoder", "suture-encoder")  # capture states in their own way
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """A text as the model reads it. `own`: which tokens are the text's, not added by the tokenizer
    at its ends; `spans`: the characters (start, end) of each, empty where the tokenizer does not
    say; `cut`: whether the text was longer than the model can read."""

    ids: tuple[int, ...]
    own: tuple[bool, ...]
    spans: tuple[tuple[int, int], ...]
    cut: bool


def usual_layer(layers: int) -> int:
    """Three quarters of the way up: 9 of 12, 18 of 24, near what BERTScore's authors found best for
    most encoders (inferred for all others)."""
    return max(1, int(0.75 * layers + 0.5))


class StateModel:
    """A folder whose token states are wanted at `layer`: 0 is what enters the first layer, the
    number of layers what leaves the last; None is `usual_layer`. Weights are read at first use.

    Errors: E501 to E505 and E508 as `load`; E507 no such device; E590 no such layer, or a model
    that does not read one text from end to end (T5, CLIP).
    """

    def __init__(
        self, source: TensorSource, layer: int | None = None, device: str = "auto"
    ) -> None:
        check_device(device)
        self.source, self._device = source, device
        self.config: Any = model_config(source)
        layers = getattr(self.config, "num_hidden_layers", None)
        known: Any = transformers.AutoModel._model_mapping
        self._own = self.config.model_type in _OWN
        bare = self._own or type(self.config) in known
        if self.config.is_encoder_decoder or not isinstance(layers, int) or not bare:
            raise SutureError(
                "E590",
                f"a {self.config.model_type} model has no one stack of layers that reads a text",
                where=str(source.path / "config.json"),
                fix="give an encoder such as BERT, or a decoder such as Llama",
            )
        self.layer = usual_layer(layers) if layer is None else layer
        if not 0 <= self.layer <= layers:
            raise SutureError(
                "E590",
                f"there is no layer {layer}",
                where=str(source.path),
                fix=f"layers go from 0 (what enters the first) to {layers} (what leaves the last)",
            )
        self.tokenizer: Any = load_tokenizer(source.path)
        classes = None if self._own else known[type(self.config)]
        self._kind: Any = classes[0] if isinstance(classes, tuple | list) else classes

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Fingerprint of the weights, SHA-256 of the tokenizer's files, the layer: all that decides
        a state."""
        digest = hashlib.sha256()
        for name in _TOKENIZER:
            file = Path(self.source.path) / name
            if file.is_file():
                digest.update(name.encode() + b"\0" + file.read_bytes())
        return {
            "model": self.source.fingerprint(),
            "tokenizer_sha256": digest.hexdigest(),
            "layer": self.layer,
        }

    @cached_property
    def trunk(self) -> Any:
        """The model without a head, frozen."""
        place = self._device
        if place == "auto":
            place = "cuda" if torch.cuda.is_available() else "cpu"
        if self._own:
            return load_bare(self.source, device=place, dtype="float32").base_model
        model = skeleton(
            self.config, torch.float32, torch.device(place), self.source, kind=self._kind
        )
        fill_trunk(model, self.source)
        model.eval()  # type: ignore[no-untyped-call]
        return model.requires_grad_(False)

    @cached_property
    def context(self) -> int:
        """Tokens that can be read at once, the added ones included."""
        room = getattr(self.config, "max_position_embeddings", None)
        room = room if isinstance(room, int) and room > 0 else 1024
        for name, module in self.trunk.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
                # RoBERTa and its kin count positions from behind their padding's
                room -= 0 if module.padding_idx is None else module.padding_idx + 1
        return int(min(room, self.tokenizer.model_max_length))

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Every text as it is read; one without tokens has none."""
        if not texts:
            return []
        fast = bool(self.tokenizer.is_fast)
        found = self.tokenizer(
            list(texts), return_special_tokens_mask=True, return_offsets_mapping=fast,
            return_attention_mask=False, verbose=False,
        )  # fmt: skip
        spans = found["offset_mapping"] if fast else [[] for _ in texts]
        return [
            self._within([int(i) for i in ids], [not one for one in added], own)
            for ids, added, own in zip(
                found["input_ids"], found["special_tokens_mask"], spans, strict=True
            )
        ]

    def _within(self, ids: list[int], own: list[bool], spans: list[tuple[int, int]]) -> Tokens:
        """Cut to the context; what the tokenizer adds at the end stays."""
        over = len(ids) - self.context
        if over > 0:
            last = max((k for k, one in enumerate(own) if one), default=-1) + 1
            kept = [*range(last - over), *range(last, len(ids))]
            ids, own = [ids[k] for k in kept], [own[k] for k in kept]
            spans = [spans[k] for k in kept] if spans else spans
        return Tokens(tuple(ids), tuple(own), tuple((a, b) for a, b in spans), over > 0)

    def states(
        self, texts: Sequence[Tokens], *, max_tokens: int = BATCH_TOKENS
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """(place in `texts`, tokens x d float32 on the model's device) of each, longest first.

        Texts of like length are read together, padded on the right and masked; a text's states do
        not depend on its company beyond rounding.
        """
        trunk = self.trunk
        embedded = int(trunk.get_input_embeddings().weight.shape[0])
        highest = max((max(text.ids) for text in texts if text.ids), default=0)
        if highest >= embedded:
            raise SutureError(
                "E508",
                f"the tokenizer gives id {highest}, the embedding has {embedded} rows",
                where=str(self.source.path),
                fix="use the tokenizer that this checkpoint was trained with",
            )
        device = next(trunk.parameters()).device
        pad = getattr(self.config, "pad_token_id", None)
        pad = pad if isinstance(pad, int) else 0
        for rows in plan_rows([len(text.ids) for text in texts], max_tokens=max_tokens):
            lengths = [len(texts[i].ids) for i in rows]
            width = max(lengths)
            if not width:
                empty = torch.zeros(0, self.config.hidden_size, device=device)
                yield from ((i, empty) for i in rows)
                continue
            ids = torch.tensor(
                [[*texts[i].ids, *[pad] * (width - n)] for i, n in zip(rows, lengths, strict=True)]
            )
            attend = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
            with torch.inference_mode():
                read = self._read(trunk, ids.to(device), attend.long().to(device))
            for k, (i, n) in enumerate(zip(rows, lengths, strict=True)):
                yield i, read[k, :n]

    def _read(self, trunk: Any, ids: torch.Tensor, attend: torch.Tensor) -> torch.Tensor:
        mask = None if bool(attend.all()) else attend
        if self._own:
            found = trunk(input_ids=ids, attention_mask=mask, capture={"m"}).sites["m"]
        else:
            found = trunk(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, return_dict=True
            ).hidden_states
        states: torch.Tensor = found[self.layer].float()
        return states
