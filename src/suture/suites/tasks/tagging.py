"""Baselines for spans and tuples: words tagged one by one, pairs of utterances chosen one by one.

    lexicon     pieces that were right in training more often than not, found again, the longest
                first; in a tuple each with its most frequent other parts
    tf-idf      a linear model over a word, its form and its neighbours decides where a piece begins
                and goes on, and which label it has; of two numbers and a label, one over the words
                of both utterances and their distance
    embedding   the same decisions of a linear model over a checkpoint's state of a word and of the
                one behind it, which a decoder has not read yet; pieces only

Gold pieces are texts: they are looked for in the words of the text, the first place counts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.lazy import np
from suture.suites.tasks.features import sklearn, word_states, words
from suture.suites.tasks.spec import PairsAnswer, TaskSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    model: str | None = None,
    layer: int | None = None,
) -> list[Any]:
    """Spans, or tuples of one span and labels, or of two numbers and perhaps a label (E583: tuples
    of another form, or `embedding` without a checkpoint). `model`, `layer`: of `embedding`."""
    kinds = (
        [p.kind for p in spec.answer.parts] if isinstance(spec.answer, PairsAnswer) else ["span"]
    )
    if name == "embedding" and model is None:
        raise SutureError(
            "E583",
            "the baseline embedding needs a checkpoint where pieces of a text are asked for",
            where=f"task {spec.name}",
            fix="use --model baseline:embedding,model=DIR, or --model baseline:tf-idf",
        )
    if kinds.count("number") == 2 and "span" not in kinds and name != "embedding":
        return _links(name, kinds, train, golds, asked, seed)
    if kinds.count("span") != 1 or "number" in kinds:
        raise SutureError(
            "E583",
            f"the baseline {name} has no tuples of {', '.join(kinds)}",
            where=f"task {spec.name}",
            fix=f"use --model baseline:{'tf-idf' if 'span' not in kinds else 'majority'}",
        )
    place = kinds.index("span")
    tables = [[_split(row, place, kinds) for row in gold] for gold in golds]
    texts = [record.text.split() for record in asked]
    if name == "lexicon":
        find = _dictionary(train, tables)
        pieces = [list(find(tokens)) for tokens in texts]
    else:
        known = [record.text.split() for record in train]
        one, two = (
            ([_surface(tokens) for tokens in side] for side in (known, texts))
            if model is None
            else (beside(side) for side in word_states((known, texts), model, layer))
        )
        said = _tagger(one, _tags(known, tables), two, seed)
        pieces = [_pieces(tokens, tags) for tokens, tags in zip(texts, said, strict=True)]
    found = []
    for own in pieces:
        rows = [_joined(piece, rest, place, kinds) for piece, rest in own]
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


def _tags(known: Sequence[Sequence[str]], tables: Sequence[Any]) -> list[list[str]]:
    """B|REST where a piece begins, I|REST where it goes on, O elsewhere."""
    found = []
    for tokens, table in zip(known, tables, strict=True):
        own = [OUTSIDE] * len(tokens)
        for piece, rest in table:
            at = _where(piece.split(), tokens)
            for k in range(len(piece.split()) if at is not None else 0):
                own[(at or 0) + k] = f"{'I' if k else 'B'}|{rest}"
        found.append(own)
    return found


def _pieces(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
    """The pieces that the tags mark, and what the tags say of each."""
    found: list[tuple[str, str]] = []
    start, rest = None, ""
    for k, tag in enumerate([*tags, OUTSIDE]):
        if start is not None and not tag.startswith("I|"):
            found.append((" ".join(tokens[start:k]), rest))
            start = None
        if tag != OUTSIDE and start is None:
            start, rest = k, tag.partition("|")[2]
    return found


def _tagger(
    one: Iterable[Any], tags: Sequence[Sequence[str]], two: Iterable[Any], seed: int
) -> list[list[str]]:
    """The tags of each word of each text asked. `one`, `two`: the words of training and of what is
    asked, each a mapping of features or a vector."""
    rows, asked = [word for text in one for word in text], list(two)
    predict = _classifier(rows, [tag for own in tags for tag in own], seed)
    said = iter(predict([word for text in asked for word in text]))
    return [[next(said) for _ in text] for text in asked]


def beside(texts: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Each word's vector and its follower's, zeros behind the last: (words, 2 d)."""
    found = []
    for vectors in texts:
        after = np.zeros_like(vectors)
        after[:-1] = vectors[1:]
        found.append(np.concatenate([vectors, after], axis=1))
    return found


def _surface(tokens: Sequence[str]) -> list[dict[str, Any]]:
    return [_token(tokens, k) for k in range(len(tokens))]


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


def _classifier(rows: Sequence[Any], tags: Sequence[str], seed: int) -> Any:
    """Of mappings of features, or of vectors, which are brought to mean 0 and variance 1."""
    if len(set(tags)) == 1:
        return lambda asked: [tags[0]] * len(asked)
    linear, vectors = sklearn("linear_model").SGDClassifier, not isinstance(rows[0], Mapping)
    if vectors:
        reader = sklearn("preprocessing").StandardScaler().fit(np.stack(rows))
        chosen = linear(
            loss="log_loss", alpha=1e-4, max_iter=15, tol=None, average=True, random_state=seed
        )
    else:
        reader = sklearn("feature_extraction").FeatureHasher(2**18, alternate_sign=False)
        chosen = linear(loss="log_loss", alpha=1e-5, max_iter=15, tol=None, random_state=seed)

    def read(words: Sequence[Any]) -> Any:
        return reader.transform(np.stack(words) if vectors else words)

    chosen.fit(read(rows), tags)
    return lambda asked: [str(tag) for tag in chosen.predict(read(asked))] if asked else []


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
