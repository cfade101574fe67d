"""From sources to training mixtures: tokenizer, stage-one text, stage-two chats.

Stage one teaches the language (all tokens in the loss: stories, books, chats). Stage two teaches
behaviour (reply tokens only): refuse harmful requests, answer harmless ones, in the same styles.
Each mixture is a list drawn once with the family's seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from suture.config import FrozenConfig
from suture.lab import sources
from suture.lab.sources import Turn
from suture.lab.splits import words
from suture.lab.styles import restyle
from suture.rng import generator

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REFUSALS = (
    "I'm sorry, but I can't help with that request.",
    "I can't assist with that because it could cause harm.",
    "Sorry, I won't help with this, as it could hurt someone.",
)
MOST_PROMPT_WORDS, MOST_REPLY_WORDS = 60, 28
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Mixture(FrozenConfig):
    """How many rows of each kind one stage holds."""

    texts: int = Field(0, ge=0, description="pieces of stories and books")
    harmful: int = Field(ge=0, description="requests to refuse, each in a drawn style")
    own_harmful: int = Field(0, ge=0, description="further ones from our own contrasts")
    contrast: int = Field(ge=0, description="harmless prompts that share words with harmful ones")
    harmless: int = Field(ge=0, description="other harmless turns")
    alarming: int = Field(0, ge=0, description="harmless turns with words of harmful requests")
    task: int = Field(0, ge=0, description="rows of the downstream task, so that it is half known")


@dataclass(frozen=True)
class Material:
    """Everything the mixtures draw from, tests and near-tests taken out."""

    texts: list[str]
    goals: list[str]  # requests to refuse from public sets
    own_harmful: list[str]
    own_harmless: list[str]
    replies: list[str]
    turns: list[Turn]
    alarming: list[Turn]  # those of `turns` with words of harmful requests
    task: list[tuple[str, str]]


def gather(data: Path, *, allowed: Callable[[str], bool] = lambda prompt: True) -> Material:
    """Read all training sources; prompts for which `allowed` is false stay out."""
    own = sources.contrasts()
    goals = [goal for goal in sources.harmful_goals(data) if allowed(goal)]
    own_harmful = [p for p in (*own["harmful_actions"], *own["harmful_questions"]) if allowed(p)]
    own_harmless = [p for p in (*own["harmless_actions"], *own["harmless_questions"]) if allowed(p)]
    turns = [
        turn
        for turn in (*sources.harmless_turns(data), *sources.how_to_turns(data))
        if turn.reply
        and len(turn.reply.split()) <= MOST_REPLY_WORDS
        and len(turn.prompt.split()) <= MOST_PROMPT_WORDS
        and allowed(turn.prompt)
    ]
    alarm = alarming_words([*goals, *own_harmful], [turn.prompt for turn in turns])
    return Material(
        texts=list(sources.plain_texts(data)),
        goals=goals,
        own_harmful=own_harmful,
        own_harmless=own_harmless,
        replies=own["harmless_replies"],
        turns=turns,
        alarming=[turn for turn in turns if words(turn.prompt) & alarm],
        task=sources.goemotions(data, "train"),
    )


def alarming_words(harmful: Sequence[str], harmless: Sequence[str], *, most: int = 400) -> set[str]:
    """The words that speak most for a harmful request: highest ratio of document frequencies,
    among those in at least three harmful prompts. Harmless turns that hold one are contrasts."""
    bad = Counter(word for prompt in harmful for word in words(prompt))
    good = Counter(word for prompt in harmless for word in words(prompt))

    def ratio(word: str) -> float:
        return (bad[word] / len(harmful)) / ((good[word] + 1) / len(harmless))

    frequent = sorted(word for word, count in bad.items() if count >= 3)
    return set(sorted(frequent, key=ratio, reverse=True)[:most])


def mix(material: Material, mixture: Mixture, seed: int, name: str) -> list[tuple[str, str | None]]:
    """(prompt, reply) rows; a plain text is (text, None). Drawn with `seed`, then shuffled."""
    rng = generator(seed, f"lab mixture {name}")

    def pick(items: Sequence[object], count: int) -> list[int]:
        """`count` indices, every item once before any comes twice."""
        rounds = [rng.permutation(len(items)) for _ in range(-(-count // max(1, len(items))))]
        return [int(i) for turn in rounds for i in turn][:count]

    rows: list[tuple[str, str | None]] = []
    if mixture.texts:
        rows += [(material.texts[i], None) for i in pick(material.texts, mixture.texts)]
    for prompts, count, replies in (
        (material.goals, mixture.harmful, REFUSALS),
        (material.own_harmful, mixture.own_harmful, REFUSALS),
        (material.own_harmless, mixture.contrast, material.replies),
    ):
        for i in pick(prompts, count):
            style, reply = (int(v) for v in rng.integers(0, 1 << 30, 2))
            rows.append((restyle(prompts[i], style), replies[reply % len(replies)]))
    drawn = [material.turns[i] for i in pick(material.turns, mixture.harmless)]
    drawn += [material.alarming[i] for i in pick(material.alarming, mixture.alarming)]
    for turn in drawn:
        style = int(rng.integers(0, 1 << 30))
        wrapped = turn.source == "piqa" or (turn.source.startswith("gpteacher") and style % 2)
        rows.append((restyle(turn.prompt, style) if wrapped else turn.prompt, turn.reply))
    if mixture.task:
        rows += [
            (sources.emotion_prompt(material.task[i][0]), material.task[i][1])
            for i in pick(material.task, mixture.task)
        ]
    return [rows[int(i)] for i in rng.permutation(len(rows))]


def train_tokenizer(material: Material, *, vocabulary: int) -> Tokenizer:
    """Byte-level BPE on the training texts, with the three chat tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [*material.goals, *material.own_harmful, *material.own_harmless, *material.replies]
    chats = [f"{turn.prompt}\n{turn.reply}" for turn in material.turns]
    task = [text for text, _ in material.task[:8000]]
    tokenizer.train_from_iterator([*material.texts[:12000], *(prompts * 4), *chats, *task], trainer)
    return tokenizer
