"""How much of the truth a reply holds: ROUGE-L (Lin 2004) and BLEU (Papineni et al. 2002).

Recall and F1, stemmed and unstemmed, are not interchangeable, so the kind is always named:

    recall-stemmed   TOFU: share of the truth's words that the reply has in order, stemmed
    f1-stemmed       open-unlearning's MUSE
    f1               the original MUSE, which does not stem
    recall           unstemmed recall

Words are runs of a to z and digits in lower case, as in Google's `rouge_score`; of these only
words of more than three letters are stemmed. Letters of Latin with a mark part words there, and so
they do here. Texts that `rouge_score` would not see are inferred: where most letters are of another
script, its runs of letters and digits are words too, and every sign of a script without blanks is
one; where neither text has any word, both are split at blanks.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Literal

from suture.suites.forgetting.porter import stem

Kind = Literal["recall-stemmed", "recall", "f1-stemmed", "f1"]
_OTHER = re.compile(r"[^a-z0-9]+")
_UNSTEMMED = 3  # letters up to which a word stays as it is
_BESIDE = {"LATIN", "COMBINING"}  # beginnings of Unicode names: what parts words
_WITHOUT_BLANKS = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}


def rouge_l(reply: str, truth: str, kind: Kind = "recall-stemmed") -> float:
    """ROUGE-L of `reply` against `truth`, 0 to 1; 0 where either has no words."""
    stemmed = kind.endswith("stemmed")
    said, wanted = words(reply, stemmed=stemmed), words(truth, stemmed=stemmed)
    if not said and not wanted:
        said, wanted = reply.split(), truth.split()
    if not said or not wanted:
        return 0.0
    common = _common(wanted, said)
    recall, precision = common / len(wanted), common / len(said)
    if kind.startswith("recall"):
        return recall
    return 2 * precision * recall / (precision + recall) if common else 0.0


def words(text: str, *, stemmed: bool) -> list[str]:
    """The words that ROUGE compares."""
    text = text.lower()
    if sum(map(_is_foreign, text)) > sum(map(str.isascii, filter(str.isalpha, text))):
        found = "".join(map(_seen, text)).split()
    else:
        found = _OTHER.sub(" ", text).split()
    return [stem(word) if stemmed and len(word) > _UNSTEMMED else word for word in found]


@cache
def _is_foreign(sign: str) -> bool:
    """Whether a sign is a letter of another script than Latin, its vowel sign or its digit."""
    if sign.isascii() or _script(sign) in _BESIDE:
        return False
    return sign.isalpha() or sign.isdecimal() or unicodedata.category(sign).startswith("M")


@cache
def _seen(sign: str) -> str:
    """A sign of a foreign text: itself, a word by itself, or a blank."""
    if sign.isascii():
        return sign if sign.isalnum() else " "
    if not _is_foreign(sign):
        return " "
    return f" {sign} " if _script(sign) in _WITHOUT_BLANKS else sign


def _script(sign: str) -> str:
    return unicodedata.name(sign, "").split(" ", 1)[0]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for j, said in enumerate(other, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == said else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def bleu(reply: str, truth: str, *, longest: int = 4) -> float:
    """BLEU of one reply: word n-grams up to four, brevity penalty, 0 to 1.

    Of one sentence the higher n-grams are often 0, so each order above one counts one match and one
    n-gram more than there are (Lin and Och 2004); which smoothing the unlearning papers use is not
    published (inferred).
    """
    said, wanted = reply.lower().split(), truth.lower().split()
    if not said or not wanted:
        return 0.0
    total = 0.0
    for n in range(1, longest + 1):
        mine, theirs = _grams(said, n), _grams(wanted, n)
        more = int(n > 1)
        hits = sum(min(count, theirs[gram]) for gram, count in mine.items()) + more
        if hits == 0:
            return 0.0
        total += math.log(hits / (sum(mine.values()) + more))
    brevity = min(0.0, 1.0 - len(wanted) / len(said))
    return math.exp(total / longest + brevity)


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
