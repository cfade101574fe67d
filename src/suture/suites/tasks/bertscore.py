"""BERTScore (Zhang et al., ICLR 2020, arXiv 1904.09675) with a checkpoint of the user's own.

A reply x̂ and a reference x are read apart, each token becomes the state of one layer, scaled to
length 1. Every token is matched with the nearest of the other text, by cosine:

    precision  P = Σ_j w(x̂_j) max_i x_i·x̂_j / Σ_j w(x̂_j)
    recall     R = Σ_i w(x_i) max_j x_i·x̂_j / Σ_i w(x_i)
    F1         2 P R / (P + R)

w is 1, or with `idf` log((M + 1) / (M_t + 1)) for a token t that stands in M_t of the task's M
references. What the tokenizer adds at the ends of a text ([CLS], [SEP]) is read and may be matched
but weighs nothing, as in the authors' code (`secondary`). A reply without a token scores 0; where
there are several references, the one with the highest F1 counts. No rescaling: the authors'
baselines are files that are not here, so compare scores of one scoring model and layer only, and
differences rather than levels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.inference.batching import plan_rows
from suture.lazy import torch
from suture.progress import note, track

if TYPE_CHECKING:
    from suture.inference.memory import AnswerCache
    from suture.inference.states import StateModel, Tokens

COLUMNS = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
_BLANK_FIRST = ("gpt2", "roberta")  # as the authors' code does for these two
_PAIRS, _PAIR_TOKENS = 64, 8192  # pairs matched at once, and tokens of one of their sides

Score = tuple[float, float, float]
Weights = dict[int, float]  # of token ids; one that no reference has weighs log(M + 1)


@dataclass(frozen=True)
class Bertscorer:
    """A scoring model. `idf`: tokens weigh by their rarity among the references; `cache`: folder in
    which scores are kept, by scoring model, reply and references."""

    model: StateModel
    idf: bool = False
    cache: Path | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides a score: measurements record it."""
        return {**self.model.identity, "idf": self.idf}

    def score(
        self, pairs: Sequence[tuple[str, Sequence[str]]], among: Iterable[str] | None = None
    ) -> list[Score]:
        """(precision, recall, F1) of each (reply, references), in order. `among`: the references
        that the rarity of tokens is counted in; default those of the pairs."""
        pairs = [
            (self._plain(reply), [self._plain(one) for one in known]) for reply, known in pairs
        ]
        if among is None:
            weights = self._weights(reference for _, known in pairs for reference in known)
        else:
            weights = self._weights(map(self._plain, among))
        if self.cache is None:
            return self._scored(pairs, weights)
        from suture.inference.memory import AnswerCache
        from suture.versions import versions

        about = {key: versions().get(key) for key in ("torch", "transformers", "tokenizers")}
        kept = AnswerCache(self.cache, {"bertscore": self.identity, "versions": about})
        try:
            return self._remembered(kept, pairs, weights)
        finally:
            kept.close()

    def _plain(self, text: str) -> str:
        """Without blanks at its ends; behind one for tokenizers that write words with theirs."""
        text = text.strip()
        spaced = self.model.config.model_type in _BLANK_FIRST
        return f" {text}" if text and spaced else text

    def _remembered(
        self,
        kept: AnswerCache,
        pairs: Sequence[tuple[str, Sequence[str]]],
        weights: Weights | None,
    ) -> list[Score]:
        idf = None if weights is None else _digest(weights)
        asked = [{"reply": reply, "references": list(known), "idf": idf} for reply, known in pairs]
        found: list[Any] = [kept.get(question) for question in asked]
        missing = [k for k, one in enumerate(found) if one is None]
        new = self._scored([pairs[k] for k in missing], weights)
        for k, one in zip(missing, new, strict=True):
            kept.put(asked[k], list(one))
            found[k] = one
        return [(one[0], one[1], one[2]) for one in found]

    def _weights(self, references: Iterable[str]) -> Weights | None:
        if not self.idf:
            return None
        texts = self.model.tokens(list(references))
        having = Counter(token for text in texts for token in set(text.ids))
        found = {token: math.log((len(texts) + 1) / (n + 1)) for token, n in having.items()}
        return {-1: math.log(len(texts) + 1), **found}  # -1: of tokens in none

    def _scored(
        self, pairs: Sequence[tuple[str, Sequence[str]]], weights: Weights | None
    ) -> list[Score]:
        texts = list(dict.fromkeys(text for reply, known in pairs for text in (reply, *known)))
        place = {text: k for k, text in enumerate(texts)}
        tokens = self.model.tokens(texts)
        if cut := sum(text.cut for text in tokens):
            note(f"bertscore: {cut} texts are cut to the {self.model.context} tokens that "
                 "the scoring model can read")  # fmt: skip
        jobs = [
            (i, place[reply], place[one])
            for i, (reply, known) in enumerate(pairs)
            for one in known
            if tokens[place[reply]].ids and tokens[place[one]].ids
        ]
        best: dict[int, Score] = {}
        lengths = [max(len(tokens[a].ids), len(tokens[b].ids)) for _, a, b in jobs]
        plan = plan_rows(lengths, max_rows=_PAIRS, max_tokens=_PAIR_TOKENS)
        for rows in track(plan, "bertscore"):
            needed = sorted({side for k in rows for side in jobs[k][1:]})
            states: dict[int, torch.Tensor] = {}
            for k, found in self.model.states([tokens[side] for side in needed]):
                states[needed[k]] = torch.nn.functional.normalize(found, dim=-1)
            replies, references = (
                _Side([tokens[jobs[k][side]] for k in rows], [states[jobs[k][side]] for k in rows],
                      weights)
                for side in (1, 2)
            )  # fmt: skip
            for k, one in zip(rows, greedy(replies, references), strict=True):
                item = jobs[k][0]
                if item not in best or one[2] > best[item][2]:
                    best[item] = one
        return [best.get(i, (0.0, 0.0, 0.0)) for i in range(len(pairs))]


