"""Log-likelihoods of continuations, fast: nothing is read twice and nothing is projected in vain.

What the usual harness does for a question with four options is four forward passes over the whole
prompt, with logits over the vocabulary at every position. Here

1. what many prompts begin with is read once (`suture.inference.prefixes`);
2. a question and all its options are one packed row: a mask keeps the options apart, positions
   count as if each stood alone;
3. only hidden states that predict a token of an option reach the output matrix;
4. batches are filled up to a budget of tokens, rows of like length together, and each batch brings
   its numbers back in one transfer;
5. with a cache (`suture.inference.memory`) what the same weights have said before is looked up.

A packed row is exact for attention over plain keys and values. A piece of one item is first scored
both ways; where the two differ (positions by distance, masks of another kind) the whole call is
done the plain way: one row for each option, still points 3 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from suture.errors import SutureError
from suture.inference.loading import LoadedModel
from suture.inference.prefixes import Group, Prefix, can_share, shared_prefixes
from suture.lazy import torch
from suture.progress import track

MAX_TOKENS = 4096  # tokens newly read in one batch
_MAX_HELD = 2**30  # bytes of keys and values of a batch; on CUDA up to a quarter of what is free
_MAX_LOGITS = 2**25  # float32 values of one logits tensor: 128 MiB
_MAX_ROWS = 128
_LIKE = 0.8  # a row shorter than this share of the longest begins a batch of its own,
_ENOUGH = 512  # once a batch has so many tokens that a CPU is busy with it
_PIECE = 24  # tokens of the context, and of an option, that packing is tried on


@dataclass(frozen=True)
class Likelihood:
    """`logprob`: sum over the continuation's `tokens`, nats. `greedy`: each one was the argmax."""

    logprob: float
    tokens: int
    greedy: bool


@dataclass(frozen=True)
class _Item:
    """A context and continuations of it; `keys`: (row, option) of each among the caller's."""

    context: list[int]
    options: list[list[int]]
    keys: list[tuple[int, int]]

    @property
    def width(self) -> int:
        """Tokens of the packed row: the last token of an option is predicted, never read."""
        return len(self.context) + sum(len(o) - 1 for o in self.options)

    @property
    def predicted(self) -> int:
        """Positions that are projected: one for all first tokens, one for each further token."""
        return 1 + sum(len(o) - 1 for o in self.options)

    def apart(self) -> list[_Item]:
        """One item for each option."""
        return [
            _Item(self.context, [option], [key])
            for option, key in zip(self.options, self.keys, strict=True)
        ]


def likelihoods(
    lm: LoadedModel,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    *,
    max_tokens: int = MAX_TOKENS,
) -> list[list[Likelihood]]:
    """log p(continuation | context) in token ids, one list per context, in order.

    `max_tokens`: tokens newly read in one batch; a longer row goes alone. Raises SutureError E506
    for a row that does not fit the context, E508 for an id beyond the embedding, E509 for an empty
    context or continuation, or contexts and continuations that are not as many.
    """
    items = _checked(lm, contexts, continuations)
    found: dict[tuple[int, int], Likelihood] = {}
    if lm.cache is not None:
        items = _recalled(lm, items, found)
    with torch.inference_mode():
        if items and not _packs(lm, items):
            apart = [one for item in items for one in item.apart()]
            for values in _scored(lm, apart, max_tokens, shared=False):
                found.update(values)
        elif items:
            for values in _scored(lm, items, max_tokens, shared=True):
                found.update(values)
    if lm.cache is not None:
        for item in items:
            for key, option in zip(item.keys, item.options, strict=True):
                one = found[key]
                lm.cache.put(_about(item.context, option), [one.logprob, one.greedy])
        lm.cache.flush()
    return [
        [found[row, k] for k in range(len(options))] for row, options in enumerate(continuations)
    ]


def _checked(
    lm: LoadedModel,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
) -> list[_Item]:
    if len(contexts) != len(continuations):
        raise SutureError("E509", f"{len(contexts)} contexts but {len(continuations)} answers")
    items = []
    for row, (context, options) in enumerate(zip(contexts, continuations, strict=True)):
        for option in options:
            if not option or not context:
                what = "option" if context else "context"
                raise SutureError("E509", f"an {what} has no tokens", where=f"row {row}")
        if options:
            keys = [(row, k) for k in range(len(options))]
            items.append(_Item(list(context), [list(o) for o in options], keys))
    lm.check_rows(
        [item.context + option for item in items for option in item.options],
        "the longest prompt and option",
        of=[row for item in items for row, _ in item.keys],
    )
    return items


