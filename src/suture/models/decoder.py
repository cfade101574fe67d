"""The decoder: next-token prediction, generation with a cache."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from suture.lazy import torch, transformers
from suture.models.backbone import SutureModel, SuturePreTrained
from suture.models.configuration import SutureDecoderConfig
from suture.models.outputs import SutureOutput
from suture.models.products import Linear

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


class SutureDecoder(SuturePreTrained, transformers.GenerationMixin):
    """GPT of the family: vanilla, FFN-Wider, CEA or a mixture, as its configuration says."""

    config_class = SutureDecoderConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SutureDecoderConfig) -> None:
        super().__init__(config)
        self.model = SutureModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        capture: Collection[str] | None = None,
        **others: Any,
    ) -> SutureOutput:
        """Logits of the next token, of the last `logits_to_keep` positions (0: all).

        `labels`: batch x n, the ids themselves, shifted here; -100 does not count. Further
        arguments as in `SutureModel`.
        """
        out: SutureOutput = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
            capture=capture, **others,
        )  # fmt: skip
        h = out.last_hidden_state
        assert h is not None
        kept: Any = logits_to_keep
        if isinstance(logits_to_keep, int):
            kept = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        out.logits = self.lm_head(h[:, kept])
        if labels is not None:
            whole = isinstance(logits_to_keep, int) and not logits_to_keep
            # the labels are shifted, not the logits: those are the largest tensor of the pass
            following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            out.loss = torch.nn.functional.cross_entropy(
                (out.logits if whole else self.lm_head(h)).flatten(0, 1).float(),
                following.flatten(),
            )
        return out

    @staticmethod
    def create_masks_for_generate(
        *, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor | None:
        """The mask as it is: `generate` would make four dimensions of it for a static cache."""
        return attention_mask
