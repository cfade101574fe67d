"""Log-likelihoods: of the options of a question, of a reply, and the distance of two models.

All sums are over float32 log-softmax values. The end token that closes a reply in training is not
scored, so that a reply cut at the token limit is not blamed for it; an empty reply is scored by its
end token alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from suture.errors import SutureError
from suture.inference import likelihood
from suture.inference.batching import MAX_TOKENS, Batch, batches
from suture.inference.loading import LoadedModel
from suture.lazy import torch
from suture.progress import track

_MAX_LOGITS = 2**25  # float32 values of one logits tensor: 128 MiB


def option_logprobs(
    lm: LoadedModel,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    system: str | None = None,
    max_tokens: int = likelihood.MAX_TOKENS,
) -> list[list[float]]:
    """log p(option | chat prompt), summed over the option's tokens, one list per prompt.

    See `suture.inference.likelihood` for how nothing is read twice. Raises SutureError E506 for a
    row that does not fit the context, E509 when prompts and options are not as many or an option
    has no tokens.
    """
    _same_number(prompts, options, "options")
    starts = [_tokens(lm, p, None, system)[0] for p in prompts]
    ends = [
        [_reply_ids(lm, p, o, system) for o in row] for p, row in zip(prompts, options, strict=True)
    ]
    found = likelihood.likelihoods(lm, starts, ends, max_tokens=max_tokens)
    return [[one.logprob for one in row] for row in found]


def text_likelihoods(
    lm: LoadedModel,
    contexts: Sequence[str],
    continuations: Sequence[Sequence[str]],
    *,
    max_tokens: int = likelihood.MAX_TOKENS,
) -> list[list[likelihood.Likelihood]]:
    """log p(continuation | context) of plain text, without a chat template.

    As in lm-eval: context and continuation are tokenized together and split where the context's own
    tokens end; blanks at the end of a context belong to the continuation.
    """
    _same_number(contexts, continuations, "answers")
    beginning = bos(lm)
    starts, ends = [], []
    for context, row in zip(contexts, continuations, strict=True):
        kept = context.rstrip()
        split = len(_plain(lm, kept))
        together = [_plain(lm, kept + context[len(kept) :] + one) for one in row]
        starts.append(beginning + _plain(lm, kept))
        ends.append([ids[split:] for ids in together])
        for k, ids in enumerate(together):
            if beginning + ids[:split] != starts[-1]:  # the merge reaches back over the border
                ends[-1][k] = _plain(lm, context[len(kept) :] + row[k])
    return likelihood.likelihoods(lm, starts, ends, max_tokens=max_tokens)


@dataclass(frozen=True)
class TokenReading:
    """What a model says to each token of a continuation, given all tokens before it.

    `logprobs`: of the token. `greedy`: whether it was the argmax. `means`, `variances`: of log p
    over the vocabulary, under p itself. Natural logarithms, float32.
    """

    logprobs: list[float]
    greedy: list[bool]
    means: list[float]
    variances: list[float]


def token_readings(
    lm: LoadedModel,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    max_tokens: int = MAX_TOKENS,
) -> list[TokenReading]:
    """Token by token what `lm` says to each continuation, in token ids, in order.

    Tokens of contexts and padding are never among them. Raises SutureError E506 for a row that does
    not fit the context, E509 for an empty context or continuation.
    """
    if len(contexts) != len(continuations):
        raise SutureError("E509", f"{len(contexts)} contexts, {len(continuations)} continuations")
    for row, pair in enumerate(zip(contexts, continuations, strict=True)):
        if not all(pair):
            raise SutureError("E509", "a context or continuation has no tokens", where=f"row {row}")
    ids = [[*start, *end] for start, end in zip(contexts, continuations, strict=True)]
    lm.check_rows(ids, "the longest prompt and answer")
    rows = _Rows(ids, [len(end) for end in continuations])
    found: dict[int, TokenReading] = {}
    with torch.inference_mode():
        for batch, width in _reply_batches(lm, rows, max_tokens):
            logp = _tail_logits(lm, batch, width).float().log_softmax(-1)
            targets = batch.ids[:, -width:].unsqueeze(-1)
            p = logp.exp()
            mean = (p * logp).sum(-1)
            values = [
                logp.gather(-1, targets).squeeze(-1),
                (logp.argmax(-1, keepdim=True) == targets).squeeze(-1).float(),
                mean,
                (p * (logp - mean.unsqueeze(-1)).square()).sum(-1),
            ]
            chosen, greedy, means, variances = torch.stack(values).tolist()
            for k, i in enumerate(batch.rows):
                own = slice(width - rows.scored[i], None)  # what stands before it is not answer
                said = [value > 0.5 for value in greedy[k][own]]
                found[i] = TokenReading(chosen[k][own], said, means[k][own], variances[k][own])
    return [found[i] for i in range(len(ids))]


def bos(lm: LoadedModel) -> list[int]:
    """The token that begins a plain text, if this model's tokenizer puts one there."""
    from suture.data import beginning

    return beginning(lm.tokenizer)


