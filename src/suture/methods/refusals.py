"""The aligned model's own refusals: what Fisher importance and the safety side are measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from suture.errors import SutureError
from suture.progress import note

if TYPE_CHECKING:
    from suture.data import Pair
    from suture.inference import LoadedModel

IsRefusal = Callable[[str], bool]

# How refusals begin, lower case, straight apostrophes. Only the beginning is looked at: a harmful
# answer may well contain "I cannot" further on. The `safety` suite has the full list; this short
# one only keeps compliant replies out of the importance.
OPENINGS = (
    "i cannot",
    "i can't",
    "i can not",
    "i will not",
    "i won't",
    "i am sorry",
    "i'm sorry",
    "i am unable",
    "i'm unable",
    "i am not able",
    "i'm not able",
    "i must decline",
    "sorry",
    "i apologi",
    "as an ai",
)


def opens_as_refusal(text: str) -> bool:
    """Whether a reply begins with one of `OPENINGS`. Deliberately plain: pass a better judge."""
    start = text.strip().strip("\"'").lower().replace("\u2019", "'")
    return start.startswith(OPENINGS)


def safety_refusals(
    lm: LoadedModel,
    rows: Sequence[Pair],
    *,
    max_new_tokens: int = 512,
    system: str | None = None,
    only_refusals: bool = True,
    is_refusal: IsRefusal | None = None,
) -> list[Pair]:
    """`rows` with responses: given ones stay as they are, missing ones are generated greedily.

    A generated reply that is empty, or with `only_refusals` no refusal in the eyes of `is_refusal`
    (default `opens_as_refusal`), is left out with its row: importance measured on a harmful answer
    would protect the harm. Order is kept. Where the longest prompt leaves less than
    `max_new_tokens` of the model's context, all replies are limited to what it leaves. Raises
    SutureError E404 when no row is left, E506 for a prompt that fills the context by itself.
    """
    from suture.data import Pair, encode
    from suture.inference import generate

    judge = is_refusal or opens_as_refusal
    open_rows = [i for i, row in enumerate(rows) if row.response is None]
    prompts = [rows[i].prompt for i in open_rows]
    longest = max(
        (len(encode(lm.tokenizer, lm.template, p, system=system).ids) for p in prompts), default=0
    )
    left = lm.within(longest + max_new_tokens) - longest
    tokens = min(max_new_tokens, max(left, 1))  # where nothing is left, `generate` says E506
    replies = generate(lm, prompts, max_new_tokens=tokens, system=system)
    text = {i: reply.text for i, reply in zip(open_rows, replies, strict=True)}
    kept: list[Pair] = []
    for i, row in enumerate(rows):
        if i not in text:
            kept.append(row)
        elif text[i].strip() and (not only_refusals or judge(text[i])):
            kept.append(Pair(**{**row.model_dump(), "response": text[i]}))
    if not kept:
        raise SutureError(
            "E404",
            f"the aligned model refuses none of the {len(rows)} safety prompts",
            where=str(lm.source.path),
            why="there is no refusal to learn from",
            fix="check --aligned and --chat-template, or give rows with a response",
        )
    if len(kept) < len(rows):
        note(f"safety: {len(kept)} of {len(rows)} rows have a refusal; the others are left out")
    return kept
