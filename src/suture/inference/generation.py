"""Greedy replies, many at a time, the same text as one at a time.

The decode loop is ours because `generate()` keeps finished rows until the last one ends. Here rows
of similar length share a batch, the finished ones leave it, and the key-value cache shrinks along.
What many prompts begin with is read once. A reply may listen to several voices at each step, the
same model under other system prompts or another model: that is all that the decoding-time methods
of `suture.inference.decoding` need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.inference.batching import MAX_ROWS, Batch, pad_left, plan_rows
from suture.inference.loading import LoadedModel
from suture.inference.prefixes import Group, Prefix, can_share, shared_prefixes
from suture.lazy import torch
from suture.progress import track

if TYPE_CHECKING:
    from suture.inference.decoding import Decoding

Turns = Sequence[Mapping[str, str]]  # a conversation: {"role", "content"} each

_COMPACT_AT = 0.8  # share of live rows below which copying the cache is cheaper than carrying it


@dataclass(frozen=True)
class Reply:
    """`tokens`: how many were generated, the end token not counted; `ended`: by an end token."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Voice:
    """Who is asked for the next token: a model, and what each row is to it in token ids."""

    lm: LoadedModel
    ids: list[list[int]]


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
    return converse(
        lm,
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        max_new_tokens=max_new_tokens,
        system=system,
        max_rows=max_rows,
        max_tokens=max_tokens,
    )


def converse(
    lm: LoadedModel,
    conversations: Sequence[Turns],
    *,
    max_new_tokens: int = 32,
    system: str | None = None,
    max_rows: int = MAX_ROWS,
    max_tokens: int = 16384,
) -> list[Reply]:
    """The next turn of each conversation; all else as in `generate`."""
    if lm.decoding is None:
        voices = [Voice(lm, conversation_ids(lm, conversations, system))]
    else:
        voices = [
            Voice(one, conversation_ids(one, conversations, said))
            for one, said in lm.decoding.voices(lm, system)
        ]
    return _replies(voices, lm.decoding, max_new_tokens, max_rows, max_tokens)


def generate_ids(
    lm: LoadedModel,
    ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    max_rows: int = MAX_ROWS,
    max_tokens: int = 16384,
) -> list[Reply]:
    """What follows plain text in token ids, without a chat template.

    A decoding that speaks through system prompts has no place for them here: SutureError E531.
    """
    voices = [(lm, None)] if lm.decoding is None else lm.decoding.voices(lm, None)
    if any(system is not None for _, system in voices):
        raise SutureError(
            "E531",
            "this decoding needs system prompts, and plain text has none",
            fix="ask in the chat template (style=chat), or leave --decoding out",
        )
    rows = [list(row) for row in ids]
    spoken = [Voice(one, rows) for one, _ in voices]
    return _replies(spoken, lm.decoding, max_new_tokens, max_rows, max_tokens)