def _about(context: list[int], option: list[int]) -> list[Any]:
    return ["likelihood", context, option]


def _recalled(
    lm: LoadedModel, items: list[_Item], found: dict[tuple[int, int], Likelihood]
) -> list[_Item]:
    """What the cache knows goes to `found`; returned are the items with the rest."""
    assert lm.cache is not None
    left = []
    for item in items:
        unknown = []
        for option, key in zip(item.options, item.keys, strict=True):
            known = lm.cache.get(_about(item.context, option))
            if known is None:
                unknown.append((option, key))
            else:
                found[key] = Likelihood(float(known[0]), len(option), bool(known[1]))
        if unknown:
            left.append(_Item(item.context, [o for o, _ in unknown], [k for _, k in unknown]))
    return left


def _packs(lm: LoadedModel, items: list[_Item]) -> bool:
    """Whether packed rows say what single rows say, tried on a piece of one item.

    `can_share` has refused windows and recurrence, so the piece may be short: what is tried is
    whether masks and positions of our making are obeyed.
    """
    if not can_share(lm):
        return False
    most = max(items, key=lambda item: (_second(item), item.width))
    longest = sorted(range(len(most.options)), key=lambda k: -len(most.options[k]))[:3]
    piece = _Item(
        most.context[-_PIECE:],
        [most.options[k][:_PIECE] for k in longest],
        [most.keys[k] for k in longest],
    )
    half = len(piece.context) // 2
    try:
        packed = _forward(lm, [piece], Prefix(lm, piece.context[:half]) if half else None)
    except (RuntimeError, ValueError, TypeError, IndexError, SutureError):
        # a model that takes no such mask
        return False
    exact, relative = (1e-4, 1e-5) if lm.dtype == torch.float32 else (5e-2, 2e-2)
    for one in piece.apart():
        ((key, alone),) = _forward(lm, [one], None).items()
        slack = exact * alone.tokens + relative * abs(alone.logprob)
        if not abs(alone.logprob - packed[key].logprob) <= slack:
            return False
    return True


def _second(item: _Item) -> int:
    """Tokens read of all options but the longest: what could see another option."""
    read = [len(option) - 1 for option in item.options]
    return sum(read) - max(read)


def _scored(
    lm: LoadedModel, items: list[_Item], max_tokens: int, *, shared: bool
) -> Iterator[dict[tuple[int, int], Likelihood]]:
    """Batch after batch of results; with `shared` common beginnings are read once."""
    whole = [Group(list(range(len(items))), 0)]
    groups = shared_prefixes([item.context for item in items]) if shared else whole
    plans = [(group, rows) for group in groups for rows in _plan(lm, items, group, max_tokens)]
    prefix, owner = None, None
    for group, rows in track(plans, "score", total=len(plans)):
        if owner is not group:
            beginning = items[group.rows[0]].context[: group.length]
            prefix, owner = (Prefix(lm, beginning) if beginning else None), group
        yield _forward(lm, [items[i] for i in rows], prefix)


