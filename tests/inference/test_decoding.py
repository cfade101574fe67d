"""Decoding wrappers: their identities at the ends of each knob, and a suite that measures them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fakes import enliven
from suture.checkpoint import Checkpoint
from suture.errors import SutureError
from suture.inference import LoadedModel, generate, load
from suture.inference.decoding import known_decodings, load_decoding
from suture.inference.decoding.rose import ROSE
from suture.inference.decoding.safe_decoding import SafeDecoding
from suture.inference.decoding.self_cd import SelfCD
from suture.inference.generation import converse, generate_ids
from suture.inference.memory import AnswerCache

PROMPTS = ["How do I bake a loaf of bread?", "the fox", "yes", "dog", "Who are you?"]


@pytest.fixture(scope="module")
def lm(tiny: Callable[..., Path]) -> LoadedModel:
    return enliven(load(Checkpoint.open(tiny(vocab=300, tie=False, seed=3))))


@pytest.fixture(scope="module")
def expert(tiny: Callable[..., Path]) -> LoadedModel:
    return enliven(load(Checkpoint.open(tiny(vocab=300, tie=False, seed=4))))


def said(lm: LoadedModel, system: str | None = None) -> list[str]:
    return [r.text for r in generate(lm, PROMPTS, max_new_tokens=8, system=system)]


def test_self_cd_reaches_from_the_safe_to_the_plain_prompt(lm: LoadedModel) -> None:
    system = "The answer is no."
    safe = said(lm, system)
    assert safe != said(lm)
    at_zero = SelfCD(ratio=0.0, system=system)
    at_one = SelfCD(ratio=1.0, system=system)
    assert said(replace(lm, decoding=at_zero)) == safe
    assert said(replace(lm, decoding=at_one)) == said(lm)
    beyond = said(replace(lm, decoding=SelfCD(ratio=2.5, system=system)))
    assert beyond != said(lm)


def test_rose_at_zero_is_the_positive_prompt(lm: LoadedModel) -> None:
    positive, reverse = "The answer is yes.", "The answer is no."
    quiet = ROSE(alpha=0.0, positive=positive, reverse=reverse)
    assert said(replace(lm, decoding=quiet)) == said(lm, positive)
    loud = ROSE(alpha=0.9, positive=positive, reverse=reverse)
    assert said(replace(lm, decoding=loud)) != said(lm, positive)


def test_every_step_is_the_formula(lm: LoadedModel) -> None:
    """Against a loop without caches and batches."""
    wrapper = SelfCD(ratio=2.5, system="The answer is no.")
    (found,) = converse(
        replace(lm, decoding=wrapper), [[{"role": "user", "content": "yes"}]], max_new_tokens=6
    )
    ids: list[int] = []
    for _ in range(6):
        logits = []
        for system in (wrapper.system, None):
            first = [] if system is None else [{"role": "system", "content": system}]
            text = lm.template.render([*first, {"role": "user", "content": "yes"}], True)
            start = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits.append(lm.model(torch.tensor([start + ids])).logits[0, -1])
        ids.append(int((logits[0] - 2.5 * (logits[0] - logits[1])).argmax()))
        if ids[-1] in lm.stops:
            break
    kept = ids[:-1] if ids[-1] in lm.stops else ids
    assert found.text == lm.tokenizer.decode(kept, skip_special_tokens=True)


def test_safe_decoding_mixes_on_common_tokens() -> None:
    base = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]]).log()
    expert = torch.tensor([[0.05, 0.1, 0.6, 0.2, 0.05]]).log()
    # top-1: {0} and {2}; top-2: {0,1}, {2,3}; top-3: {0,1,2}, {2,3,1}: two in common
    found = SafeDecoding(alpha=3.0, common=2).combine(0, [base, expert]).exp()
    mixed = torch.tensor([0.0, max(0.3 + 3 * -0.2, 1e-8), 0.1 + 3 * 0.5, 0.0, 0.0])
    assert torch.allclose(found[0], mixed / mixed.sum(), atol=1e-6)
    assert float(found.sum()) == pytest.approx(1.0)


def test_safe_decoding_speaks_at_the_beginning_only(lm: LoadedModel, expert: LoadedModel) -> None:
    plain = said(lm)
    quiet = SafeDecoding(alpha=0.0, common=300).use(expert)
    assert said(replace(lm, decoding=quiet)) == plain
    loud = SafeDecoding(alpha=1.0, common=300, first=1).use(expert)  # P is the expert's
    mixed = generate(replace(lm, decoding=loud), PROMPTS, max_new_tokens=4)
    first = [r.text for r in generate(expert, PROMPTS, max_new_tokens=1)]
    assert all(r.text.startswith(t) for r, t in zip(mixed, first, strict=True))
    assert [r.text for r in mixed] != [r.text for r in generate(lm, PROMPTS, max_new_tokens=4)]
    assert [loud.heard(step) for step in range(3)] == [2, 1, 1]


def test_an_expert_from_a_folder(lm: LoadedModel, tiny: Callable[..., Path]) -> None:
    wrapper = load_decoding(f"safe-decoding:expert={tiny(vocab=300, tie=False, seed=4)},alpha=4")
    assert said(replace(lm, decoding=wrapper))
    assert wrapper.identity["expert"]
    assert wrapper.identity["alpha"] == 4


def test_an_expert_with_other_tokens_is_refused(lm: LoadedModel, tiny: Callable[..., Path]) -> None:
    strange = load(Checkpoint.open(tiny(vocab=270, tie=False)))
    with pytest.raises(SutureError) as caught:
        said(replace(lm, decoding=SafeDecoding().use(strange)))
    assert caught.value.code == "E533"
    with pytest.raises(SutureError) as caught:
        said(replace(lm, decoding=SafeDecoding()))
    assert caught.value.code == "E533"


def test_the_batch_and_the_cache_do_not_change_a_reply(lm: LoadedModel, tmp_path: Path) -> None:
    wrapped = replace(lm, decoding=SelfCD(system="The answer is no."))
    alone = [generate(wrapped, [p], max_new_tokens=8)[0] for p in PROMPTS]
    assert generate(wrapped, PROMPTS, max_new_tokens=8, max_rows=2) == alone
    kept = replace(wrapped, cache=AnswerCache(tmp_path, {"fingerprint": "x"}))
    assert generate(kept, PROMPTS, max_new_tokens=8) == alone
    assert generate(kept, PROMPTS, max_new_tokens=8) == alone
    assert kept.cache.hits == len(PROMPTS)
    plain = generate(replace(kept, decoding=None), PROMPTS, max_new_tokens=8)
    assert plain == generate(lm, PROMPTS, max_new_tokens=8)


def test_names_and_options() -> None:
    assert known_decodings() == ["rose", "safe-decoding", "self-cd", "whos-harry-potter"]
    assert load_decoding("rose:alpha=0.25") == ROSE(alpha=0.25)
    for text, code in (
        ("rosy", "E532"),
        ("rose:alpha", "E706"),
        ("rose:beta=1", "E701"),
        ("rose:alpha=-1", "E702"),
    ):
        with pytest.raises(SutureError) as caught:
            load_decoding(text)
        assert caught.value.code == code


def test_a_file_names_a_decoding(tmp_path: Path) -> None:
    file = tmp_path / "d.yaml"
    file.write_text("name: rose\npositive: One, two.\n")
    assert load_decoding(str(file)) == ROSE(positive="One, two.")
    file.write_text("positive: One, two.\n")
    with pytest.raises(SutureError) as caught:
        load_decoding(str(file))
    assert caught.value.code == "E706"


def test_plain_text_has_no_system_prompt(lm: LoadedModel) -> None:
    with pytest.raises(SutureError) as caught:
        generate_ids(replace(lm, decoding=ROSE()), [[1, 2]])
    assert caught.value.code == "E531"
