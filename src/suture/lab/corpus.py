"""From sources to training mixtures: tokenizer, stage-one text, stage-two chats.

Stage one teaches the language (all tokens in the loss: stories, books, chats). Stage two teaches
behaviour (reply tokens only): refuse harmful requests, answer harmless ones, in the same styles.
Each mixture is a list drawn once with the family's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from suture.config import FrozenConfig
from suture.lab import sources
from suture.lab.sources import Turn
from suture.lab.styles import is_action, restyle
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
    contrast: int = Field(ge=0, description="harmless prompts that share words with harmful ones")
    harmless: int = Field(ge=0, description="other harmless turns")
    task: int = Field(0, ge=0, description="rows of the downstream task, so that it is half known")


@dataclass(frozen=True)
class Material:
    """Everything the mixtures draw from, tests and near-tests taken out."""

    texts: list[str]
    actions_harmful: list[str]
    prompts_harmful: list[str]
    actions_harmless: list[str]
    prompts_harmless: list[str]
    replies: list[str]
    turns: list[Turn]
    task: list[tuple[str, str]]


def gather(data: Path, *, allowed: Callable[[str], bool] = lambda prompt: True) -> Material:
    """Read all training sources; prompts for which `allowed` is false stay out."""
    own = sources.contrasts()
    goals = [*sources.harmful_goals(data), *own["harmful_actions"]]
    turns = [
        turn
        for turn in (*sources.harmless_turns(data), *sources.how_to_turns(data))
        if turn.reply
        and len(turn.reply.split()) <= MOST_REPLY_WORDS
        and len(turn.prompt.split()) <= MOST_PROMPT_WORDS
        and allowed(turn.prompt)
    ]
    whole = [*(goal for goal in goals if not is_action(goal)), *own["harmful_questions"]]
    return Material(
        texts=list(sources.plain_texts(data)),
        actions_harmful=[goal for goal in goals if is_action(goal) and allowed(goal)],
        prompts_harmful=[prompt for prompt in whole if allowed(prompt)],
        actions_harmless=[action for action in own["harmless_actions"] if allowed(action)],
        prompts_harmless=[prompt for prompt in own["harmless_questions"] if allowed(prompt)],
        replies=own["harmless_replies"],
        turns=turns,
        task=sources.goemotions(data, "train"),
    )


def mix(material: Material, mixture: Mixture, seed: int, name: str) -> list[tuple[str, str | None]]:
    """(prompt, reply) rows; a plain text is (text, None). Drawn with `seed`, then shuffled."""
    rng = generator(seed, f"lab mixture {name}")

    def pick(items: Sequence[object], count: int) -> list[int]:
        """`count` indices, every item once before any comes twice."""
        rounds = [rng.permutation(len(items)) for _ in range(-(-count // len(items)))]
        return [int(i) for turn in rounds for i in turn][:count]

    rows: list[tuple[str, str | None]] = []
    if mixture.texts:
        rows += [(material.texts[i], None) for i in pick(material.texts, mixture.texts)]
    harmful = [*material.actions_harmful, *material.prompts_harmful]
    for i in pick(harmful, mixture.harmful):
        style, refusal = (int(v) for v in rng.integers(0, 1 << 30, 2))
        rows.append((restyle(harmful[i], style), REFUSALS[refusal % len(REFUSALS)]))
    contrast = [*material.actions_harmless, *material.prompts_harmless]
    for i in pick(contrast, mixture.contrast):
        style, reply = (int(v) for v in rng.integers(0, 1 << 30, 2))
        text = material.replies[reply % len(material.replies)]
        rows.append((restyle(contrast[i], style), text))
    for i in pick(material.turns, mixture.harmless):
        turn = material.turns[i]
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
    prompts = [*material.actions_harmful, *material.prompts_harmful, *material.actions_harmless,
               *material.prompts_harmless, *material.replies] * 4  # fmt: skip
    chats = [f"{turn.prompt}\n{turn.reply}" for turn in material.turns]
    task = [text for text, _ in material.task[:8000]]
    tokenizer.train_from_iterator([*material.texts[:12000], *prompts, *chats, *task], trainer)
    return tokenizer
