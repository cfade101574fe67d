"""A model at the questions: losses of all answers, the greedy reply, and tokens by heart.

Questions go through the model's chat template and losses run over the answer's tokens and the end
token; nothing of question, template or padding is counted. A chunk of text is continued as plain
text. Nothing is kept between two calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from suture.errors import SutureError, TooLongError
from suture.ledger import ReplyRow, Row
from suture.suites.forgetting.columns import fact_scores
from suture.suites.forgetting.facts import Fact
from suture.suites.forgetting.membership import min_k, min_k_plus_plus, zlib_score
from suture.suites.forgetting.memory import exact_memorisation, extraction_strength
from suture.suites.forgetting.overlap import Kind as Rouge
from suture.suites.forgetting.overlap import bleu, rouge_l

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.inference.scoring import TokenReading

Ids = list[int]
UNSPOKEN = ("holdout", "other")  # sets that are only read


def ask_facts(
    lm: LoadedModel,
    facts: Sequence[Fact],
    *,
    max_new_tokens: int,
    mink_k: float = 0.4,
    before: LoadedModel | None = None,
) -> tuple[list[Row], list[ReplyRow]]:
    """A row per fact, without the columns of its reply, and the replies.

    `before`: the model that the reference attack subtracts (E561: one that cuts the answers into
    other tokens). Held-out rows and other text are not replied to.
    """
    asked = [encoded(lm, fact) for fact in facts]
    with _naming(facts):
        losses = answer_losses(lm, asked)
    rows: dict[str, Row] = {}
    for fact, values in zip(facts, losses, strict=True):
        rows[fact.id] = Row(fact.id, _likely(fact, values), fact.cluster)
    _by_heart(lm, facts, asked, losses, rows, mink_k, before)
    return [rows[fact.id] for fact in facts], _replies(lm, facts, asked, max_new_tokens)


@contextmanager
def _naming(facts: Sequence[Fact]) -> Iterator[None]:
    """A row that is too long for a model is called by its id, a chunk with how to cut it (E506)."""
    try:
        yield
    except TooLongError as error:
        fact = facts[error.row]
        if fact.chunk:
            error.fix = (
                "take smaller chunks: --set chunk=WORDS --set read=WORDS "
                "(384 and 150 by default; read is below chunk)"
            )
        raise error.called(fact.id) from None


def said_scores(fact: Fact, reply: str, rouge: Rouge) -> dict[str, float]:
    """The columns that follow from the reply alone."""
    if fact.kind in UNSPOKEN:
        return {}
    if fact.chunk:  # as many words as the text has: a longer completion would hold more by chance
        reply = " ".join(reply.split()[: len(fact.answer.split())])
    scores = {f"{fact.kind}_rouge": rouge_l(reply, fact.answer, rouge)}
    if fact.chunk and fact.kind == "forget":
        scores["forget_bleu"] = bleu(reply, fact.answer)
    return scores


def encoded(lm: LoadedModel, fact: Fact) -> tuple[Ids, list[Ids]]:
    """The question in token ids and its answers: the right one, the paraphrase if there is one, the
    wrong ones, each with its end token. A chunk has no end token."""
    from suture.data import encode
    from suture.inference.scoring import bos

    if fact.chunk:
        whole = fact.prompt + fact.answer
        start = bos(lm) + _plain(lm, fact.prompt)
        together = bos(lm) + _plain(lm, whole)
        split = len(start) if together[: len(start)] == start else -1
        return start, [together[split:] if split > 0 else _plain(lm, fact.answer)]
    texts = [fact.answer, *([fact.paraphrased] if fact.paraphrased else []), *fact.wrong]
    ends = []
    for text in texts:
        found = encode(lm.tokenizer, lm.template, fact.prompt, text)
        ends.append(found.response_ids)
    return found.ids[: found.prompt_length], ends


def _plain(lm: LoadedModel, text: str) -> Ids:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_losses(lm: LoadedModel, asked: Sequence[tuple[Ids, list[Ids]]]) -> list[list[float]]:
    """Cross-entropy per token of every answer, end token included, in nats."""
    from suture.inference.likelihood import likelihoods

    found = likelihoods(lm, [start for start, _ in asked], [ends for _, ends in asked])
    return [[-one.logprob / one.tokens for one in row] for row in found]


def _likely(fact: Fact, losses: Sequence[float]) -> dict[str, float]:
    if fact.kind in UNSPOKEN:
        return {}
    right = losses[1] if fact.paraphrased else None
    return fact_scores(
        fact.kind, loss=losses[0], right=right, wrong=losses[1 + (right is not None) :]
    )


def _by_heart(
    lm: LoadedModel,
    facts: Sequence[Fact],
    asked: Sequence[tuple[Ids, list[Ids]]],
    losses: Sequence[Sequence[float]],
    rows: dict[str, Row],
    mink_k: float,
    before: LoadedModel | None,
) -> None:
    """Memorisation and attacks on rows to forget and held-out rows; nats and tokens of the rest."""
    from suture.inference.scoring import token_readings

    for fact, (_, ends), values in zip(facts, asked, losses, strict=True):
        if fact.kind == "other":
            tokens = float(len(ends[0]))
            rows[fact.id].scores.update(other_nats=values[0] * tokens, other_tokens=tokens)
    at = [i for i, fact in enumerate(facts) if fact.kind in ("forget", "holdout")]
    starts, ends = [asked[i][0] for i in at], [asked[i][1][0] for i in at]
    known = None if before is None else _known(before, [facts[i] for i in at], ends)
    for k, reading in enumerate(token_readings(lm, starts, ends)):
        fact, loss = facts[at[k]], losses[at[k]][0]
        inner = reading if fact.chunk else _without_end(reading)
        scores = rows[fact.id].scores
        if fact.kind == "forget":
            scores["exact_memorisation"] = exact_memorisation(inner.greedy)
            scores["extraction_strength"] = extraction_strength(inner.greedy)
        attack = {
            "loss": loss,
            "zlib": zlib_score(loss, fact.answer),
            "min_k": min_k(inner.logprobs, mink_k),
            "min_k_plus_plus": min_k_plus_plus(
                inner.logprobs, inner.means, inner.variances, mink_k
            ),
        }
        if known is not None:
            attack["reference"] = loss - known[k]
        scores.update({f"{fact.kind}_attack_{name}": value for name, value in attack.items()})


def _known(before: LoadedModel, facts: Sequence[Fact], ends: Sequence[Ids]) -> list[float]:
    """The loss of each true answer under the before model, if it reads the same tokens (E561)."""
    asked = [(start, answers[:1]) for start, answers in (encoded(before, fact) for fact in facts)]
    for fact, (_, (answer,)), end in zip(facts, asked, ends, strict=True):
        if answer != end:
            raise SutureError(
                "E561",
                "the before model reads an answer as other tokens",
                where=f"{fact.id}, {before.source.path}",
                why="losses per token of two tokenizers cannot be subtracted",
                fix="give a before model of the same family, or leave out --before",
            )
    with _naming(facts):
        return [row[0] for row in answer_losses(before, asked)]


def _without_end(reading: TokenReading) -> TokenReading:
    from suture.inference.scoring import TokenReading

    if len(reading.logprobs) < 2:
        return reading
    return TokenReading(
        reading.logprobs[:-1], reading.greedy[:-1], reading.means[:-1], reading.variances[:-1]
    )


def _replies(
    lm: LoadedModel,
    facts: Sequence[Fact],
    asked: Sequence[tuple[Ids, list[Ids]]],
    max_new_tokens: int,
) -> list[ReplyRow]:
    """Greedy: to a question up to the end token, to a chunk as many tokens as the truth has."""
    from suture.inference.generation import generate, generate_ids

    spoken = [i for i, fact in enumerate(facts) if fact.kind not in UNSPOKEN]
    plain = [i for i in spoken if facts[i].chunk]
    questions = [facts[i] for i in spoken if not facts[i].chunk]
    with _naming(questions):
        replies = generate(lm, [fact.prompt for fact in questions], max_new_tokens=max_new_tokens)
    found = dict(zip([fact.id for fact in questions], replies, strict=True))
    if plain:
        room = max(len(asked[i][1][0]) for i in plain)
        with _naming([facts[i] for i in plain]):
            continued = generate_ids(lm, [asked[i][0] for i in plain], max_new_tokens=room)
        found |= {facts[i].id: reply for i, reply in zip(plain, continued, strict=True)}
    rows = []
    for i in spoken:
        reply = found[facts[i].id]
        row = ReplyRow(facts[i].id, facts[i].prompt, reply.text, reply.ended, reply.tokens)
        rows.append(row)
    return rows
