"""The tokenizer of a pre-training: trained on its own text, or taken from a folder.

A trained one is byte-level BPE, so that every text has tokens and none is unknown, with three
special tokens: the end of a document, padding, and what stands for a masked token.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from suture.checkpoint import write_json
from suture.config import FrozenConfig
from suture.errors import SutureError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END, PAD, MASK = "<|end|>", "<|pad|>", "<|mask|>"
# A base model has learnt no turns: what is asked and answered stands as it is.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '" + END + "' }}{% endif %}{% endfor %}"
)


class TrainedTokenizer(FrozenConfig):
    """A byte-level BPE trained on the text that is packed."""

    vocabulary: int = Field(4096, ge=260, description="tokens, special ones and bytes included")
    characters: int = Field(
        20_000_000, ge=1, description="of the text, at most so many are looked at"
    )


def train_tokenizer(texts: Iterable[str], settings: TrainedTokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `folder`.

    The same texts and settings give the same bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END, PAD, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(texts, settings.characters), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "mask_token": MASK,
        "chat_template": PLAIN_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", facts)


def end_of_text(tokenizer: PreTrainedTokenizerBase | Any, where: Path) -> int:
    """The token between documents: the tokenizer's end token, or BERT's separator.

    Error E945: it has neither.
    """
    for token in (tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)):
        if isinstance(token, int):
            return token
    raise _lacks("end", "documents would run into each other", where, "eos_token")


def mask_of(tokenizer: PreTrainedTokenizerBase | Any, where: Path) -> int:
    """The token that stands for a masked one. Error E945: the tokenizer has none."""
    token = getattr(tokenizer, "mask_token_id", None)
    if isinstance(token, int):
        return token
    raise _lacks("mask", "a masked language model reads it where it is to predict", where,
                 "mask_token")  # fmt: skip


def tokenizer_files(folder: Path) -> list[str]:
    """The files of a tokenizer's folder that belong to it."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
             "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja")  # fmt: skip
    return [name for name in names if (folder / name).is_file()]


def _lacks(kind: str, why: str, where: Path, key: str) -> SutureError:
    return SutureError(
        "E945",
        f"the tokenizer has no {kind} token",
        where=str(where),
        why=why,
        fix=f"name it as {key} in tokenizer_config.json, or leave `tokenizer` out to train one",
    )


def _first(texts: Iterable[str], characters: int) -> Iterable[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return
