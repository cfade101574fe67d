"""Baselines for spans and tuples: words tagged one by one, pairs of utterances chosen one by one.

    lexicon     pieces that were right in training more often than not, found again, the longest
                first; in a tuple each with its most frequent other parts
    tf-idf      a linear model over a word, its form and its neighbours decides where a piece begins
                and goes on, and which label it has; of two numbers and a label, one over the words
                of both utterances and their distance

Gold pieces are texts: they are looked for in the words of the text, the first place counts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.suites.tasks.features import sklearn, words
from suture.suites.tasks.spec import PairsAnswer, TaskSpec

OUTSIDE = "O"
_FARTHEST = 8  # utterances between an emotion and its cause
_UTTERANCE = re.compile(r"^(\d+)\. (?:([^:\n]{1,40}): )?(.*)$", re.MULTILINE)


def learn(
    name: str,
    spec: TaskSpec,
    train: Sequence[Record],
    golds: Sequence[Any],
    asked: Sequence[Record],
    *,
    seed: int,
) -> list[Any]:
    """Spans, or tuples of one span and labels, or of two numbers and perhaps a label (E583: tuples
    of another form)."""
    kinds = (
        [p.kind for p in spec.answer.parts] if isinstance(spec.answer, PairsAnswer) else ["span"]
    )
    if kinds.count("number") == 2 and "span" not in kinds:
        return _links(name, kinds, train, golds, asked, seed)
    if kinds.count("span") != 1 or "number" in kinds:
        raise SutureError(
            "E583",
            f"the baseline {name} has no tuples of {', '.join(kinds)}",
            where=f"task {spec.name}",
            fix="use --model baseline:majority",
        )
    place = kinds.index("span")
    tables = [[_split(row, place, kinds) for row in gold] for gold in golds]
    find = _dictionary(train, tables) if name == "lexicon" else _tagger(train, tables, seed)
    found = []
    for record in asked:
        rows = [_joined(piece, rest, place, kinds) for piece, rest in find(record.text.split())]
        found.append([json.loads(one) for one in dict.fromkeys(json.dumps(row) for row in rows)])
    return found


def _split(row: Any, place: int, kinds: Sequence[str]) -> tuple[str, str]:
    """(piece, the other parts as JSON) of a tuple; a bare span has none."""
    if len(kinds) == 1:
        return str(row), "[]"
    rest = [part for k, part in enumerate(row) if k != place]
    return str(row[place]), json.dumps(rest, ensure_ascii=False)


def _joined(piece: str, rest: str, place: int, kinds: Sequence[str]) -> Any:
    if len(kinds) == 1:
        return piece
    parts = json.loads(rest)
    return [*parts[:place], piece, *parts[place:]]


def _dictionary(train: Sequence[Record], tables: Sequence[Any]) -> Any:
    right: dict[tuple[str, ...], Counter[str]] = {}
    for table in tables:
        for piece, rest in table:
            right.setdefault(tuple(piece.casefold().split()), Counter())[rest] += 1
    longest = max(map(len, right), default=0)
    stands: Counter[tuple[str, ...]] = Counter()
    for record in train:
        tokens = record.text.casefold().split()
        stands.update(_runs(tokens, longest))
    kept = {key: c for key, c in right.items() if 2 * c.total() >= stands[key]}

    def find(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
        lower, at = [token.casefold() for token in tokens], 0
        while at < len(tokens):
            for size in range(min(longest, len(tokens) - at), 0, -1):
                if (key := tuple(lower[at : at + size])) in kept:
                    yield " ".join(tokens[at : at + size]), kept[key].most_common(1)[0][0]
                    at += size
                    break
            else:
                at += 1

    return find


def _runs(tokens: Sequence[str], longest: int) -> Iterator[tuple[str, ...]]:
    for size in range(1, longest + 1):
        for at in range(len(tokens) - size + 1):
            yield tuple(tokens[at : at + size])


def _tagger(train: Sequence[Record], tables: Sequence[Any], seed: int) -> Any:
    """B|REST where a piece begins, I|REST where it goes on, O elsewhere."""
    rows, tags = [], []
    for record, table in zip(train, tables, strict=True):
        tokens = record.text.split()
        own = [OUTSIDE] * len(tokens)
        for piece, rest in table:
            at = _where(piece.split(), tokens)
            for k in range(len(piece.split()) if at is not None else 0):
                own[(at or 0) + k] = f"{'I' if k else 'B'}|{rest}"
        rows += [_token(tokens, k) for k in range(len(tokens))]
        tags += own
    predict = _classifier(rows, tags, seed)

    def find(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
        said = predict([_token(tokens, k) for k in range(len(tokens))]) if tokens else []
        start, rest = None, ""
        for k, tag in enumerate([*said, OUTSIDE]):
            if start is not None and not tag.startswith("I|"):
                yield " ".join(tokens[start:k]), rest
                start = None
            if tag != OUTSIDE and start is None:
                start, rest = k, tag.partition("|")[2]

    return find


def _where(piece: Sequence[str], tokens: Sequence[str]) -> int | None:
    size = len(piece)
    places = range(len(tokens) - size + 1 if size else 0)
    return next((at for at in places if list(tokens[at : at + size]) == list(piece)), None)


def _token(tokens: Sequence[str], at: int) -> dict[str, Any]:
    """A word, its form and its neighbours."""
    found: dict[str, Any] = {"bias": 1.0}
    for gap in (-2, -1, 0, 1, 2):
        word = tokens[at + gap] if 0 <= at + gap < len(tokens) else "<none>"
        found[f"{gap}:word={word.casefold()}"] = 1.0
        found[f"{gap}:form={_form(word)}"] = 1.0
    found[f"start={tokens[at][:3].casefold()}"] = 1.0
    found[f"end={tokens[at][-3:].casefold()}"] = 1.0
    return found


def _form(word: str) -> str:
    """Xx for Oklahoma, XX for USA, 9 for 1934: runs of a kind as one letter or two."""
    shape = re.sub(r"[A-Z]", "X", re.sub(r"[a-z]", "x", re.sub(r"\d", "9", word)))
    return re.sub(r"(.)\1+", r"\1\1", shape)


def _classifier(rows: Sequence[Mapping[str, Any]], tags: Sequence[str], seed: int) -> Any:
    if len(set(tags)) == 1:
        return lambda asked: [tags[0]] * len(asked)
    reader = sklearn("feature_extraction").FeatureHasher(2**18, alternate_sign=False)
    linear = sklearn("linear_model").SGDClassifier(
        loss="log_loss", alpha=1e-5, max_iter=15, tol=None, random_state=seed
    )
    linear.fit(reader.transform(rows), tags)
    return lambda asked: [str(tag) for tag in linear.predict(reader.transform(asked))]


def _links(
    name: str,
    kinds: Sequence[str],
    train: Sequence[Record],
    golds: Sequence[Any],
    asked: Sequence[Record],
    seed: int,
) -> list[Any]:
    """(from, to[, label]) between numbered utterances of the text."""
    one, two = (place for place, kind in enumerate(kinds) if kind == "number")
    rows, tags = [], []
    for record, gold in zip(train, golds, strict=True):
        right = {
            (link[one], link[two]): json.dumps(
                [part for k, part in enumerate(link) if k not in (one, two)]
            )
            for link in gold
        }
        for pair, row in _candidates(record.text):
            rows.append(row)
            tags.append(right.get(pair, OUTSIDE))
    if name == "lexicon":
        rows = [_words_only(row) for row in rows]
    predict = _classifier(rows, tags, seed)
    found = []
    for record in asked:
        pairs = list(_candidates(record.text))
        features = [_words_only(row) if name == "lexicon" else row for _, row in pairs]
        said = predict(features) if features else []
        links = []
        for (pair, _), tag in zip(pairs, said, strict=True):
            if tag != OUTSIDE:
                rest = iter(json.loads(tag))
                numbers = dict(zip((one, two), pair, strict=True))
                links.append([numbers.get(k) or next(rest) for k in range(len(kinds))])
        found.append(links)
    return found


def _words_only(row: Mapping[str, Any]) -> dict[str, Any]:
    """A lexicon counts words and knows no places."""
    return {key: value for key, value in row.items() if "word=" in key or key == "bias"}


def _candidates(text: str) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """Every (utterance, one up to `_FARTHEST` before it or itself) with what may tell."""
    lines = [(int(n), speaker, words(said)) for n, speaker, said in _UTTERANCE.findall(text)]
    for k, (number, speaker, said) in enumerate(lines):
        for other, who, heard in lines[max(0, k - _FARTHEST) : k + 1]:
            row: dict[str, Any] = {"bias": 1.0, f"gap={number - other}": 1.0}
            row[f"same={who == speaker},{number == other}"] = 1.0
            row |= {f"one:word={word}": 1.0 for word in said}
            row |= {f"two:word={word}": 1.0 for word in heard}
            yield (number, other), row
