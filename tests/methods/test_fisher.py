from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fakes import enliven
from suture.checkpoint import Checkpoint
from suture.data import Pair, encode
from suture.errors import SutureError
from suture.inference import LoadedModel, load
from suture.methods.common import scoped_names
from suture.methods.fisher import encode_pairs, fisher, linear_modules

ROWS = [
    Pair(id="1", prompt="How do I bake a loaf?", response="I cannot help with that request."),
    Pair(id="2", prompt="the fox", response="no"),
    Pair(id="3", prompt="yes?", response="I cannot."),
    Pair(id="4", prompt="The answer is", response="Sure, no. I cannot help."),
    Pair(id="5", prompt="jump", response="no no no"),
]


@pytest.fixture(scope="module")
def lm(tiny: Callable[..., Path]) -> LoadedModel:
    return enliven(load(Checkpoint.open(tiny(vocab=300, tie=False, seed=3))))


@pytest.fixture(scope="module")
def names(lm: LoadedModel) -> list[str]:
    return scoped_names(lm.source, "all")


def losses(lm: LoadedModel, row: Pair) -> torch.Tensor:
    """−log p of each response token, the end token included."""
    encoded = encode(lm.tokenizer, lm.template, row.prompt, row.response)
    logits = lm.model(torch.tensor([encoded.ids])).logits[0]
    table = logits.log_softmax(-1)[encoded.prompt_length - 1 : -1]
    return -table[torch.arange(len(table)), torch.tensor(encoded.response_ids)]


def by_autograd(lm: LoadedModel, names: list[str], groups: list[list[Pair]], mean: bool) -> dict:
    total = {name: torch.zeros(lm.model.get_parameter(name).shape) for name in names}
    parameters = [lm.model.get_parameter(name).requires_grad_() for name in names]
    try:
        for group in groups:
            terms = torch.cat([losses(lm, row) for row in group])
            loss = terms.mean() if mean else terms.sum()
            for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
                total[name] += gradient.square() / len(groups)
    finally:
        lm.model.requires_grad_(False)
    return total


def close(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(expected)
    for name, value in expected.items():
        assert float(value.max()) > 0
        scale = float(value.max())
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("tokens_at_once", [4096, 1])
def test_equals_per_sample_autograd(lm: LoadedModel, names: list[str], tokens_at_once: int) -> None:
    expected = by_autograd(lm, names, [[row] for row in ROWS], mean=False)
    close(fisher(lm, ROWS, names, tokens_at_once=tokens_at_once), expected)


def test_batches_square_the_gradient_of_the_batch_mean_loss(
    lm: LoadedModel, names: list[str]
) -> None:
    expected = by_autograd(lm, names, [ROWS[:2], ROWS[2:4], ROWS[4:]], mean=True)
    close(fisher(lm, ROWS, names, batch=2), expected)
    close(fisher(lm, ROWS, names, batch=8), by_autograd(lm, names, [ROWS], mean=True))


def test_small_chunks_of_gradients_change_nothing(
    lm: LoadedModel, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from suture.methods import fisher as module

    whole = fisher(lm, ROWS, names)
    monkeypatch.setattr(module, "_MAX_GRADIENTS", 1)
    close(fisher(lm, ROWS, names), whole)


def test_the_model_is_left_as_it_was(lm: LoadedModel, names: list[str]) -> None:
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    first, second = fisher(lm, ROWS, names), fisher(lm, ROWS, names)
    assert all(torch.equal(first[n], second[n]) for n in names)
    assert all(torch.equal(before[k], v) for k, v in lm.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())


def test_rows_cut_before_their_response_are_left_out(lm: LoadedModel, names: list[str]) -> None:
    length = encode(lm.tokenizer, lm.template, ROWS[1].prompt).ids
    kept = fisher(lm, ROWS, names, max_tokens=len(length) + 2)
    assert all(torch.isfinite(value).all() for value in kept.values())
    with pytest.raises(SutureError) as caught:
        fisher(lm, ROWS, names, max_tokens=2)
    assert caught.value.code == "E405"


def test_rows_are_cut_to_the_context(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[0]
    whole = encode(lm.tokenizer, lm.template, row.prompt, row.response)
    room = whole.prompt_length + 2
    assert room < len(whole.ids)
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", room)
    ids, starts = encode_pairs(lm, [row], system=None, max_tokens=1024)
    assert (ids, starts) == ([whole.ids[:room]], [whole.prompt_length])


def test_a_row_without_response_is_refused(lm: LoadedModel, names: list[str]) -> None:
    with pytest.raises(SutureError) as caught:
        fisher(lm, [Pair(id="9", prompt="fox")], names)
    assert caught.value.code == "E405"


def test_only_linear_layers_have_importance(lm: LoadedModel) -> None:
    with pytest.raises(SutureError) as caught:
        linear_modules(lm, ["model.norm.weight"])
    assert caught.value.code == "E406"
