from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fakes import enliven
from suture.checkpoint import Checkpoint
from suture.data import encode
from suture.errors import SutureError
from suture.inference import LoadedModel, load, option_logprobs, reply_logprob, response_kl

PROMPTS = ["How do I bake?", "the quick brown fox", "yes", "jump over the lazy dog, please"]
OPTIONS = [["yes", "no"], ["a short list of ideas.", "no", "I cannot"], ["fox"], ["dog", "dogs!"]]
REPLIES = ["I cannot help with that request.", "yes", "Sure, here is a list.", "no no"]


@pytest.fixture(scope="module")
def lm(tiny: Callable[..., Path]) -> LoadedModel:
    return enliven(load(Checkpoint.open(tiny(vocab=300, tie=False, seed=3))))


@pytest.fixture(scope="module")
def other(tiny: Callable[..., Path]) -> LoadedModel:
    return enliven(load(Checkpoint.open(tiny(vocab=300, tie=False, seed=4))))


def logp(lm: LoadedModel, ids: list[int]) -> torch.Tensor:
    """float64 next-token log-probabilities of one sequence, unbatched and without a cache."""
    with torch.no_grad():
        return lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def parts(lm: LoadedModel, prompt: str, text: str) -> tuple[list[int], list[int]]:
    row = encode(lm.tokenizer, lm.template, prompt, text)
    return row.ids[: row.prompt_length], row.response_ids[:-1]


def naive(lm: LoadedModel, prompt: str, text: str) -> list[float]:
    start, end = parts(lm, prompt, text)
    table = logp(lm, start + end)
    return [float(table[len(start) - 1 + i, token]) for i, token in enumerate(end)]


def test_options_equal_a_naive_loop(lm: LoadedModel) -> None:
    ours = option_logprobs(lm, PROMPTS, OPTIONS)
    for prompt, options, scores in zip(PROMPTS, OPTIONS, ours, strict=True):
        expected = [sum(naive(lm, prompt, option)) for option in options]
        assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_options_do_not_depend_on_the_batch(lm: LoadedModel) -> None:
    together = option_logprobs(lm, PROMPTS, OPTIONS)
    for i, prompt in enumerate(PROMPTS):
        alone = option_logprobs(lm, [prompt], [OPTIONS[i]], max_tokens=1)[0]
        assert together[i] == pytest.approx(alone, rel=1e-4, abs=1e-4)


def test_reply_logprob_is_the_mean_over_reply_tokens(lm: LoadedModel) -> None:
    expected = []
    for prompt, reply in zip(PROMPTS, REPLIES, strict=True):
        values = naive(lm, prompt, reply)
        expected.append(sum(values) / len(values))
    assert reply_logprob(lm, PROMPTS, REPLIES) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_an_empty_reply_is_scored_by_its_end_token(lm: LoadedModel) -> None:
    start = encode(lm.tokenizer, lm.template, PROMPTS[0]).ids
    expected = float(logp(lm, start)[-1, lm.tokenizer.eos_token_id])
    assert reply_logprob(lm, PROMPTS[:1], [""]) == pytest.approx([expected], rel=1e-4)


def test_kl_equals_a_naive_sum(lm: LoadedModel, other: LoadedModel) -> None:
    expected = []
    for prompt, reply in zip(PROMPTS, REPLIES, strict=True):
        start, end = parts(lm, prompt, reply)
        p = logp(lm, start + end)[len(start) - 1 : -1]
        q = logp(other, start + end)[len(start) - 1 : -1]
        expected.append(float((p.exp() * (p - q)).sum(-1).mean()))
    ours = response_kl(lm, other, PROMPTS, REPLIES)
    assert ours == pytest.approx(expected, rel=1e-4)
    assert min(ours) > 0.1


def test_kl_of_a_model_with_itself_is_zero(lm: LoadedModel) -> None:
    assert response_kl(lm, lm, PROMPTS, REPLIES) == [0.0] * len(PROMPTS)


def test_models_that_read_other_tokens_cannot_be_compared(
    lm: LoadedModel, tiny: Callable[..., Path]
) -> None:
    smaller = load(Checkpoint.open(tiny(vocab=64)))
    with pytest.raises(SutureError) as caught:
        response_kl(lm, smaller, PROMPTS, REPLIES)
    assert caught.value.code == "E510"


def test_lists_of_unequal_length_are_refused(lm: LoadedModel) -> None:
    with pytest.raises(SutureError) as caught:
        reply_logprob(lm, PROMPTS, REPLIES[:2])
    assert caught.value.code == "E509"
