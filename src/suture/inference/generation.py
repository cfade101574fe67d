"""Greedy replies, many at a time, the same text as one at a time.

The decode loop is ours because `generate()` keeps finished rows until the last one ends. Here rows
of similar length share a batch, the finished ones leave it, and the key-value cache shrinks along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from suture.errors import SutureError
from suture.inference.batching import MAX_ROWS, Batch, batches
from suture.inference.loading import LoadedModel
from suture.lazy import torch
from suture.progress import track

_COMPACT_AT = 0.8  # share of live rows below which copying the cache is cheaper than carrying it


@dataclass(frozen=True)
class Reply:
    """`tokens`: how many were generated, the end token not counted; `ended`: by an end token."""

    text: str
    tokens: int
    ended: bool


def generate(
    lm: LoadedModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    system: str | None = None,
    max_rows: int = MAX_ROWS,
    max_tokens: int = 16384,
) -> list[Reply]:
    """The most likely reply to each prompt (one user turn in the chat template), in order.

    Deterministic: the argmax of every step, ties to the lower id. In float32 the batch a prompt
    falls into does not change its text. `max_rows`, `max_tokens`: rows, and rows x (prompt + new
    tokens), of one batch; they bound the memory of the cache. Raises SutureError E506 for a prompt
    that does not fit the model's context.
    """
    from suture.data import encode

    if max_new_tokens < 1:
        raise SutureError("E702", f"max_new_tokens is {max_new_tokens}", fix="give at least 1")
    ids = [encode(lm.tokenizer, lm.template, p, system=system).ids for p in prompts]
    lm.check_rows(ids, "the longest prompt and reply", extra=max_new_tokens)
    found: dict[int, list[int]] = {}
    with torch.inference_mode():
        for batch in track(
            batches(
                ids,
                pad=lm.pad,
                device=lm.device,
                extra=max_new_tokens,
                max_rows=max_rows,
                max_tokens=max_tokens,
            ),
            "generate",
        ):
            found.update(zip(batch.rows, _decode(lm, batch, max_new_tokens), strict=True))
    return [_reply(lm, found[i]) for i in range(len(ids))]


def _decode(lm: LoadedModel, batch: Batch, max_new_tokens: int) -> list[list[int]]:
    """Token ids per row of `batch`, the end token included where there was one."""
    size = len(batch.rows)
    stops = torch.tensor(sorted(lm.stops), dtype=torch.long, device=lm.device)
    tokens = torch.full((size, max_new_tokens), -1, dtype=torch.long, device=lm.device)
    rows = torch.arange(size, device=lm.device)  # which row of `tokens` a live row fills
    mask, position = batch.mask, batch.positions[:, -1:] + 1
    logits, cache = forward_cached(lm, batch.ids, mask, batch.positions, None)
    alive = torch.ones(size, dtype=torch.bool, device=lm.device)
    for step in range(max_new_tokens):
        chosen = logits[:, -1].argmax(dim=-1)
        tokens[rows[alive], step] = chosen[alive]
        alive &= ~torch.isin(chosen, stops)
        count = int(alive.sum())
        if count == 0 or step + 1 == max_new_tokens:
            break
        if count < _COMPACT_AT * len(rows):
            keep = alive.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, chosen, position, alive = rows[keep], chosen[keep], position[keep], alive[keep]
            mask = None if mask is None else mask[keep]
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits, cache = forward_cached(lm, chosen.unsqueeze(1), mask, position, cache)
        position = position + 1
    return [[t for t in row if t >= 0] for row in tokens.tolist()]


def forward_cached(
    lm: LoadedModel,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    cache: Any,
    *,
    logits_for: int = 1,
) -> tuple[torch.Tensor, Any]:
    """Logits of the last `logits_for` columns (0: all) and the cache grown by `ids`."""
    out = lm.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=logits_for,
    )
    return out.logits, out.past_key_values


def _reply(lm: LoadedModel, ids: list[int]) -> Reply:
    ended = bool(ids) and ids[-1] in lm.stops
    kept = ids[:-1] if ended else ids
    # spaces stay as they were generated, so that tokenizing the text again gives the same tokens
    text = lm.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Reply(str(text), len(kept), ended)
