"""What kind of number a column holds, which its name says and its values may hide.

Scores of 0 and 1 are counted, and have intervals of shares (Wilson, Tango). A KL that happens to be
0 everywhere, grades that are all 1, or replies that all repeat a text are no counts: their
intervals come from the bootstrap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MEASURED = re.compile(
    r"dist(?:inct)?_\d|repetition|jaccard|token_f1|bertscore_.*|empathy|eq_bench|preference|grade(?:_turn_\d+)?"
    r"|exact_memorisation|extraction_strength|forget_truth_share|(?:forget|holdout)_attack_.*"
    r"|(?:.*_)?(?:kl|logprob|ratio|rouge|bleu|probability|perplexity|loss|nll|seconds|per_second)"
    r"(?:_.*)?"
)


def counted(column: str, values: Iterable[float]) -> bool:
    """Whether the scores of `column` are yes or no: every one 0 or 1, and not by chance."""
    return not _MEASURED.fullmatch(column) and set(values) <= {0.0, 1.0}
