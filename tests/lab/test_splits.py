from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import suture.lab
from suture.lab.splits import NEAR, apart_from, held_out_prompts, nearness, words

SHIPPED = Path(suture.lab.__file__).parent
REPO = Path(__file__).parents[2]
texts = st.text(alphabet="abc de", min_size=1, max_size=20)


def jaccard(a: str, b: str) -> float:
    left, right = words(a), words(b)
    return len(left & right) / len(left | right) if left | right else 0.0


@given(st.lists(texts, max_size=8), texts)
def test_nearness_is_the_largest_jaccard(prompts, text):
    expected = max((jaccard(text, p) for p in prompts if words(p)), default=0.0)
    assert abs(nearness(prompts)(text) - expected) < 1e-12


def test_words_know_other_scripts():
    assert words("Wie geht's, 你好?") == {"wie", "geht", "s", "你好"}


def test_no_shipped_training_prompt_is_near_a_test_prompt():
    largest = nearness(held_out_prompts())
    own = json.loads((SHIPPED / "data" / "contrasts.json").read_text(encoding="utf-8"))
    rows = [
        json.loads(line)
        for line in (REPO / "recipes/data/affirmative.jsonl").read_text("utf-8").splitlines()
    ]
    assert all(largest(row["prompt"]) < NEAR for row in rows)
    # family.build leaves out the near ones itself; the file should hold few of them
    near = [p for key in own if key != "harmless_replies" for p in own[key] if largest(p) >= NEAR]
    assert len(near) <= 20
    keep = apart_from(held_out_prompts())
    assert not any(keep(prompt) for prompt in near)