def _plan(
    lm: LoadedModel, items: list[_Item], group: Group, max_tokens: int
) -> Iterator[list[int]]:
    """Row indices per batch, longest first, within the budgets of tokens, memory and logits."""
    vocabulary = int(lm.model.config.vocab_size)
    at_once = max(1, _MAX_LOGITS // vocabulary)
    held = _held_tokens(lm)
    enough = _ENOUGH if lm.device.type == "cpu" else max_tokens
    rows: list[int] = []
    predicted = width = 0
    for i in sorted(group.rows, key=lambda i: (-items[i].width, i)):
        predicted += items[i].predicted
        full = (
            len(rows) == _MAX_ROWS
            or (len(rows) + 1) * (width - group.length) > max_tokens
            or (len(rows) + 1) * width > held
            or predicted > at_once
            or (
                items[i].width - group.length < _LIKE * (width - group.length)
                and len(rows) * (width - group.length) >= enough
            )
        )
        if rows and full:
            yield rows
            rows, predicted = [], items[i].predicted
        if not rows:
            width = items[i].width
        rows.append(i)
    if rows:
        yield rows


def _held_tokens(lm: LoadedModel) -> int:
    """Tokens, over all rows of a batch, whose keys and values fit into the budget."""
    config: Any = lm.model.config
    heads = getattr(config, "num_attention_heads", None) or 1
    size = (
        getattr(config, "head_dim", None) or (getattr(config, "hidden_size", None) or 64) // heads
    )
    kept = getattr(config, "num_key_value_heads", None) or heads
    per_token = (
        2 * (getattr(config, "num_hidden_layers", None) or 1) * kept * size * lm.dtype.itemsize
    )
    budget = _MAX_HELD
    if lm.device.type == "cuda":
        budget = max(budget, torch.cuda.mem_get_info(lm.device)[0] // 4)
    return max(1, int(budget // per_token))


def _forward(
    lm: LoadedModel, items: list[_Item], prefix: Prefix | None
) -> dict[tuple[int, int], Likelihood]:
    """One forward pass over packed rows, and one transfer back."""
    read = 0 if prefix is None else len(prefix)
    width = max(item.width for item in items) - read
    packed = [_pack(item, read, width, lm.pad) for item in items]
    ids = torch.tensor([row.ids for row in packed], device=lm.device)
    positions = torch.tensor([row.positions for row in packed], device=lm.device)
    mask = None
    if any(len(item.options) > 1 and item.predicted > 1 for item in items):
        mask = _mask(lm, packed, read)
    predict = torch.tensor([at + i * width for i, row in enumerate(packed) for at in row.predict])
    with _projecting(lm, predict.to(lm.device)):
        logits = (
            lm.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=None if prefix is None else prefix.cache(len(items)),
                use_cache=prefix is not None,
            )
            .logits[0]
            .float()
        )
    return _read_off(logits, items)


def _read_off(logits: torch.Tensor, items: list[_Item]) -> dict[tuple[int, int], Likelihood]:
    """From the projected positions of all items, in order, to one result per option."""
    options = [(key, o) for item in items for key, o in zip(item.keys, item.options, strict=True)]
    longest = max(len(option) for _, option in options)
    rows, targets = [], []
    first = 0
    for item in items:
        nth = first + 1
        for option in item.options:
            at = [first, *range(nth, nth + len(option) - 1)]
            nth += len(option) - 1
            rows.append(at + [-1] * (longest - len(option)))
            targets.append(option + [0] * (longest - len(option)))
        first = nth
    where = torch.tensor(rows, device=logits.device)
    wanted = torch.tensor(targets, device=logits.device)
    counts = where >= 0
    where = where.clamp(min=0)
    logp = logits[where, wanted] - logits.logsumexp(-1)[where]
    greedy = (logits.argmax(-1)[where] == wanted) | ~counts
    total = torch.where(counts, logp, logp.new_zeros(())).sum(1)
    values = torch.stack([total, greedy.all(1).float()]).tolist()  # the one transfer
    return {
        key: Likelihood(value, len(option), said > 0.5)
        for (key, option), value, said in zip(options, *values, strict=True)
    }


@dataclass(frozen=True)
class _Packed:
    """`owner` of a token: 0 the context, k its k-th option, -1 padding."""

    ids: list[int]
    positions: list[int]
    owner: list[int]
    predict: list[int]


def _pack(item: _Item, read: int, width: int, pad: int) -> _Packed:
    context = item.context[read:]
    after = len(item.context)
    ids, positions, owner = list(context), list(range(read, after)), [0] * len(context)
    predict = [len(context) - 1]
    for k, option in enumerate(item.options, 1):
        predict += range(len(ids), len(ids) + len(option) - 1)
        ids += option[:-1]
        positions += range(after, after + len(option) - 1)
        owner += [k] * (len(option) - 1)
    rest = width - len(ids)
    return _Packed(ids + [pad] * rest, positions + [0] * rest, owner + [-1] * rest, predict)


def _mask(lm: LoadedModel, packed: list[_Packed], read: int) -> torch.Tensor:
    """rows x 1 x width x (read + width), added to attention scores: 0 sees, the least is blind."""
    owner = torch.tensor([row.owner for row in packed], device=lm.device)
    asks, seen = owner.unsqueeze(2), owner.unsqueeze(1)
    sees = ((seen == 0) | (seen == asks)).tril()
    if read:
        sees = torch.cat([sees.new_ones(*sees.shape[:2], read), sees], dim=2)
    blind = torch.finfo(lm.dtype).min
    return (
        torch.zeros(sees.shape, dtype=lm.dtype, device=lm.device)
        .masked_fill_(~sees, blind)
        .unsqueeze(1)
    )


@contextmanager
def _projecting(lm: LoadedModel, at: torch.Tensor) -> Iterator[None]:
    """While this lasts the output matrix is given only the positions `at` (flat), as one row.

    What a family does to its logits afterwards (scaling, soft caps) is done to them as ever.
    """

    def choose(_: object, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]
        return (hidden.reshape(-1, hidden.shape[-1])[at].unsqueeze(0), *inputs[1:])

    head: Any = lm.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()
