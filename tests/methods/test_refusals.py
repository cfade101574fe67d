from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suture.checkpoint import Checkpoint
from suture.data import Pair, encode
from suture.errors import SutureError
from suture.inference import LoadedModel, Reply, load
from suture.methods import opens_as_refusal, safety_refusals

ASKED: list[int] = []  # max_new_tokens of each call
SAID = {"a": "I cannot help.", "b": "Sure, here is", "c": "  ", "d": "I’m sorry, no."}


@pytest.fixture
def lm(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A model that says what `SAID` holds."""
    import suture.inference

    def say(lm: LoadedModel, prompts: list[str], **options: Any) -> list[Reply]:
        ASKED.append(options["max_new_tokens"])
        return [Reply(SAID[prompt], 3, True) for prompt in prompts]

    monkeypatch.setattr(suture.inference, "generate", say)
    return load(Checkpoint.open(tiny()))


def rows(*prompts: str) -> list[Pair]:
    return [Pair(id=prompt, prompt=prompt, category="x") for prompt in prompts]


def test_only_refusals_are_kept_in_order(lm: LoadedModel) -> None:
    kept = safety_refusals(lm, rows("d", "b", "a", "c"))
    assert [(row.id, row.response) for row in kept] == [("d", SAID["d"]), ("a", SAID["a"])]
    assert kept[0].category == "x"


def test_given_responses_are_never_judged(lm: LoadedModel) -> None:
    given = [Pair(id="1", prompt="b", response="Sure."), *rows("a")]
    assert safety_refusals(lm, given)[0] == given[0]


def test_the_switch_keeps_all_but_empty_replies(lm: LoadedModel) -> None:
    kept = safety_refusals(lm, rows("a", "b", "c", "d"), only_refusals=False)
    assert [row.id for row in kept] == ["a", "b", "d"]


def test_another_judge_may_decide(lm: LoadedModel) -> None:
    kept = safety_refusals(lm, rows("a", "b"), is_refusal=lambda text: "Sure" in text)
    assert [row.id for row in kept] == ["b"]


@pytest.mark.parametrize(("given", "asked"), [(512, None), (7, 7)])
def test_replies_are_limited_to_what_the_context_leaves(
    lm: LoadedModel, given: int, asked: int | None
) -> None:
    longest = max(len(encode(lm.tokenizer, lm.template, prompt).ids) for prompt in SAID)
    safety_refusals(lm, rows("a", "d"), max_new_tokens=given)
    assert ASKED[-1] == (512 - longest if asked is None else asked)


def test_a_prompt_that_fills_the_context_is_refused(tiny: Callable[..., Path]) -> None:
    lm = load(Checkpoint.open(tiny()))
    prompt = "the fox"
    lm.model.config.max_position_embeddings = len(encode(lm.tokenizer, lm.template, prompt).ids)
    with pytest.raises(SutureError) as caught:
        safety_refusals(lm, rows(prompt))
    assert caught.value.code == "E506"


def test_no_refusal_at_all_is_an_error(lm: LoadedModel) -> None:
    with pytest.raises(SutureError) as caught:
        safety_refusals(lm, rows("b", "c"))
    assert caught.value.code == "E404"


@pytest.mark.parametrize("text", ["Sorry, but no.", '"I can’t do that."', "  I AM UNABLE to"])
def test_openings_that_refuse(text: str) -> None:
    assert opens_as_refusal(text)


@pytest.mark.parametrize("text", ["", "Sure. I cannot stop.", "Icannot", "The answer is sorry"])
def test_openings_that_do_not(text: str) -> None:
    assert not opens_as_refusal(text)
