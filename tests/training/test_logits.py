"""Training sees the logits that the model gives in use, at the chosen positions alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from suture.training.batches import Batch, Example, collate
from suture.training.logits import answer_count, answer_positions, logits_at

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}),
    "gemma2": (transformers.Gemma2Config, {"final_logit_softcapping": 0.5, "head_dim": 8}),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 4.0}),
    "cohere": (transformers.CohereConfig, {"logit_scale": 0.25}),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    kind, own = FAMILIES[request.param]
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(kind(**SMALL, **own)).eval()


@pytest.fixture
def batch() -> Batch:
    return collate([Example(tuple(range(3, 12)), 4), Example((5, 9, 2, 7), 2)])


def test_the_same_as_the_whole_model(model: Any, batch: Batch) -> None:
    whole = model(input_ids=batch.ids, attention_mask=batch.attend).logits
    for exact in (False, True):
        found = logits_at(model, batch, answer_positions(batch), exact=exact)
        torch.testing.assert_close(found, whole[:, :-1][batch.labels[:, 1:] != -100])
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_gradients_are_those_of_the_whole_model(model: Any, batch: Batch) -> None:
    target = batch.labels[:, 1:][batch.labels[:, 1:] != -100]
    found = []
    for logits in (
        logits_at(model, batch, answer_positions(batch)),
        model(input_ids=batch.ids, attention_mask=batch.attend).logits[:, :-1][
            batch.labels[:, 1:] != -100
        ],
    ):
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, target).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_exact_means_a_head_in_float32(batch: Batch) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SMALL)).eval()
    seen = {}
    hook = model.lm_head.register_forward_hook(lambda _m, _i, out: seen.update(kind=out.dtype))
    for exact, kind in ((True, torch.float32), (False, torch.bfloat16)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits_at(model, batch, answer_positions(batch), exact=exact)
            assert torch.is_autocast_enabled("cpu")
        assert seen["kind"] == kind
    hook.remove()


def test_an_error_in_the_head_leaves_nothing_behind(model: Any, batch: Batch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no memory")

    hook = model.get_output_embeddings().register_forward_pre_hook(fails)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError):
            logits_at(model, batch, answer_positions(batch), exact=True)
        assert torch.is_autocast_enabled("cpu")
    hook.remove()
    logits_at(model, batch, answer_positions(batch))


def test_as_many_positions_as_labelled_tokens() -> None:
    batch = collate([Example((1, 2, 5, 6, 9), 2), Example((1, 3, 4, 9), 0)])
    # a token is predicted from the position before it, so the first of a row never counts
    assert answer_positions(batch).tolist() == [
        [False, True, True, True, False],
        [True] * 3 + [False] * 2,
    ]
    assert answer_count(batch) == int(answer_positions(batch).sum()) == 6