def _digest(weights: Weights) -> str:
    return hashlib.sha256(json.dumps(sorted(weights.items())).encode()).hexdigest()


class _Side:
    """The replies, or the references, of some pairs: states (pairs, longest, d), which tokens there
    are and how much each weighs, (pairs, longest) both."""

    def __init__(
        self, texts: Sequence[Tokens], states: Sequence[torch.Tensor], weights: Weights | None
    ) -> None:
        pad = torch.nn.utils.rnn.pad_sequence
        self.states = pad(list(states), batch_first=True)
        device = self.states.device
        there = [torch.ones(len(text.ids), dtype=torch.bool, device=device) for text in texts]
        self.there = pad(there, batch_first=True)
        each = [torch.tensor(_weigh(text, weights), device=device) for text in texts]
        self.weight = pad(each, batch_first=True)


def _weigh(text: Tokens, weights: Weights | None) -> list[float]:
    """How much each token counts; all alike where every one of them stands in all references."""
    plain = [float(own) for own in text.own]
    if weights is None:
        return plain
    rare = [one * weights.get(k, weights[-1]) for one, k in zip(plain, text.ids, strict=True)]
    return rare if any(rare) else plain


def greedy(replies: _Side, references: _Side) -> list[Score]:
    """Precision, recall and F1 of each pair; 0 where a side has no token of its own."""
    alike = torch.bmm(replies.states, references.states.transpose(1, 2))
    none = torch.finfo(alike.dtype).min
    alike = alike.masked_fill(~(replies.there[:, :, None] & references.there[:, None, :]), none)
    sides = []
    for side, nearest in ((replies, alike.amax(2)), (references, alike.amax(1))):
        total = side.weight.sum(1)
        found = (nearest.masked_fill(~side.there, 0.0) * side.weight).sum(1)
        sides.append((found / total.clamp(min=1e-12), total > 0))
    (p, said), (r, known) = sides
    both = said & known
    p, r = p.where(both, 0.0), r.where(both, 0.0)
    f = torch.where(p + r > 0, 2 * p * r / (p + r).clamp(min=1e-12), 0.0)
    table = torch.stack([p, r, f], dim=1).double().cpu().tolist()
    return [(row[0], row[1], row[2]) for row in table]