def conversation_ids(
    lm: LoadedModel, conversations: Sequence[Turns], system: str | None = None
) -> list[list[int]]:
    """Token ids of each conversation, ready for the assistant's next turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    texts = [lm.template.render([*first, *turns], True) for turns in conversations]
    return [list(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def _replies(
    voices: list[Voice],
    decoding: Decoding | None,
    max_new_tokens: int,
    max_rows: int,
    max_tokens: int,
) -> list[Reply]:
    if max_new_tokens < 1:
        raise SutureError("E702", f"max_new_tokens is {max_new_tokens}", fix="give at least 1")
    for voice in voices:
        voice.lm.check_rows(voice.ids, "the longest prompt and reply", extra=max_new_tokens)
    lm, count = voices[0].lm, len(voices[0].ids)
    about = None if decoding is None else decoding.identity
    asked = [
        ["reply", [v.ids[i] for v in voices], max_new_tokens, sorted(lm.stops), about]
        for i in range(count if lm.cache is not None else 0)
    ]
    found: dict[int, Reply] = {}
    for i, question in enumerate(asked):
        known = lm.cache.get(question) if lm.cache is not None else None
        if known is not None:
            found[i] = Reply(*known)
    open_rows = [i for i in range(count) if i not in found]
    with torch.inference_mode():
        plans = list(_plans(voices, open_rows, max_new_tokens, max_rows, max_tokens))
        for rows, prefix in track(
            _with_prefix(lm, voices[0].ids, plans), "generate", total=len(plans)
        ):
            said = _decode(voices, rows, prefix, decoding, max_new_tokens)
            for i, ids in zip(rows, said, strict=True):
                found[i] = _reply(lm, ids)
                if lm.cache is not None:
                    one = found[i]
                    lm.cache.put(asked[i], [one.text, one.tokens, one.ended])
    if lm.cache is not None:
        lm.cache.flush()
    return [found[i] for i in range(count)]


def _plans(
    voices: list[Voice], rows: list[int], new: int, max_rows: int, max_tokens: int
) -> Iterator[tuple[list[int], Group]]:
    """Rows per batch, and the group they share a beginning with."""
    lm, ids = voices[0].lm, voices[0].ids
    groups = [Group(list(range(len(rows))), 0)]
    if len(voices) == 1 and can_share(lm):
        groups = shared_prefixes([ids[i] for i in rows])
    for group in groups:
        mine = [rows[i] for i in group.rows]
        lengths = [max(len(voice.ids[i]) for voice in voices) for i in mine]
        for batch in plan_rows(lengths, extra=new, max_rows=max_rows, max_tokens=max_tokens):
            yield [mine[i] for i in batch], group


def _with_prefix(
    lm: LoadedModel, ids: list[list[int]], plans: list[tuple[list[int], Group]]
) -> Iterator[tuple[list[int], Prefix | None]]:
    """Each batch with its beginning, which is read when the first batch of a group comes."""
    prefix, owner = None, None
    for rows, group in plans:
        if owner is not group:
            beginning = ids[rows[0]][: group.length]
            prefix, owner = (Prefix(lm, beginning) if beginning else None), group
        yield rows, prefix


class _Stream:
    """One voice on one batch: its cache and the logits of the next token, rows x vocabulary."""

    def __init__(self, lm: LoadedModel, batch: Batch, prefix: Prefix | None) -> None:
        self.lm, self.mask = lm, batch.mask
        read = 0 if prefix is None else len(prefix)
        if read and self.mask is not None:
            self.mask = torch.cat([self.mask.new_ones(len(batch.rows), read), self.mask], dim=1)
        positions = batch.positions + read
        self.position = positions[:, -1:] + 1
        cache = None if prefix is None else prefix.cache(len(batch.rows))
        logits, self.cache = forward_cached(lm, batch.ids, self.mask, positions, cache)
        self.logits = logits[:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(rows.to(self.lm.device))
        self.position = self.position[rows.to(self.lm.device)]
        self.mask = None if self.mask is None else self.mask[rows.to(self.lm.device)]

    def feed(self, chosen: torch.Tensor) -> None:
        """Hear one token per row."""
        ids = chosen.to(self.lm.device).unsqueeze(1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        logits, self.cache = forward_cached(self.lm, ids, self.mask, self.position, self.cache)
        self.logits = logits[:, -1]
        self.position = self.position + 1


def _decode(
    voices: list[Voice],
    batch_rows: list[int],
    prefix: Prefix | None,
    decoding: Decoding | None,
    max_new_tokens: int,
) -> list[list[int]]:
    """Token ids per row of the batch, the end token included where there was one."""
    lm, size = voices[0].lm, len(batch_rows)
    read = 0 if prefix is None else len(prefix)
    streams = []
    for voice in voices if decoding is None else voices[: decoding.heard(0)]:
        cut = [row[read:] for row in voice.ids] if read else voice.ids
        batch = pad_left(cut, batch_rows, pad=voice.lm.pad, device=voice.lm.device)
        streams.append(_Stream(voice.lm, batch, prefix))
    stops = torch.tensor(sorted(lm.stops), dtype=torch.long, device=lm.device)
    tokens = torch.full((size, max_new_tokens), -1, dtype=torch.long, device=lm.device)
    rows = torch.arange(size, device=lm.device)  # which row of `tokens` a live row fills
    alive = torch.ones(size, dtype=torch.bool, device=lm.device)
    for step in range(max_new_tokens):
        logits = streams[0].logits
        if decoding is not None:
            logits = decoding.combine(step, [s.logits.to(lm.device) for s in streams])
        chosen = logits.argmax(dim=-1)
        tokens[rows[alive], step] = chosen[alive]
        alive &= ~torch.isin(chosen, stops)
        count = int(alive.sum())
        if count == 0 or step + 1 == max_new_tokens:
            break
        if decoding is not None:  # who is not listened to any more need not read on
            streams = streams[: decoding.heard(step + 1)]
        if count < _COMPACT_AT * len(rows):
            keep = alive.nonzero().squeeze(1)
            rows, chosen, alive = rows[keep], chosen[keep], alive[keep]
            for stream in streams:
                stream.keep(keep)
        for stream in streams:
            stream.feed(chosen)
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
