"""What is wrong with a configuration, in our words and not in pydantic's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.training.recipe import TrainRecipe

GOOD: dict[str, Any] = {"model": "m", "data": "rows.jsonl", "train": {"steps": 1}}
THEIRS = ("Input", "tag", "unable to parse", "instance of", "Field required", "valid")


class Small(FrozenConfig):
    count: int = 1
    share: float = 0.5
    kind: str | None = None
    on: bool = False
    where: Path = Path()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": {"name": "gradient-asent"}}, "did you mean 'gradient-ascent'"),
        ({"objective": {"name": "rlkd", "alpha": 8}}, "did you mean 'rkld'"),
        ({"objective": {"name": "rkld", "alfa": 8}}, "unknown key 'objective.alfa'"),
        ({"objective": {"name": "rkld", "alfa": 8}}, "did you mean 'alpha'"),
        ({"objective": {"name": "npo", "alpha": 8}}, "known keys: retain, retain_weight, name, b"),
        ({"objective": {"cap": 3}}, "'objective': it has no 'name'"),
        ({"objective": {"name": "gradient-ascent", "cpa": 3}}, "did you mean 'cap'"),
        ({"objective": {"name": "gradient-ascent", "cap": "high"}}, "'objective.cap': 'high' is"),
        ({"train": {"steps": "many"}}, "'many' is not a whole number"),
        ({"train": {"steps": 1, "learning_rate": "fast"}}, "'fast' is not a number"),
        ({"loss": "respons"}, "did you mean 'response'"),
        ({"data": []}, "at least 1"),
        ({"model": 3}, "3 is not a path"),
        ({"data": [{"limit": 3}]}, "'data.0.file': it is missing"),
        ({"train": None}, "None is not a mapping of keys to values"),
    ],
)
def test_a_training_recipe_is_refused_in_plain_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SutureError) as caught:
        TrainRecipe.load({**GOOD, **change}, where="r.yaml")
    shown = str(caught.value)
    assert words in shown
    assert not [word for word in THEIRS if word in shown]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 1.5}, "1.5 is not a whole number"),
        ({"share": [1]}, "[1] is not a number"),
        ({"kind": 4}, "4 is not a text"),
        ({"on": "perhaps"}, "'perhaps' is not true or false"),
    ],
)
def test_values_of_another_kind(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SutureError) as caught:
        Small.load(values)
    assert words in str(caught.value)
    assert caught.value.code == "E702"
