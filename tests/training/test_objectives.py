"""Objectives against losses written out token by token: value, direction, mask, resume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import suture.training.loop as loop
from helpers import tiny_llama, write_jsonl
from suture.checkpoint import Checkpoint
from suture.data import Pair
from suture.errors import SutureError
from suture.inference import LoadedModel, load
from suture.patch import PatchedCheckpoint, open_model
from suture.training.batches import Batch, Example, collate
from suture.training.loop import EnoughTraining, TrainConfig, train
from suture.training.objectives import NPO, GradientAscent, Material, MismatchAscent, NextToken
from suture.training.objectives.common import divergence
from suture.training.objectives.mismatch_ascent import log_probabilities, mismatched
from suture.training.recipe import TrainRecipe, encode_rows, read_recipe, run_recipe

HARMFUL = [
    Pair(id=str(i), prompt=f"How do I bake loaf {i}?", response="Sure, here is a list" + "!" * i)
    for i in range(6)
]
RETAIN = [Pair(id=str(i), prompt=f"the fox {i}", response=f"The answer is {i}.") for i in range(5)]
SETTINGS = TrainConfig(
    steps=6, batch_tokens=90, learning_rate=1e-2, warmup=0, compute="float32", save_every=2
)


@pytest.fixture
def lm(tiny: Callable[..., Path]) -> LoadedModel:
    found = load(Checkpoint.open(tiny(vocab=300, seed=2)))
    found.model.requires_grad_(True)
    return found


def material(lm: LoadedModel, train: TrainConfig = SETTINGS) -> Material:
    examples = encode_rows(lm.tokenizer, lm.template, HARMFUL)
    return Material(lm, lm.model, HARMFUL, examples, RETAIN, train)


def tokens(model: Any, example: Example) -> torch.Tensor:
    """−log p of every response token, the example alone."""
    ids = torch.tensor([example.ids])
    table = model(input_ids=ids).logits[0].log_softmax(-1)
    at = range(example.loss_from, len(example.ids))
    return torch.stack([-table[i - 1, example.ids[i]] for i in at])


def gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.flatten() for part in found])


def number(loss: Any, lm: LoadedModel, batch: Batch) -> float:
    return float(loss(lm.model, batch).detach())


def mean_nll(lm: LoadedModel, batch: Batch) -> float:
    return number(loop.next_token_loss, lm, batch)


def test_ascent_is_minus_the_nll_of_the_response(lm: LoadedModel) -> None:
    examples = material(lm).examples
    single = [tokens(lm.model, example) for example in examples]
    batch = collate(examples)
    mean = GradientAscent(cap=1e6).loss(lm.model, batch)
    torch.testing.assert_close(mean, -torch.cat(single).mean())
    summed = GradientAscent(cap=1e6, reduction="sum").loss(lm.model, batch)
    torch.testing.assert_close(summed, -torch.stack([s.sum() for s in single]).mean())


def test_prompt_tokens_are_no_targets(lm: LoadedModel) -> None:
    batch = collate(material(lm).examples)
    weights = lm.model.get_output_embeddings().weight
    reached = batch.labels[batch.labels != -100].unique()
    prompt_only = sorted(set(batch.ids.unique().tolist()) - set(reached.tolist()))
    assert prompt_only
    lm.model.get_input_embeddings().weight = torch.nn.Parameter(weights.detach().clone())  # untied
    nll = GradientAscent(cap=1e6).loss(lm.model, batch)
    [found] = torch.autograd.grad(nll, [weights])
    # ascent raises every logit but the target's: never one of a prompt token as if it were a target
    hidden = loop.hidden_states(lm.model, batch)[:, :-1][batch.labels[:, 1:] != -100]
    probability = (hidden @ weights.T).softmax(-1)
    expected = -(probability.T @ hidden) / len(hidden)
    torch.testing.assert_close(found[prompt_only], expected[prompt_only])


@pytest.mark.parametrize(
    ("objective", "rises"),
    [
        (NextToken(), False),
        (GradientAscent(), True),
        (MismatchAscent(kl=0.0, mismatch=0.0), True),
        (MismatchAscent(), True),
        (NPO(), True),
    ],
)
def test_the_first_step_moves_the_nll_the_right_way(
    lm: LoadedModel, objective: Any, rises: bool
) -> None:
    config = TrainConfig(
        steps=1, batch_tokens=4096, learning_rate=1e-3, warmup=0, compute="float32"
    )
    given = material(lm, config)
    batch = collate(given.examples)
    before = mean_nll(lm, batch)
    train(lm.model, given.examples, config, objective=objective.build(given))
    after = mean_nll(lm, batch)
    assert (after > before) == rises
    assert abs(after - before) > 1e-4


def test_a_token_above_the_cap_gives_no_gradient(lm: LoadedModel) -> None:
    batch = collate(material(lm).examples)
    nll = torch.cat([tokens(lm.model, example) for example in material(lm).examples])
    ranked = nll.detach().sort().values
    cap = float(ranked[len(ranked) // 2 - 1 :][:2].mean())  # between two tokens
    ours = gradient(GradientAscent(cap=cap).loss(lm.model, batch), lm.model)
    expected = gradient(-nll[nll < cap].sum() / len(nll), lm.model)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    low = gradient(GradientAscent(cap=0.01).loss(lm.model, batch), lm.model)
    assert not low.any()


def test_ascent_ends_before_the_step_that_is_beyond_the_bound(lm: LoadedModel) -> None:
    given = material(lm)
    objective = GradientAscent(stop=8.0)
    batch = collate(given.examples)
    assert mean_nll(lm, batch) < 8.0
    config = SETTINGS.model_copy(update={"steps": 200, "batch_tokens": 4096})
    result = train(lm.model, given.examples, config, objective=objective.build(given))
    assert 1 <= result.steps == len(result.losses) < 200
    assert max(-loss for loss in result.losses) <= 8.0
    assert mean_nll(lm, batch) > 8.0
    with pytest.raises(EnoughTraining):
        MismatchAscent(stop=8.0, kl=0.0, mismatch=0.0).build(given)(lm.model, batch)


def test_npo_is_its_formula(lm: LoadedModel) -> None:
    given = material(lm)
    loss = NPO(beta=0.3).build(given)
    batch = collate(given.examples)
    assert number(loss, lm, batch) == pytest.approx(2 / 0.3 * math.log(2), rel=1e-5)
    before = [float(tokens(lm.model, example).sum().detach()) for example in given.examples]
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.1)
    expected = []
    for example, old in zip(given.examples, before, strict=True):
        ratio = old - float(tokens(lm.model, example).sum().detach())  # log(p_θ / p_ref)
        expected.append(-2 / 0.3 * math.log(1 / (1 + math.exp(0.3 * ratio))))
    assert number(loss, lm, batch) == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_npo_becomes_ascent_as_beta_goes_to_zero(lm: LoadedModel) -> None:
    given = material(lm)
    batch = collate(given.examples)
    losses = {beta: NPO(beta=beta).build(given) for beta in (5.0, 1e-3)}
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.2)
    ascent = gradient(GradientAscent(cap=1e6, reduction="sum").loss(lm.model, batch), lm.model)
    cosine = {
        beta: float(
            torch.nn.functional.cosine_similarity(
                gradient(loss(lm.model, batch), lm.model), ascent, dim=0
            )
        )
        for beta, loss in losses.items()
    }
    assert cosine[1e-3] > 0.99999 > cosine[5.0]


def test_mismatch_and_divergence_are_added(lm: LoadedModel) -> None:
    given = material(lm)
    config = MismatchAscent(forget=0.5, mismatch=0.7, kl=2.0, mismatches=3, cap=1e6)
    loss: Any = config.build(given)
    loss.begin(0)
    frozen_source = load(lm.source).model
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(2.0)
    batch = collate(given.examples)
    found = number(loss, lm, batch)
    harmful = torch.cat([tokens(lm.model, example) for example in given.examples])
    others = [e for row in mismatched(given, 3).values() for e in row]
    assert len(others) == 3 * len(given.examples)
    wrong = torch.cat([tokens(lm.model, example) for example in others])
    loss.begin(0)
    harmless: Batch = next(loss.harmless)
    pieces = []
    for ids, mask in zip(harmless.ids, harmless.attend, strict=True):
        row = ids[: int(mask.sum())].unsqueeze(0)
        p = frozen_source(input_ids=row).logits[0].log_softmax(-1)
        q = lm.model(input_ids=row).logits[0].log_softmax(-1)
        pieces.append((p.exp() * (p - q)).sum(-1))
    kl = torch.cat(pieces).mean()
    expected = -0.5 * harmful.mean() + 0.7 * wrong.mean() + 2.0 * kl
    assert float(kl.detach()) > 1e-3
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)


def test_mismatched_answers_follow_the_harmful_prompts(lm: LoadedModel) -> None:
    given = material(lm)
    answers = {e.ids[e.loss_from :] for e in encode_rows(lm.tokenizer, lm.template, RETAIN)}
    for ids, others in mismatched(given, 4).items():
        start = next(e.loss_from for e in given.examples if e.ids == ids)
        assert len(others) == 4
        assert all(e.ids[: e.loss_from] == ids[:start] for e in others)
        assert all(e.ids[e.loss_from :] in answers for e in others)


def test_the_divergence_of_a_model_from_itself_is_zero(lm: LoadedModel) -> None:
    table = log_probabilities(lm.model, collate(material(lm).examples)).detach()
    assert float(divergence(table, table)) == 0.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "base", vocab=300)
    for name, rows in (("harmful", HARMFUL), ("retain", RETAIN)):
        write_jsonl(
            tmp_path / f"{name}.jsonl",
            [{"prompt": row.prompt, "response": row.response} for row in rows],
        )
    return tmp_path


def recipe(folder: Path, out: str, **changes: Any) -> TrainRecipe:
    values: dict[str, Any] = {
        "model": folder / "base", "data": [{"file": folder / "harmful.jsonl"}],
        "retain": [{"file": folder / "retain.jsonl"}], "patch": folder / out, "device": "cpu",
        "train": SETTINGS.model_dump(), "scope": "all",
    }  # fmt: skip
    return TrainRecipe.load(values | changes)


@pytest.mark.parametrize("name", ["gradient-ascent", "gradient-ascent-kl", "npo"])
def test_a_run_makes_a_patch_of_the_blocks_and_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run_recipe(recipe(folder, "whole", objective={"name": name}))
    source = open_model(folder / "base")
    whole = PatchedCheckpoint(source, [folder / "whole"])
    changed = {n for n in source.tensors if not torch.equal(source.read(n), whole.read(n))}
    assert changed
    assert all(".layers." in n and "norm" not in n for n in changed)

    original, calls = loop._one_step, itertools.count(1)

    def killed(*given: Any) -> float:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(loop, "_one_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(folder, "again", objective={"name": name}))
    monkeypatch.setattr(loop, "_one_step", original)
    run_recipe(recipe(folder, "again", objective={"name": name}))
    again = PatchedCheckpoint(source, [folder / "again"])
    assert again.fingerprint() == whole.fingerprint()


def test_a_state_of_another_objective_is_refused(folder: Path) -> None:
    run_recipe(recipe(folder, "one", objective={"name": "npo"}))
    state = folder / ".two.training"
    import suture.training.recipe as module

    kept = module.shutil.rmtree
    try:
        module.shutil.rmtree = lambda *_a, **_k: None  # type: ignore[assignment]
        run_recipe(recipe(folder, "two", objective={"name": "npo"}))
    finally:
        module.shutil.rmtree = kept
    assert state.is_dir()
    kept(folder / "two")
    with pytest.raises(SutureError) as refused:
        run_recipe(recipe(folder, "two", objective={"name": "gradient-ascent"}))
    assert refused.value.code == "E904"


def test_refusals(folder: Path) -> None:
    with pytest.raises(SutureError) as lacking:
        run_recipe(recipe(folder, "p", objective={"name": "gradient-ascent-kl"}, retain=[]))
    assert lacking.value.code == "E911"
    run_recipe(
        recipe(
            folder, "p", retain=[], objective={"name": "gradient-ascent-kl", "mismatch": 0, "kl": 0}
        )
    )
    with pytest.raises(SutureError) as nowhere:
        run_recipe(recipe(folder, "q", patch=None))
    assert nowhere.value.code == "E913"
    with pytest.raises(SutureError, match="writes an adapter: give output") as adapter:
        run_recipe(recipe(folder, "q", lora={"rank": 2}))
    assert adapter.value.code == "E913"
    with pytest.raises(SutureError) as unknown:
        recipe(folder, "q", objective={"name": "npo", "bta": 1})
    assert unknown.value.code == "E701"


def test_retain_paths_are_relative_to_the_recipe(folder: Path) -> None:
    (folder / "r.yaml").write_text(
        "model: base\npatch: p\ndata: [{file: harmful.jsonl}]\nretain: [{file: retain.jsonl}]\n"
        "objective: {name: gradient-ascent-kl, kl: 0.5}\ntrain: {steps: 2}\n"
    )
    found = read_recipe(folder / "r.yaml")
    assert found.retain[0].file == folder / "retain.jsonl"
    assert found.objective == MismatchAscent(kl=0.5)


def test_only_the_first_tokens_of_a_response_are_trained_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import suture.training.recipe as module

    seen: list[Any] = []

    def looked(model: Any, examples: Any, *given: Any, **named: Any) -> Any:
        seen.append(examples)
        return train(model, examples, *given, **named)

    monkeypatch.setattr(module, "train", looked)
    run_recipe(recipe(folder, "p", objective={"name": "npo"}, response_tokens=2))
    lm = load(open_model(folder / "base"), device="cpu")
    whole = encode_rows(lm.tokenizer, lm.template, HARMFUL)
    assert [e.ids for e in seen[0]] == [e.ids[: e.loss_from + 2] for e in whole]
    assert all(len(e.ids) > e.loss_from + 2 for e in whole)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
def test_under_an_adapter_the_model_before_is_the_one_without_it(lm: LoadedModel) -> None:
    from suture.training.lora import LoraConfig, attach

    batch = collate(material(lm).examples)
    before = log_probabilities(lm.model, batch).detach()
    model = attach(lm.model, LoraConfig(rank=2, targets=("q_proj", "v_proj")), seed=0)
    given = material(lm)
    given = Material(lm, model, given.rows, given.examples, given.retain, given.train)
    loss: Any = MismatchAscent(mismatch=0.0).build(given)
    train(model, given.examples, SETTINGS, objective=loss)
    assert not torch.allclose(log_probabilities(model, batch).detach(), before, atol=1e-3)
    with loss.frozen.now() as frozen:
        torch.testing.assert_close(log_probabilities(frozen, batch), before)
