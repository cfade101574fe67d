"""What answers without a language model: the least that anything which reads the text should beat.

    majority    the answer that is right most often in the training records; of scores their mean
    lexicon     words that go with an answer in training (log-odds with an informative prior, Monroe
                et al. 2008), counted; of spans the pieces of training, found again
    tf-idf      a linear model on words and pairs of words; of spans one on each word and its
                neighbours; of a text the reply to the most similar training text
    embedding   a linear model on 100 dimensions of the words (truncated SVD), or, with
                model=DIR, on a checkpoint's mean state at one layer (layer=N, default three
                quarters of the way up); of spans on its states of each word, so a checkpoint
                must be given

All learn from the training records, on a CPU, and give values as the task's parser gives them.
scikit-learn (`pip install suture[labels]`) does the last two. Spans and tuples are in `tagging`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.lazy import np
from suture.suites.tasks import tagging
from suture.suites.tasks.features import features, nearest_rows, sklearn, views, words
from suture.suites.tasks.gold import gold_of
from suture.suites.tasks.spec import (
    LabelAnswer,
    LabelsAnswer,
    PairsAnswer,
    ScoreAnswer,
    SpansAnswer,
    TaskSpec,
)

BASELINES = ("majority", "lexicon", "tf-idf", "embedding")
_PRIOR = 500.0  # words' worth of prior in a log-odds, a tenth of all words at most
_CREDIBLE = 1.96  # standard errors at which a word is one of a label's


def learn(
    name: str,
    spec: TaskSpec,
    train: Sequence[Record],
    asked: Sequence[Record],
    *,
    seed: int = 0,
    model: str | None = None,
    layer: int | None = None,
) -> list[Any]:
    """The answers of baseline `name` to `asked`. Errors: E583 no training records, or a baseline
    that has nothing to say on such answers, E584 scikit-learn is not installed."""
    golds = [gold_of(spec, record) for record in train]
    if not golds:
        raise SutureError(
            "E583",
            f"nothing to learn {spec.name} from: no training record says what is right",
            where="train",
            fix="give --set train=FILE.jsonl, records with gold, or another split",
        )
    if name == "majority":
        return [_majority(spec, golds)] * len(asked)
    if isinstance(spec.answer, SpansAnswer | PairsAnswer):
        return tagging.learn(name, spec, train, golds, asked, seed=seed,
                             model=model if name == "embedding" else None, layer=layer)  # fmt: skip
    elif isinstance(spec.answer, LabelAnswer | LabelsAnswer | ScoreAnswer):
        if name == "lexicon":
            return _lexicon(spec, train, golds, asked)
        one, two = features(spec, train, asked, name, seed, model, layer=layer)
        return _linear(spec, one, golds, two, seed)
    elif name != "lexicon":
        one, two = features(spec, train, asked, name, seed, model, layer=layer)
        return [golds[near[0]] for near in nearest_rows(one, two, 1)]
    raise SutureError(
        "E583",
        f"the baseline {name} has no answers of kind {spec.answer.kind}",
        where=f"task {spec.name}",
        fix="use --model baseline:tf-idf",
    )


def _majority(spec: TaskSpec, golds: Sequence[Any]) -> Any:
    if isinstance(spec.answer, ScoreAnswer):
        return math.fsum(golds) / len(golds)
    if isinstance(spec.answer, LabelsAnswer):  # all orders of a set are one answer
        golds = [[label for label in spec.answer.labels if label in gold] for gold in golds]
    counts = Counter(json.dumps(gold, ensure_ascii=False) for gold in golds)
    return json.loads(counts.most_common(1)[0][0])


def _linear(spec: TaskSpec, one: Any, golds: Sequence[Any], two: Any, seed: int) -> list[Any]:
    """Logistic regression of labels, ridge regression of scores."""
    linear = sklearn("linear_model")
    if isinstance(spec.answer, ScoreAnswer):
        said = linear.Ridge(alpha=1.0).fit(one, golds).predict(two)
        low, high = spec.answer.low, spec.answer.high
        return [float(x) for x in np.clip(said, low, high)]
    if isinstance(spec.answer, LabelAnswer):
        if len(set(golds)) == 1:
            return [golds[0]] * two.shape[0]
        chosen = linear.LogisticRegression(C=4.0, max_iter=1000, random_state=seed).fit(one, golds)
        return [str(label) for label in chosen.predict(two)]
    assert isinstance(spec.answer, LabelsAnswer)
    found: list[list[str]] = [[] for _ in range(two.shape[0])]
    for label in spec.answer.labels:
        has = [label in gold for gold in golds]
        if len(set(has)) == 1:
            said = [has[0]] * two.shape[0]
        else:  # rare labels would never reach one half
            alone = linear.LogisticRegression(
                solver="liblinear", class_weight="balanced", random_state=seed
            )
            said = alone.fit(one, has).predict(two)
        for labels, yes in zip(found, said, strict=True):
            labels += [label] if yes else []
    return found


def _lexicon(
    spec: TaskSpec, train: Sequence[Record], golds: Sequence[Any], asked: Sequence[Record]
) -> list[Any]:
    read = [Counter(words(" ".join(views(spec, record).values()))) for record in train]
    heard = [Counter(words(" ".join(views(spec, record).values()))) for record in asked]
    if isinstance(spec.answer, ScoreAnswer):
        return _scored(spec.answer, read, golds, heard)
    assert isinstance(spec.answer, LabelAnswer | LabelsAnswer)
    several = isinstance(spec.answer, LabelsAnswer)
    lists = {
        label: log_odds(read, [label in gold if several else label == gold for gold in golds])
        for label in spec.answer.labels
    }
    usual = _majority(spec, golds)
    found: list[Any] = []
    for text in heard:
        sums = {label: sum(odds[w] for w in text if w in odds) for label, odds in lists.items()}
        best = max(sums, key=lambda label: sums[label])
        said = best if sums[best] > 0 else None
        found.append(usual if said is None else [said] if several else said)
    return found


def log_odds(texts: Sequence[Counter[str]], has: Sequence[bool]) -> dict[str, float]:
    """Words that texts which have it use more than others: their z-scores, credible ones only."""
    inside: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    for text, yes in zip(texts, has, strict=True):
        (inside if yes else outside).update(text)
    total_in, total_out = inside.total(), outside.total()
    if not total_in or not total_out:
        return {}
    weight = min(_PRIOR, (total_in + total_out) / 10)
    found = {}
    for word in inside:
        prior = weight * (inside[word] + outside[word]) / (total_in + total_out)
        a, b = inside[word] + prior, outside[word] + prior
        gap = math.log(a / (total_in + weight - a)) - math.log(b / (total_out + weight - b))
        z = gap / math.sqrt(1 / a + 1 / b)
        if z > _CREDIBLE:
            found[word] = z
    return found


def _scored(
    answer: ScoreAnswer,
    read: Sequence[Counter[str]],
    golds: Sequence[float],
    heard: Sequence[Counter[str]],
) -> list[float]:
    """The mean score of the texts each word stands in, drawn to the overall mean by five texts'
    worth, averaged over the words."""
    overall = math.fsum(golds) / len(golds)
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for text, gold in zip(read, golds, strict=True):
        for word in text:
            sums[word] += gold - overall  # type: ignore[assignment]
            counts[word] += 1
    found = []
    for text in heard:
        pulls = [sums[word] / (counts[word] + 5.0) for word in text if word in counts]
        value = overall + (math.fsum(pulls) / len(pulls) if pulls else 0.0)
        found.append(min(max(value, answer.low), answer.high))
    return found
