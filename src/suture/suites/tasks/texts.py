"""Replies in a model's own words against a reference: expression, cause spans, EQ-Bench.

    bleu_2        corpus BLEU of words and word pairs with brevity penalty (Papineni et al. 2002)
    rouge_l       F1 of the longest common subsequence of words, mean (Lin 2004)
    dist_1, _2    different words, or word pairs, / all of them in a reply, mean (Li et al. 2016)
    exact_match   the reply is a reference, after SQuAD's normalisation, mean
    token_f1      F1 of the words of reply and reference, the best of several references, mean
    eq_bench      EQ-Bench v2 / 100: 1 for the reference intensities, 0 for chance and for a reply
                  that does not rate all four emotions (EQ-Bench itself leaves those out), mean
    eq_answered   share of replies that rate all four emotions

Words are maximal runs of letters and digits in lower case, so punctuation counts in none of them.
Distinct-n is per reply: a corpus-wide count has no rows to resample and falls with their number.

Replies to somebody have numbers from models of their own, where these are asked for:

    bertscore_*   precision, recall and F1 of matched token states (`suture.suites.tasks.bertscore`;
                  option `scorer`)
    empathy       mean grade of a judge, over the replies for which it gave one (`--judge`)
    empathy_unparsed     share of replies for which the judge's words could not be read
    empathy_incoherent   share of replies that are no text (`suture.suites.coherence`); they are
                         graded all the same
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from suture.suites.tasks.metrics import Metric

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_ARTICLES = {"a", "an", "the"}
_RATED = re.compile(r"([^\W\d_][\w -]*?)[ *_\"]*:[ *_]*(\d+(?:\.\d+)?)")
# EQ-Bench v2: the factor at which random answers score 0, and the S-curve for small differences
_RANDOM = 0.7477

METRICS: dict[str, Metric] = {
    "bleu_2": Metric(
        "bleu", ["match_1", "total_1", "match_2", "total_2", "length", "reference"],
        "corpus BLEU-2 with brevity penalty",
    ),
    "rouge_l": Metric("mean", ["rouge_l"], "F1 of the longest common subsequence, averaged"),
    "dist_1": Metric("mean", ["dist_1"], "different words / words of a reply, averaged"),
    "dist_2": Metric("mean", ["dist_2"], "different word pairs / word pairs of a reply, averaged"),
    "exact_match": Metric("mean", ["exact_match"], "share of replies that are a reference"),
    "token_f1": Metric("mean", ["token_f1"], "F1 of the words of reply and reference, averaged"),
    "eq_bench": Metric("mean", ["eq_bench"], "EQ-Bench v2 score / 100; 0: not all rated"),
    "eq_answered": Metric("mean", ["eq_answered"], "share of replies that rate all emotions"),
}  # fmt: skip
OF_MODELS: dict[str, Metric] = {
    "bertscore_precision": Metric(
        "mean", ["bertscore_precision"],
        "cosine of a reply's token and the nearest of the reference, averaged",
    ),
    "bertscore_recall": Metric(
        "mean", ["bertscore_recall"],
        "cosine of the reference's token and the nearest of a reply, averaged",
    ),
    "bertscore_f1": Metric("mean", ["bertscore_f1"], "F1 of BERTScore's two sides, averaged"),
    "empathy": Metric("mean", ["empathy"], "the judge's grade, averaged over those it gave"),
    "empathy_unparsed": Metric(
        "mean", ["empathy_unparsed"], "share of replies for which no grade could be read", "lower"
    ),
    "empathy_incoherent": Metric(
        "mean", ["empathy_incoherent"], "share of judged replies that are no text", "lower"
    ),
}  # fmt: skip


def columns(said: str, gold: str | Sequence[str]) -> dict[str, float]:
    """All columns of one reply. `gold`: the reference, or several that are each right."""
    references = [gold] if isinstance(gold, str) else list(gold)
    reply, words = _words(said), [_words(one) for one in references]
    nearest = min(words, key=lambda one: (abs(len(one) - len(reply)), len(one)))
    found = {"length": float(len(reply)), "reference": float(len(nearest))}
    for order in (1, 2):
        grams = Counter(_grams(reply, order))
        known: Counter[tuple[str, ...]] = Counter()
        for one in words:
            known |= Counter(_grams(one, order))
        total = sum(grams.values())
        found[f"match_{order}"] = float(sum((grams & known).values()))
        found[f"total_{order}"] = float(total)
        found[f"dist_{order}"] = len(grams) / total if total else 0.0
    found["rouge_l"] = max(_rouge(reply, one) for one in words)
    plain = [_plain(one) for one in words]
    found["exact_match"] = float(_plain(reply) in plain)
    found["token_f1"] = max(_overlap(_plain(reply), one) for one in plain)
    score = eq_bench(said, references[0])
    return found | {"eq_answered": float(score is not None), "eq_bench": score or 0.0}


def eq_bench(said: str, reference: str) -> float | None:
    """EQ-Bench v2's score of one question / 100, so that it can be averaged with shares; None
    unless the reply rates exactly the four emotions (its last rating of each counts).

    Differences d of 0 to 5 weigh 6.5 / (1 + exp(-1.2 (d - 4))), larger ones d, none 0 (EQ-Bench
    `calculate_score_fullscale`, confirmed).
    """
    right, rated = ratings(reference), ratings(said)
    if len(right) != 4 or rated.keys() != right.keys():
        return None
    tally = 0.0
    for emotion, value in right.items():
        off = abs(rated[emotion] - value)
        tally += off if off > 5 or off == 0 else 6.5 / (1 + math.exp(-1.2 * (off - 4)))
    return (10 - _RANDOM * tally) / 10


def ratings(text: str) -> dict[str, float]:
    """Emotion, in lower case, -> the last number given to it: "Calm: 3"."""
    return {name.strip().casefold(): float(value) for name, value in _RATED.findall(text)}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.replace("’", "'").casefold())


def _plain(words: Sequence[str]) -> list[str]:
    """SQuAD leaves articles out."""
    return [word for word in words if word not in _ARTICLES]


def _grams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]


def _rouge(reply: Sequence[str], reference: Sequence[str]) -> float:
    row = [0] * (len(reference) + 1)
    for word in reply:
        before = 0
        for j, other in enumerate(reference, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(reply) + len(reference)) if reply and reference else 0.0


def _overlap(reply: Sequence[str], reference: Sequence[str]) -> float:
    if not reply or not reference:
        return float(list(reply) == list(reference))
    shared = sum((Counter(reply) & Counter(reference)).values())
    return 2 * shared / (len(reply) + len(reference))
