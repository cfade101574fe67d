"""Plain texts as training examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from suture.data import beginning
from suture.training.batches import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pieces(tokenizer: PreTrainedTokenizerBase | Any, text: str, max_length: int) -> list[Example]:
    """`text` cut every `max_length` tokens, each piece begun as this tokenizer begins texts.

    Every token but a piece's first is predicted. A last piece of one token is left out.
    """
    first = beginning(tokenizer)
    # verbose=False: no warning that the text is longer than the context, it is about to be cut
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    room = max_length - len(first)
    cut = [[*first, *ids[at : at + room]] for at in range(0, len(ids), room)]
    return [Example(tuple(piece), 1) for piece in cut if len(piece) > 1]
