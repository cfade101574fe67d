"""The encoder: masked-token prediction (BERT without next-sentence prediction)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from suture.lazy import torch
from suture.models.backbone import SutureModel, SuturePreTrained
from suture.models.configuration import SutureEncoderConfig
from suture.models.layers import activation, norm
from suture.models.outputs import SutureOutput
from suture.models.products import Linear


class SutureEncoder(SuturePreTrained):
    """BERT of the family. Its head is BERT's: dense, activation, norm, then the embedding with a
    bias per token."""

    config_class = SutureEncoderConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SutureEncoderConfig) -> None:
        super().__init__(config)
        arch = config.architecture
        self.model = SutureModel(config)
        self.transform = Linear(arch.hidden_size, arch.hidden_size)
        self.act = activation(arch)
        self.transform_norm = norm(arch)
        self.lm_head = Linear(arch.hidden_size, arch.vocab_size, bias=True)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss_only: bool = False,
        capture: Collection[str] | None = None,
        **others: Any,
    ) -> SutureOutput:
        """Logits of every position. `labels`: batch x n, the original id at masked positions and
        -100 elsewhere; where none is, the loss is 0. `loss_only`: no logits; the head runs on the
        masked positions alone, which is most of its work saved. Further arguments as in
        `SutureModel`."""
        out: SutureOutput = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            inputs_embeds=inputs_embeds, capture=capture, **others,
        )  # fmt: skip
        h = out.last_hidden_state
        assert h is not None
        if labels is None or not loss_only:
            out.logits = self._head(h)
        if labels is not None:
            there = labels != -100
            predicted = self._head(h[there]) if out.logits is None else out.logits[there]
            if len(predicted):
                out.loss = torch.nn.functional.cross_entropy(predicted.float(), labels[there])
            else:
                out.loss = predicted.sum()  # 0, with a gradient of 0; a mean over none is NaN
        return out

    def _head(self, h: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.lm_head(self.transform_norm(self.act(self.transform(h)))))
