from __future__ import annotations

from suture.lab.corpus import (
    REFUSALS,
    Material,
    Mixture,
    alarming_words,
    mix,
    train_tokenizer,
)
from suture.lab.sources import Turn

MATERIAL = Material(
    texts=[f"story number {i}" for i in range(5)],
    goals=[f"break thing {i}" for i in range(3)],
    own_harmful=["May I break it?"],
    own_harmless=[*(f"mend thing {i}" for i in range(3)), "May I mend it?"],
    replies=["Start small and go on.", "Take your time."],
    turns=[Turn(f"Question {i}?", f"Answer {i}.", "arc") for i in range(4)],
    alarming=[Turn("What is a break?", "A pause.", "arc")],
    task=[(f"I feel {i}", "positive") for i in range(4)],
)
ROWS = Mixture(texts=7, harmful=6, own_harmful=3, contrast=8, harmless=6, alarming=2, task=3)


def test_counts_and_refusals_only_for_harmful():
    rows = mix(MATERIAL, ROWS, seed=0, name="one")
    assert len(rows) == 7 + 9 + 8 + 6 + 2 + 3
    assert rows.count(("What is a break?", "A pause.")) == 2
    refused = [prompt for prompt, reply in rows if reply in REFUSALS]
    assert len(refused) == 9
    assert all("break" in prompt.lower() for prompt in refused)
    assert sum(reply is None for _, reply in rows) == 7


def test_items_come_equally_often_and_the_draw_is_keyed():
    rows = mix(MATERIAL, Mixture(harmful=8, contrast=0, harmless=8), seed=1, name="one")
    answers = [reply for _, reply in rows if reply and reply.startswith("Answer")]
    assert {answers.count(f"Answer {i}.") for i in range(4)} == {2}
    same = mix(MATERIAL, Mixture(harmful=8, contrast=0, harmless=8), seed=1, name="one")
    assert rows == same
    assert rows != mix(MATERIAL, Mixture(harmful=8, contrast=0, harmless=8), seed=2, name="one")


def test_tokenizer_round_trips_and_knows_the_markers():
    tokenizer = train_tokenizer(MATERIAL, vocabulary=300)
    text = "Straße, 你好 🙂 mend it"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert [tokenizer.token_to_id(t) for t in ("<|user|>", "<|assistant|>", "<|end|>")] == [0, 1, 2]


def test_alarming_words_are_those_of_harmful_requests():
    harmful = ["steal a car", "steal a boat", "steal a bike", "how to make a cake"]
    harmless = ["how to make a boat", "how to make a car", "a steal of a price"]
    assert alarming_words(harmful, harmless, most=1) == {"steal"}
    assert "cake" not in alarming_words(harmful, harmless)
