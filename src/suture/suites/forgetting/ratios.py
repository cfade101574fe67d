"""Probability, truth ratio and model utility, as TOFU defines them (Maini et al. 2024, §2.2).

Everything is a function of losses: `loss` is the cross-entropy per answer token in nats, the end
token included, and exp(-loss) the probability of an answer, normalised by its length.

The truth ratio compares wrong answers with the right one, in two published forms that TOFU's own
two scripts disagree on; they move model utility by 0.037 on the same logs, so both are kept:

    arithmetic   mean_j exp(-loss(wrong_j)) / exp(-loss(right))     the paper's formula, utils.py
    geometric    exp(-mean_j loss(wrong_j)) / exp(-loss(right))     aggregate_eval_stat.py

"right" is the paraphrased answer for rows to forget and to retain, the plain answer elsewhere. All
functions take and give logarithms, which a collapsed model cannot overflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

Form = Literal["geometric", "arithmetic"]
FORMS: tuple[Form, ...] = ("geometric", "arithmetic")


def probability(loss: float) -> float:
    """exp(-loss): the geometric mean of the token probabilities of an answer."""
    return math.exp(-loss)


def probability_among(loss: float, wrong: Sequence[float]) -> float:
    """P(right) / (P(right) + sum of P(wrong)): for sets whose wrong answers are options."""
    return 1.0 / (1.0 + math.fsum(_exp(loss - other) for other in wrong))


def log_truth_ratio(right: float, wrong: Sequence[float], form: Form = "geometric") -> float:
    """log of the truth ratio from the loss of the right answer and those of the wrong ones."""
    if not wrong:
        raise ValueError("a truth ratio needs wrong answers")
    if form == "geometric":
        return right - math.fsum(wrong) / len(wrong)
    least = min(wrong)
    shares = math.fsum(math.exp(least - loss) for loss in wrong)
    return right - least + math.log(shares / len(wrong))


def forget_score(log_ratio: float) -> float:
    """min(TR, 1/TR): 1 where right and wrong are alike, which is what a model that never saw the
    row gives; towards 0 where one of them is clearly preferred."""
    return math.exp(-abs(log_ratio))


def utility_score(log_ratio: float) -> float:
    """max(0, 1 - TR): 1 where wrong answers are far less likely than the right one."""
    return max(0.0, 1.0 - _exp(log_ratio))


def model_utility(scores: Mapping[str, float]) -> float:
    """The harmonic mean of the given averages: nine of them in TOFU, probability, ROUGE and truth
    ratio on retained rows, real authors and world facts.

    One zero makes it 0, and whoever shows the number should say which one (`summary.utilities`).
    """
    if not scores:
        raise ValueError("model utility needs at least one average")
    if min(scores.values()) <= 0.0:
        return 0.0
    return len(scores) / math.fsum(1.0 / value for value in scores.values())


def _exp(value: float) -> float:
    return math.inf if value > 709.0 else math.exp(value)
