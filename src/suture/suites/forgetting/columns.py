"""The columns of a row, and what every number of the suites `tofu` and `unlearning` means.

A row belongs to one set, and its columns carry the set's name, so that no average mixes sets:

    forget    what the model is to forget; of a text: chunks of it
    retain    what it is to keep
    authors   questions about real authors (TOFU); wrong answers are options
    world     world facts (TOFU), likewise
    holdout   rows like those to forget that the model has never seen, for membership attacks
    other     text of no concern, for perplexity
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from suture.ledger import Better
from suture.suites.forgetting.ratios import (
    FORMS,
    forget_score,
    log_truth_ratio,
    probability,
    probability_among,
    utility_score,
)

Kind = Literal["forget", "retain", "authors", "world", "holdout", "other"]
OPTIONS = ("authors", "world")  # sets whose wrong answers are options
UTILITY: tuple[Kind, ...] = ("retain", "authors", "world")
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference")

_ANSWER = "exp(-mean cross-entropy per answer token, end token included)"
_AMONG = f"P(right) / (P(right) + sum of P(wrong)), P = {_ANSWER}"
_RATIO = {
    "geometric": "TR = exp(-mean of the wrong answers' losses) / exp(-loss of the right answer)",
    "arithmetic": "TR = mean of the wrong answers' probabilities / that of the right answer",
}
_SETS = {
    "forget": "rows to forget",
    "retain": "rows to keep",
    "authors": "real authors",
    "world": "world facts",
}


def _definitions() -> dict[str, tuple[Better, str]]:
    found: dict[str, tuple[Better, str]] = {
        "forget_quality": (
            "higher",
            "p-value of the exact two-sample Kolmogorov-Smirnov test of the geometric truth ratios "
            "on the rows to forget against those of a reference that never saw them; above 0.05 "
            "counts as significant forgetting; comparable at equal n only",
        ),
        "forget_ks": ("lower", "the distance D of that test: 0 like the reference, 1 fully apart"),
        "forget_quality_arithmetic": (
            "higher",
            "forget_quality with the arithmetic truth ratio (in no published table)",
        ),
        "forget_ks_arithmetic": ("lower", "the distance D of forget_quality_arithmetic"),
    }
    for form in FORMS:
        found[f"model_utility_{form}"] = (
            "higher",
            f"harmonic mean of probability, ROUGE and truth ratio on the sets kept; {_RATIO[form]}",
        )
    for kind, name in _SETS.items():
        keep: Better = "lower" if kind == "forget" else "higher"
        what = _AMONG if kind in OPTIONS else _ANSWER
        found[f"{kind}_probability"] = (keep, f"{what}, mean over {name}")
        found[f"{kind}_rouge"] = (keep, f"ROUGE-L of the greedy reply with the answer, {name}")
        for form in FORMS:
            rule = "min(TR, 1/TR)" if kind == "forget" else "max(0, 1 - TR)"
            found[f"{kind}_truth_ratio_{form}"] = (
                "higher",
                f"mean of {rule} over {name}; {_RATIO[form]}",
            )
    found |= {
        "forget_truth_share": (
            "lower",
            "mean of 1 / (1 + TR), geometric: how far the right answer is preferred (the variant "
            "of open-unlearning's meta-evaluation)",
        ),
        "exact_memorisation": (
            "lower",
            "share of answer tokens that are the argmax given all before them, end token excluded",
        ),
        "extraction_strength": (
            "lower",
            "1 - k/n, k the first of n answer tokens from which all are the argmax; 0 where the "
            "last one is not; end token excluded",
        ),
        "forget_bleu": ("lower", "BLEU-4 of the completion of a chunk with the text itself"),
        "other_perplexity": (
            "lower",
            "exp(mean cross-entropy per token) of text that is no concern of the forgetting",
        ),
        "mia_auc_loss": ("lower", _auc("cross-entropy per answer token")),
        "mia_auc_zlib": ("lower", _auc("cross-entropy per byte of the answer after zlib")),
        "mia_auc_min_k": ("lower", _auc("minus the mean of the lowest k share of log p")),
        "mia_auc_min_k_plus_plus": (
            "lower",
            _auc("min-k on (log p - mean) / deviation of log p over the vocabulary"),
        ),
        "mia_auc_reference": ("lower", _auc("cross-entropy less that of the before model")),
        "privleak": (
            "higher",
            "100 (A - A_retrain) / A_retrain, A = 1 - mia_auc_min_k (near 0 when memorised): about "
            "-100 still memorised, 0 like the reference, positive forgotten beyond it; 0 is best; "
            "its interval takes the reference's AUC as exact",
        ),
        "forget_probability_relearned": (
            "lower",
            "forget_probability after one pass of training on the rows to forget; compare with the "
            "value before the pass",
        ),
        "forget_probability_quantised": (
            "lower",
            "forget_probability with the blocks' matrices in 4-bit NF4",
        ),
        "relearn_robustness": (
            "higher",
            "min(gain of the reference / gain of this model, 1), gain = forget_probability after "
            "relearning less before",
        ),
        "relearn_robustness_symmetric": (
            "higher",
            "1 - |a - b| / (|a| + |b|), a and b the two gains of relearn_robustness",
        ),
        "quantise_robustness": (
            "higher",
            "min(before / after, 1) of forget_probability: 1 where 4 bits bring nothing back",
        ),
        "quantise_robustness_symmetric": (
            "higher",
            "1 - |a - b| / (|a| + |b|), a and b forget_probability before and after",
        ),
        "robustness": ("higher", "harmonic mean of relearn_robustness and quantise_robustness"),
    }
    return found


def _auc(score: str) -> str:
    return (
        "AUC of held-out rows against rows to forget, by the "
        f"{score}: near 1 still memorised, 0.5 cannot be told apart, near 0 over-forgotten"
    )


DEFINITIONS: dict[str, tuple[Better, str]] = _definitions()
# where neither more nor less is better without end: the value of a model that never saw the rows
BEST = {"privleak": 0.0, **{f"mia_auc_{attack}": 0.5 for attack in ATTACKS}}
OF_TEXT = ("forget_bleu", "other_perplexity")  # of chunks, not of questions
# numbers about all rows at once: no row has them, so the ledger cannot pair them
UNPAIRED = frozenset(
    name
    for name in DEFINITIONS
    if name.startswith(("forget_quality", "forget_ks", "model_utility", "mia_auc"))
    or name.partition("_symmetric")[0].endswith("robustness")
    or name in ("privleak", "other_perplexity")
)


def fact_scores(
    kind: Kind,
    *,
    loss: float,
    right: float | None = None,
    wrong: Sequence[float] = (),
    rouge: float | None = None,
) -> dict[str, float]:
    """The columns of one question: from the losses of its answers and the ROUGE of the reply.

    `loss`: of the answer, per token, end token included. `right`: of the paraphrased answer where
    there is one (rows to forget and to keep; TOFU's logs give the plain answer's elsewhere).
    `wrong`: of the perturbed answers. `forget_log_ratio` columns are the raw values that the test
    of forget quality compares.
    """
    among = kind in OPTIONS
    value = probability_among(loss, wrong) if among and wrong else probability(loss)
    scores = {f"{kind}_probability": value}
    if rouge is not None:
        scores[f"{kind}_rouge"] = rouge
    if not wrong:
        return scores
    for form in FORMS:
        ratio = log_truth_ratio(loss if right is None else right, wrong, form)
        if kind != "forget":
            scores[f"{kind}_truth_ratio_{form}"] = utility_score(ratio)
            continue
        scores[f"forget_truth_ratio_{form}"] = forget_score(ratio)
        scores[f"forget_log_ratio_{form}"] = ratio
        if form == "geometric":
            scores["forget_truth_share"] = probability_among(0.0, [-ratio])
    return scores
