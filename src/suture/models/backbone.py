"""Embedding, blocks and final norm: what decoder and encoder share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError, nearest
from suture.lazy import torch, transformers
from suture.models.block import Block
from suture.models.configuration import SutureConfig
from suture.models.experts import Experts
from suture.models.layers import norm, rotary_tables
from suture.models.outputs import Notes, SutureOutput, wanted
from suture.models.router import Router

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


class SuturePreTrained(transformers.PreTrainedModel):  # type: ignore[no-untyped-call]
    """What transformers must know: how weights begin, and which attention there is."""

    config: SutureConfig
    config_class = SutureConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    accepts_loss_kwargs = False  # the loss is a mean: Trainer divides it over what it accumulates
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Normal weights of `initializer_range`, zero biases, norms of one.

        Weights that depend on nothing but a seed and their own name: `initialise`.
        """
        from transformers import initialization as init

        std = self.config.initializer_range
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | Router | Experts):
            for name, parameter in module.named_parameters(recurse=False):
                if "bias" in name:
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, std=std)
        elif isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
            for name, parameter in module.named_parameters(recurse=False):
                (init.zeros_ if name == "bias" else init.ones_)(parameter)


class SutureModel(SuturePreTrained):
    """Token ids to hidden states. Post-norm models have a norm behind the embedding, as BERT has,
    pre-norm models one behind the last block."""

    def __init__(self, config: SutureConfig) -> None:
        super().__init__(config)
        arch = self.arch = config.architecture
        causal, fused = config.kind == "decoder", config._attn_implementation != "eager"
        self.causal = causal
        self.embed_tokens = torch.nn.Embedding(arch.vocab_size, arch.hidden_size)
        self.embed_positions = (
            torch.nn.Embedding(arch.max_position_embeddings, arch.hidden_size)
            if arch.positions == "learned"
            else None
        )
        self.embed_norm = norm(arch) if arch.norm == "post" else None
        self.dropout = torch.nn.Dropout(arch.dropout)
        self.layers = torch.nn.ModuleList(
            Block(arch, layer, causal=causal, fused=fused)
            for layer in range(arch.num_hidden_layers)
        )
        self.norm = norm(arch) if arch.norm == "pre" else None
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> torch.nn.Module:
        """The table of tokens."""
        return self.embed_tokens

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Put another table of tokens in its place."""
        self.embed_tokens = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        capture: Collection[str] | None = None,
        **others: Any,
    ) -> SutureOutput:
        """Hidden states of `input_ids` (batch x n), or of their embeddings.

        `attention_mask`: batch x all positions so far, 0 at padding. `position_ids`: batch x n, by
        default counted from what is cached. `capture`: kinds of states to keep (`SITES`). Raises
        SutureError E974 for another kind, E975 for more positions than there are, E980 for a mask
        of another shape, E981 for an argument that would have no effect.
        """
        refuse_others(others)
        _check_mask(attention_mask)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        cached = use_cache and self.causal
        if cached and past_key_values is None:
            past_key_values = transformers.DynamicCache()
        before = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        positions = self._positions(inputs_embeds, position_ids, before)
        keep = (
            attention_mask[:, -inputs_embeds.shape[1] :].bool()
            if attention_mask is not None
            else None
        )
        notes = Notes(wanted(capture), keep)
        h = inputs_embeds
        if self.embed_positions is not None:
            h = h + self.embed_positions(positions)
        if self.embed_norm is not None:
            h = self.embed_norm(h)
        h = notes.state("m", self.dropout(h))
        visible = self._visible(attention_mask, h, before)
        rotary = (
            rotary_tables(positions, self.arch, h.dtype) if self.embed_positions is None else None
        )
        for block in self.layers:
            h = block(
                h, attention_mask=visible, rotary=rotary, past_key_values=past_key_values,
                notes=notes,
            )  # fmt: skip
        if self.norm is not None:
            h = self.norm(h)
        return SutureOutput(
            last_hidden_state=h,
            past_key_values=past_key_values if cached else None,
            auxiliary=notes.auxiliary() or None,
            routing=tuple(notes.routing) or None,
            sites={kind: tuple(states) for kind, states in notes.sites.items()} or None,
        )

    def _positions(
        self, embeds: torch.Tensor, given: torch.Tensor | None, before: int
    ) -> torch.Tensor:
        last = before + embeds.shape[1]
        if self.embed_positions is not None:
            room = self.arch.max_position_embeddings
            wanted = last if given is None else int(given.max()) + 1
            if wanted > room:
                raise SutureError(
                    "E975",
                    f"{wanted} positions, and the model has {room}",
                    where="input_ids" if given is None else "position_ids",
                    fix=f"give at most {room} tokens, those to be generated included, or build the "
                    "model with more positions",
                )
        return torch.arange(before, last, device=embeds.device)[None] if given is None else given

    def _visible(
        self, mask: torch.Tensor | None, h: torch.Tensor, before: int
    ) -> torch.Tensor | None:
        """Who sees whom, batch x 1 x n x all positions; None where there is no padding."""
        if mask is None or bool(mask.all()):
            return None
        n = h.shape[1]
        seen = mask[:, None, None, :].bool()
        if not self.causal:
            return seen.expand(-1, 1, n, -1)
        return seen & torch.ones(n, before + n, dtype=torch.bool, device=h.device).tril(before)


_HARMLESS = ("cache_position", "token_type_ids", "use_cache")  # what others pass along
_KNOWN = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels", "capture")
_INSTEAD = {
    "output_hidden_states": "give capture={'m'} and read output.sites",
    "output_attentions": "give capture={'q', 'k'} and read output.sites",
    "return_dict": "leave it out: what comes back has names always",
}


def refuse_others(given: Mapping[str, Any]) -> None:
    """Error E981: an argument that has no effect here. One that asks for nothing may be given."""
    for name, value in given.items():
        usual = name == "return_dict"  # the value at which it asks for nothing
        if name in _HARMLESS or value is None or value is usual:
            continue
        close = nearest(name, _KNOWN)
        raise SutureError(
            "E981",
            f"our models take no '{name}'",
            where="forward",
            why="it would be ignored, and the output be another than was asked for",
            fix=_INSTEAD.get(name, f"did you mean '{close}'?" if close else "leave it out"),
        )


def _check_mask(mask: torch.Tensor | None) -> None:
    """Error E980: not batch x positions."""
    if mask is not None and mask.dim() != 2:
        raise SutureError(
            "E980",
            f"the attention mask has {mask.dim()} dimensions",
            where=f"attention_mask, {' x '.join(map(str, mask.shape))}",
            why="who sees whom follows from the kind of model and from padding alone",
            fix="give batch x positions, 0 at padding",
        )


def penalty(output: SutureOutput, config: SutureConfig) -> torch.Tensor | float:
    """The auxiliary losses by their weights, to add to the loss that is descended; 0 without
    experts. What is reported as the loss of language modelling stays `output.loss`."""
    found = output.auxiliary or {}
    arch = config.architecture
    weights = {"balance": arch.balance_weight, "z": arch.z_weight}
    return sum((weights[name] * value for name, value in found.items() if weights[name]), 0.0)
