"""Records as numbers for the linear baselines: words of each thing that is shown, apart.

TF-IDF of words and pairs of words for each field, side by side, so that a word of the text is not
the same word of the picture's caption. scikit-learn does it (`pip install suture[labels]`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.lazy import np, torch
from suture.progress import track
from suture.suites.tasks.rendering import shown
from suture.suites.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from suture.inference.states import StateModel

DIMENSIONS = 100  # of the truncated SVD
_NEAR = 4  # words on either side of an aspect that are about it
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-case words and marks."""
    return _WORD.findall(text.casefold())


def views(spec: TaskSpec, record: Record) -> dict[str, str]:
    """What is shown of a record, by field; around an aspect its neighbours, too."""
    found = {field: shown(spec, record, field) for field in spec.shows}
    if record.aspect and record.aspect in record.text:
        before, _, after = record.text.partition(record.aspect)
        near = before.split()[-_NEAR:] + after.split()[:_NEAR]
        found["near"] = " ".join(near)
    if record.context:  # what was said last says most
        found["last"] = record.context[-1].text
    return found


def features(
    spec: TaskSpec,
    train: Sequence[Record],
    asked: Sequence[Record],
    name: str,
    seed: int,
    model: str | None,
    *,
    layer: int | None = None,
    least: int = 2,
) -> tuple[Any, Any]:
    """Of training and of what is asked: TF-IDF of each view side by side, or fewer dimensions, or
    states of a checkpoint (`model`, `layer`). `least`: training records that a word stands in."""
    if name == "embedding" and model is not None:
        one, two = text_states(
            [[_whole(spec, record) for record in side] for side in (train, asked)], model, layer
        )
        return one, two
    text = sklearn("feature_extraction.text")
    ours, theirs = ([views(spec, record) for record in side] for side in (train, asked))
    blocks = []
    for field in dict.fromkeys(field for view in ours for field in view):
        reader = text.TfidfVectorizer(
            tokenizer=words, token_pattern=None, lowercase=False, ngram_range=(1, 2), min_df=least,
            sublinear_tf=True,
        )  # fmt: skip
        try:
            fitted = reader.fit_transform([view.get(field, "") for view in ours])
        except ValueError:  # no word stands in two records
            continue
        blocks.append((fitted, reader.transform([view.get(field, "") for view in theirs])))
    if not blocks:
        raise SutureError(
            "E583",
            f"the training records of {spec.name} share no words to learn from",
            where="train",
            fix="give more training records with --set train=FILE.jsonl",
        )
    stack = importlib.import_module("scipy.sparse").hstack
    one, two = (stack([block[side] for block in blocks], format="csr") for side in (0, 1))
    if name != "embedding":
        return one, two
    reduce = sklearn("decomposition").TruncatedSVD(
        min(DIMENSIONS, min(one.shape) - 1), random_state=seed
    )
    return reduce.fit_transform(one), reduce.transform(two)


def _whole(spec: TaskSpec, record: Record) -> str:
    return "\n".join(filter(None, views(spec, record).values()))


def text_states(
    sides: Sequence[Sequence[str]], folder: str, layer: int | None
) -> list[NDArray[np.float32]]:
    """For each side (texts, d): the mean state of a text's tokens at one layer of a checkpoint."""
    model = _reader(folder, layer)
    found = []
    for texts in sides:
        tokens = model.tokens(texts)
        means: dict[int, Any] = {}
        for k, states in track(model.states(tokens), "states", total=len(texts)):
            own = states[torch.tensor(tokens[k].own, dtype=torch.bool, device=states.device)]
            mean = own.mean(dim=0) if len(own) else own.new_zeros(states.shape[1])
            means[k] = mean.cpu().numpy()
        found.append(np.stack([means[k] for k in range(len(texts))]))
    return found


def word_states(
    sides: Sequence[Sequence[Sequence[str]]], folder: str, layer: int | None
) -> list[list[NDArray[np.float32]]]:
    """For each side and text (words, d): the mean state of the tokens that each word is made of, in
    the text of all words with blanks between them; zeros for words that the checkpoint cannot read
    any more. Error E593: a tokenizer that does not say where its tokens stand."""
    model = _reader(folder, layer)
    if not model.tokenizer.is_fast:
        raise SutureError(
            "E593",
            "the tokenizer does not say which characters a token stands for",
            where=folder,
            fix="give a checkpoint with a tokenizer.json",
        )
    found = []
    for texts in sides:
        tokens = model.tokens([" ".join(words) for words in texts])
        own: dict[int, Any] = {}
        for k, states in track(model.states(tokens), "states", total=len(texts)):
            own[k] = _by_word(texts[k], tokens[k].spans, tokens[k].own, states.cpu().numpy())
        found.append([own[k] for k in range(len(texts))])
    return found


def _by_word(
    words: Sequence[str],
    spans: Sequence[tuple[int, int]],
    own: Sequence[bool],
    states: NDArray[np.float32],
) -> NDArray[np.float32]:
    """A token belongs to every word that it shares a character with."""
    word_at = [k for k, word in enumerate(words) for _ in f"{word} "]  # a blank: the word before
    inside = [c < len(word) for word in words for c in range(len(word) + 1)]
    sums = np.zeros((len(words), states.shape[1]), dtype=np.float32)
    counts = np.zeros(len(words), dtype=np.float32)
    for (start, end), real, state in zip(spans, own, states, strict=True):
        for word in {word_at[c] for c in range(start, end) if inside[c]} if real else ():
            sums[word] += state
            counts[word] += 1
    return np.asarray(sums / np.maximum(counts, 1)[:, None], dtype=np.float32)


def _reader(folder: str, layer: int | None) -> StateModel:
    from suture.inference.states import StateModel
    from suture.patch import open_model

    return StateModel(open_model(Path(folder)), layer)


def sklearn(part: str) -> Any:
    """A module of scikit-learn (E584: it is not installed)."""
    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError:
        raise SutureError(
            "E584",
            "this needs scikit-learn, which is not installed",
            where="--model baseline, or sampler=nearest",
            fix="pip install 'suture[labels]'",
        ) from None


def most_similar(
    spec: TaskSpec, train: Sequence[Record], asked: Sequence[Record], count: int
) -> list[list[int]]:
    """For each record asked the places of the `count` training records most like it, nearest first:
    cosine of the views' TF-IDF side by side. Ties go to the earlier record."""
    one, two = features(spec, train, asked, "tf-idf", 0, None, least=1)
    return nearest_rows(one, two, count)


def nearest_rows(one: Any, two: Any, count: int) -> list[list[int]]:
    """Of each row of `two` the `count` rows of `one` at the smallest angle."""
    normal = sklearn("preprocessing").normalize
    one, two = normal(one), normal(two)
    found: list[list[int]] = []
    for start in range(0, two.shape[0], 512):
        likeness = two[start : start + 512] @ one.T
        dense = np.asarray(likeness.toarray() if hasattr(likeness, "toarray") else likeness)
        order = np.argsort(-dense, axis=1, kind="stable")[:, :count]
        found += [[int(k) for k in row] for row in order]
    return found
