"""The two-model teacher: its formula, and likelihoods and replies made with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fakes import enliven
from helpers import write_jsonl
from suture.checkpoint import Checkpoint
from suture.errors import SutureError
from suture.inference import LoadedModel, generate, load, option_logprobs, reply_logprob
from suture.inference.decoding import decoded, load_decoding
from suture.inference.decoding.whos_harry_potter import WhosHarryPotter, unlearning_logits
from suture.inference.scoring import response_kl
from suture.suites import measure

PROMPTS = ["How do I bake a loaf of bread?", "the fox", "the fox jumps", "Who are you?"]
OPTIONS = [["yes", "no, no"], ["the lazy dog", "a"], ["over", "under the dog"], ["The answer"]]


@pytest.fixture(scope="module")
def lm(tiny: Callable[..., Path]) -> LoadedModel:
    return enliven(load(Checkpoint.open(tiny(vocab=300, tie=False, seed=3))))


@pytest.fixture(scope="module")
def augmented(tiny: Callable[..., Path]) -> LoadedModel:
    return enliven(load(Checkpoint.open(tiny(vocab=300, tie=False, seed=4))))


def teacher(lm: LoadedModel, augmented: LoadedModel, ids: list[int], alpha: float) -> torch.Tensor:
    """Logits after every token of `ids`, entry by entry."""
    with torch.no_grad():
        first = lm.model(torch.tensor([ids])).logits[0].double()
        second = augmented.model(torch.tensor([ids])).logits[0].double()
    return torch.where(second > first, first - alpha * (second - first), first)


def test_what_rose_falls_by_alpha_times_the_rise_and_the_rest_stays() -> None:
    original = torch.tensor([1.0, 2.0, -3.0, 0.5])
    augmented = torch.tensor([1.5, 1.0, -3.0, 4.5])
    found = unlearning_logits(original, augmented, 8.0)
    assert found.tolist() == [1.0 - 8 * 0.5, 2.0, -3.0, 0.5 - 8 * 4.0]
    assert torch.equal(unlearning_logits(original, augmented, 0.0), original)
    assert torch.equal(unlearning_logits(original, original, 8.0), original)
    quiet = unlearning_logits(original, augmented, 8.0, dead_zone=0.5)
    assert quiet.tolist() == [1.0, 2.0, -3.0, 0.5 - 8 * 4.0]


def test_only_log_probabilities_ignore_a_constant() -> None:
    original, augmented = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    raw = [unlearning_logits(original, augmented + c, 8.0).softmax(-1) for c in (0.0, 0.5)]
    assert float((raw[0] - raw[1]).abs().sum()) / 2 > 0.01
    safe = [
        unlearning_logits(original, augmented + c, 8.0, space="logprob").softmax(-1)
        for c in (0.0, 0.5)
    ]
    torch.testing.assert_close(safe[0], safe[1])


def test_bfloat16_logits_are_subtracted_in_float32() -> None:
    original = torch.tensor([16.0, 17.125], dtype=torch.bfloat16)
    found = unlearning_logits(original, original + 0.125, 3.0)
    assert found.dtype == torch.float32
    assert found.tolist() == [16.0 - 0.375, 17.125 - 0.375]


@pytest.mark.parametrize("alpha", [0.3, 4.0])
def test_likelihoods_are_those_of_the_formula(
    lm: LoadedModel, augmented: LoadedModel, alpha: float
) -> None:
    wrapped = decoded(lm, WhosHarryPotter(alpha=alpha).use(augmented))
    found = option_logprobs(wrapped, PROMPTS, OPTIONS)
    for prompt, options, values in zip(PROMPTS, OPTIONS, found, strict=True):
        text = lm.template.render([{"role": "user", "content": prompt}], True)
        start = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        for option, value in zip(options, values, strict=True):
            end = lm.tokenizer(option, add_special_tokens=False)["input_ids"]
            table = teacher(lm, augmented, start + end, alpha).log_softmax(-1)
            at = range(len(start) - 1, len(start) + len(end) - 1)
            wanted = sum(float(table[i, token]) for i, token in zip(at, end, strict=True))
            assert value == pytest.approx(wanted, rel=1e-4, abs=1e-3)
    replies = [options[0] for options in OPTIONS]
    means = reply_logprob(wrapped, PROMPTS, replies)
    for mean, values, reply in zip(means, found, replies, strict=True):
        length = len(lm.tokenizer(reply, add_special_tokens=False)["input_ids"])
        assert mean == pytest.approx(values[0] / length, rel=1e-4, abs=1e-3)


def test_replies_are_those_of_a_loop_without_caches(lm: LoadedModel) -> None:
    augmented = replace(lm, model=copy.deepcopy(lm.model))
    with torch.no_grad():  # what is likely becomes likelier
        augmented.model.get_output_embeddings().weight.mul_(1.3)
    wrapped = decoded(lm, WhosHarryPotter(alpha=4.0).use(augmented))
    together = generate(wrapped, PROMPTS, max_new_tokens=6)
    assert [r.text for r in together] != [r.text for r in generate(lm, PROMPTS, max_new_tokens=6)]
    for prompt, reply in zip(PROMPTS, together, strict=True):
        assert generate(wrapped, [prompt], max_new_tokens=6) == [reply]
        text = lm.template.render([{"role": "user", "content": prompt}], True)
        start = list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids: list[int] = []
        for _ in range(6):
            ids.append(int(teacher(lm, augmented, start + ids, 4.0)[-1].argmax()))
            if ids[-1] in lm.stops:
                break
        kept = ids[:-1] if ids[-1] in lm.stops else ids
        assert reply.text == lm.tokenizer.decode(kept, skip_special_tokens=True)


def test_without_a_rise_the_teacher_is_the_model(lm: LoadedModel, augmented: LoadedModel) -> None:
    plain = option_logprobs(lm, PROMPTS, OPTIONS)
    for teaching in (WhosHarryPotter(alpha=0.0).use(augmented), WhosHarryPotter().use(lm)):
        wrapped = decoded(lm, teaching)
        for one, other in zip(plain, option_logprobs(wrapped, PROMPTS, OPTIONS), strict=True):
            assert one == pytest.approx(other, rel=1e-5)
        replies = [options[0] for options in OPTIONS]
        assert max(response_kl(lm, wrapped, PROMPTS, replies)) < 1e-5
        assert generate(wrapped, PROMPTS, max_new_tokens=5) == generate(
            lm, PROMPTS, max_new_tokens=5
        )


def test_a_suite_measures_the_pair_and_keeps_it_apart_from_the_model(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    base, other = tiny(vocab=300, tie=False, seed=3), tiny(vocab=300, tie=False, seed=4)
    options = ["the dog", "a loaf", "bread"]
    rows = [{"prompt": f"fox {i}", "options": options, "answer": i % 3} for i in range(30)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    teaching = load_decoding(f"whos-harry-potter:augmented={other},alpha=600")
    found = [
        measure("task", Checkpoint.open(base), data=data, decoding=one, cache=tmp_path / "kept")
        for one in (None, teaching, None, teaching)
    ]
    scores = [[row.scores for row in one.rows] for one in found]
    assert scores[0] == scores[2] != scores[1] == scores[3]
    assert found[0].model["fingerprint"] == found[1].model["fingerprint"]
    told = found[1].model["decoding"]
    assert told["augmented"] == Checkpoint.open(other).fingerprint()
    assert (told["name"], told["alpha"]) == ("whos-harry-potter", 600)
    assert "decoding" not in found[0].model


def test_refusals(lm: LoadedModel, tiny: Callable[..., Path]) -> None:
    strange = load(Checkpoint.open(tiny(vocab=270, tie=False)))
    for teaching in (WhosHarryPotter(), WhosHarryPotter().use(strange)):
        with pytest.raises(SutureError) as caught:
            decoded(lm, teaching)
        assert caught.value.code == "E533"
    assert math.isclose(WhosHarryPotter().alpha, 8.0)