def _plain(lm: LoadedModel, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def reply_logprob(
    lm: LoadedModel,
    prompts: Sequence[str],
    replies: Sequence[str],
    *,
    system: str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[float]:
    """Mean log-probability per reply token under `lm`, one number per row (nats, at most 0)."""
    rows = _rows(lm, prompts, replies, system)
    found = [0.0] * len(rows.ids)
    with torch.inference_mode():
        for batch, width in _reply_batches(lm, rows, max_tokens):
            logits = _tail_logits(lm, batch, width).float()
            targets = batch.ids[:, -width:]
            chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
            for i, value in _means(chosen, batch, rows):
                found[i] = value
    return found


def response_kl(
    before: LoadedModel,
    after: LoadedModel,
    prompts: Sequence[str],
    replies: Sequence[str],
    *,
    system: str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[float]:
    """KL(before || after) of the next-token distribution, mean over the reply's positions (nats).

    Both models read the same ids, so they must share tokenizer and template (SutureError E510).
    """
    rows = _rows(before, prompts, replies, system)
    if _rows(after, prompts, replies, system).ids != rows.ids:
        raise SutureError(
            "E510",
            "the two models read the same text as different tokens",
            where=f"{before.source.path} and {after.source.path}",
            why="distributions over different tokens cannot be compared",
            fix="compare models with one tokenizer, and give both one --chat-template",
        )
    found = [0.0] * len(rows.ids)
    with torch.inference_mode():
        for batch, width in _reply_batches(before, rows, max_tokens):
            p = _tail_logits(before, batch, width).float().log_softmax(-1)
            q = _tail_logits(after, batch, width).float().log_softmax(-1)
            if p.shape != q.shape:  # embeddings padded to other widths
                n = min(p.shape[-1], q.shape[-1])
                p, q = p[..., :n], q[..., :n]
            for i, value in _means((p.exp() * (p - q)).sum(-1), batch, rows):
                found[i] = max(value, 0.0)  # rounding may put an exact 0 just below it
    return found


@dataclass(frozen=True)
class _Rows:
    """Prompt and reply together per row, and how many of the last tokens are the reply."""

    ids: list[list[int]]
    scored: list[int]


def _rows(
    lm: LoadedModel, prompts: Sequence[str], replies: Sequence[str], system: str | None
) -> _Rows:
    _same_number(prompts, replies, "replies")
    ids, scored = [], []
    for prompt, reply in zip(prompts, replies, strict=True):
        start, response = _tokens(lm, prompt, reply, system)
        response = response[:-1] if len(response) > 1 else response
        ids.append(start + response)
        scored.append(len(response))
    lm.check_rows(ids, "the longest prompt and reply")
    return _Rows(ids, scored)


def _reply_batches(lm: LoadedModel, rows: _Rows, max_tokens: int) -> Iterator[tuple[Batch, int]]:
    """Batches and the number of trailing columns that hold their longest reply."""
    vocabulary = int(lm.model.config.vocab_size)
    longest = max(rows.scored, default=1)
    at_once = max(1, _MAX_LOGITS // (vocabulary * (longest + 1)))
    for batch in track(
        batches(
            rows.ids,
            pad=lm.pad,
            device=lm.device,
            max_rows=min(at_once, 128),
            max_tokens=max_tokens,
        ),
        "score",
    ):
        yield batch, max(rows.scored[i] for i in batch.rows)


def _tail_logits(lm: LoadedModel, batch: Batch, width: int) -> torch.Tensor:
    """Logits that predict the last `width` columns: rows x width x vocabulary."""
    out = lm.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=width + 1,
    )
    logits: torch.Tensor = out.logits[:, :-1]
    return logits


def _means(values: torch.Tensor, batch: Batch, rows: _Rows) -> Iterator[tuple[int, float]]:
    """(row index, mean over its reply) of `values`: rows x trailing columns."""
    width = values.shape[1]
    scored = torch.tensor([rows.scored[i] for i in batch.rows], device=values.device)
    counts = torch.arange(width, device=values.device) >= width - scored.unsqueeze(1)
    means = torch.where(counts, values, values.new_zeros(())).sum(1) / scored
    yield from zip(batch.rows, means.tolist(), strict=True)


def _tokens(
    lm: LoadedModel, prompt: str, response: str | None, system: str | None
) -> tuple[list[int], list[int]]:
    from suture.data import encode

    encoded = encode(lm.tokenizer, lm.template, prompt, response, system=system)
    return encoded.ids[: encoded.prompt_length], encoded.response_ids


def _reply_ids(lm: LoadedModel, prompt: str, option: str, system: str | None) -> list[int]:
    ids = _tokens(lm, prompt, option, system)[1][:-1]
    if not ids:
        raise SutureError("E509", "an option has no tokens", where=f"prompt {prompt[:60]!r}")
    return ids


def _same_number(prompts: Sequence[str], others: Sequence[object], what: str) -> None:
    if len(prompts) != len(others):
        raise SutureError("E509", f"{len(prompts)} prompts but {len(others)} {what}")
