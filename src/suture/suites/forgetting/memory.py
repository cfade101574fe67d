"""How much of an answer a model still says by heart, from the argmax at each of its tokens.

The model reads the true answer (teacher forcing); `greedy` says for each answer token whether it
was the most likely one. The end token is left out, as in open-unlearning: it is easy to guess.
"""

from __future__ import annotations

from collections.abc import Sequence


def exact_memorisation(greedy: Sequence[bool]) -> float:
    """Share of the tokens that were the argmax; 0 for an answer without tokens."""
    return sum(greedy) / len(greedy) if greedy else 0.0


def extraction_strength(greedy: Sequence[bool]) -> float:
    """1 - k/n: k is the first token from which on all were the argmax (Carlini et al. 2021).

    1 where everything was, 0 where the last token was not. (open-unlearning stops one token short,
    so that its value never falls below 1/n.)
    """
    k = len(greedy)
    while k and greedy[k - 1]:
        k -= 1
    return 1.0 - k / len(greedy) if greedy else 0.0
