"""What a training on the first tokens of responses is a training on, and what else they begin.

Where a tokenizer cuts "Sure" into S|ure and "Sorry" into S|orry, a training on one token of "Sure"
moves refusals too. Nothing in the result would say so, so it is said before.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from suture.data import ChatTemplate, Passage, encode
from suture.errors import some
from suture.suites.scorers.refusal import PHRASES

if TYPE_CHECKING:
    from suture.training.recipe import TrainRecipe

_SHOWN = 3  # beginnings that are named


def first_tokens(recipe: TrainRecipe) -> list[str]:
    """Lines about what `response_tokens` leaves of the rows; none without it.

    The second warns where English refusals that Suture knows begin alike.
    """
    from suture.inference.loading import load_tokenizer
    from suture.patch import open_model
    from suture.training.recipe import named_rows

    limit = recipe.response_tokens
    rows = [row for _, row in named_rows(recipe.data) if not isinstance(row, Passage)]
    if limit is None or not rows:
        return []
    folder = open_model(recipe.model).path
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate.from_folder(folder, override=recipe.chat_template)

    def beginning(prompt: str, response: str) -> tuple[int, ...]:
        coded = encode(tokenizer, template, prompt, response)
        return tuple(coded.response_ids[:limit])

    counts = Counter(beginning(row.prompt, row.response) for row in rows)
    most = counts.most_common(_SHOWN)
    shown = [f"{tokenizer.decode(list(ids))!r} in {n} of {len(rows)} rows" for ids, n in most]
    more = f" and {len(counts) - len(most)} other beginnings" if len(counts) > len(most) else ""
    word = "first token" if limit == 1 else f"first {limit} tokens"
    lines = [f"trained on: the {word} of responses, {', '.join(shown)}{more}"]
    alike: dict[str, list[str]] = {}
    for phrase in json.loads(PHRASES.read_text(encoding="utf-8"))["starts"]:
        refusal = phrase[:1].upper() + phrase[1:]
        coded = encode(tokenizer, template, rows[0].prompt, refusal)
        ids = tuple(coded.response_ids[:limit])
        ids = ids[: len(coded.response_ids) - 1]  # a refusal goes on where the phrase ends
        for known in counts:
            if ids and known[: len(ids)] == ids:
                alike.setdefault(str(tokenizer.decode(list(known))), []).append(refusal)
    for text, refusals in alike.items():
        lines.append(
            f"warning: refusals begin with {text!r} too ({some(refusals, _SHOWN)}): what this "
            "training does to the rows it does to them; take rows that begin with other words, "
            'such as "Of course", or more response_tokens'
        )
    return lines
