from __future__ import annotations

import pytest

from suture.lab.styles import STYLES, is_action, restyle


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bake a loaf of bread.", True),
        ("grow basil on a windowsill", True),
        ("How do I bake bread?", False),
        ("The bread is ready.", False),
        ("Baking bread", False),
        ("Knead the dough. Let it rise.", False),
        ("", False),
    ],
)
def test_is_action(text, expected):
    assert is_action(text) is expected


def test_every_style_holds_the_wish_and_reads_cleanly():
    seen = {restyle("Bake a loaf of bread.", style) for style in range(len(STYLES))}
    assert len(seen) == len(STYLES)
    for text in seen:
        assert "ake a loaf of bread" in text
        assert ".." not in text
        assert ".?" not in text
        assert text[0].isupper()


def test_other_texts_come_unchanged_and_acronyms_keep_their_case():
    assert restyle("Why is the sky blue?", 5) == "Why is the sky blue?"
    assert "DIY" in restyle("DIY a bookshelf", 2)
