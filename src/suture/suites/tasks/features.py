"""Records as numbers for the linear baselines: words of each thing that is shown, apart.

TF-IDF of words and pairs of words for each field, side by side, so that a word of the text is not
the same word of the picture's caption. scikit-learn does it (`pip install suture[labels]`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.lazy import np, torch
from suture.suites.tasks.rendering import shown
from suture.suites.tasks.spec import TaskSpec

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
    least: int = 2,
) -> tuple[Any, Any]:
    """Of training and of what is asked: TF-IDF of each view side by side, or fewer dimensions.
    `least`: training records that a word has to stand in."""
    if name == "embedding" and model is not None:
        return hidden_states(spec, train, model), hidden_states(spec, asked, model)
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


def hidden_states(spec: TaskSpec, records: Sequence[Record], folder: str) -> Any:
    """(records, hidden): the last hidden state of a checkpoint, averaged over the tokens."""
    from suture.inference import load
    from suture.patch import open_model

    lm = load(open_model(Path(folder)))
    found = []
    for record in records:
        text = "\n".join(filter(None, views(spec, record).values()))
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        row = torch.tensor([ids[: lm.within(len(ids))] or [lm.pad]], device=lm.device)
        with torch.inference_mode():
            out = lm.model(input_ids=row, output_hidden_states=True)
        found.append(out.hidden_states[-1][0].float().mean(dim=0).cpu().numpy())
    return np.stack(found)


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
