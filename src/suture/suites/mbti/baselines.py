"""What a model has to beat: constant answers, and words alone.

`mean` and `majority` give everybody the same answer, the best of its kind on these very rows.
`tf-idf` is a linear model of the posts' words, fitted on four fifths of the people and asked about
the rest, five times over, so nobody is judged by a model that has seen them; `seed` draws who is in
which fifth.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture.errors import SutureError
from suture.rng import uniform
from suture.suites.mbti.asking import Form
from suture.suites.mbti.columns import constants, truth
from suture.suites.mbti.records import Trait
from suture.suites.tasks.features import sklearn, words

NAMES = ("mean", "majority", "tf-idf")
FOLDS = 5
_FORMS: dict[str, Form] = {"mean": "soft", "majority": "hard"}


def replies(name: str, items: Sequence[Trait], form: Form, *, seed: int) -> list[str]:
    """The baseline's replies in the form that is asked for.

    Errors: E567 the baseline answers in the other form, a dimension that too few have a label of;
    E584 scikit-learn is not installed (`tf-idf`).
    """
    if _FORMS.get(name, form) != form:
        raise SutureError(
            "E567",
            f"the baseline {name} answers in the {_FORMS[name]} form, not in the {form}",
            fix=f"--set form={_FORMS[name]}, or another of {', '.join(NAMES)}",
        )
    if name == "tf-idf":
        said = _learnt(items, form, seed)
    else:
        constant = constants(items, form)
        _labelled(name, form, {item.dimension for item in items} - set(constant))
        said = [constant[item.dimension] for item in items]
    if form == "soft":
        return [f"[[{1 + 8 * value:.3f}]]" for value in said]
    return [f"CHOICE: {'AB'[int(value)]}" for value in said]


def _learnt(items: Sequence[Trait], form: Form, seed: int) -> list[float]:
    """By dimension ridge regression of scores, or logistic regression of sides."""
    text, linear = sklearn("feature_extraction.text"), sklearn("linear_model")
    posts = {item.person: item.posts for item in items}
    folds = _folds(list(posts), seed)
    names = list(dict.fromkeys(item.dimension for item in items))
    counts = text.CountVectorizer(
        tokenizer=words, token_pattern=None, lowercase=False, ngram_range=(1, 2), min_df=2
    ).fit_transform(posts.values())
    places = {person: place for place, person in enumerate(posts)}
    said: dict[str, float] = {}
    for fold in range(FOLDS):
        others = [place for person, place in places.items() if folds[person] != fold]
        weights = text.TfidfTransformer(sublinear_tf=True).fit(counts[others])
        read = weights.transform(counts)
        for name in names:
            own = [item for item in items if item.dimension == name]
            asked = [item for item in own if folds[item.person] == fold]
            known = [(item, truth(item, form)) for item in own if folds[item.person] != fold]
            train = [(item, gold) for item, gold in known if gold is not None]
            _labelled("tf-idf", form, {name} if len({gold for _, gold in train}) < 2 else set())
            if asked:
                model = linear.Ridge() if form == "soft" else linear.LogisticRegression(C=4.0)
                rows = [places[item.person] for item, _ in train]
                model.fit(read[rows], [gold for _, gold in train])
                values = model.predict(read[[places[item.person] for item in asked]])
                said |= {item.id: float(x) for item, x in zip(asked, values, strict=True)}
    return [min(max(said[item.id], 0.0), 1.0) for item in items]


def _folds(people: Sequence[str], seed: int) -> dict[str, int]:
    """Every person's fifth: the same whatever the order of the rows."""
    names = sorted(set(people))
    order = uniform(seed, "personality/folds", 0, len(names)).argsort(kind="stable")
    return {names[place]: rank % FOLDS for rank, place in enumerate(order)}


def _labelled(name: str, form: Form, lost: set[str]) -> None:
    if lost:
        raise SutureError(
            "E567",
            f"{name}: too few people have a {form} label of {', '.join(sorted(lost))}",
            why="the baseline is made from the labels",
            fix="give labelled people with --data, or labels with --set labels=FILE",
        )
