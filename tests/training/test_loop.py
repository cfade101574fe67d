from __future__ import annotations

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from suture.errors import SutureError
from suture.training.batches import Example, collate
from suture.training.loop import TrainConfig, next_token_loss, train
from suture.training.schedule import rate


def tiny(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=24, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


EXAMPLES = [Example(tuple((i * 7 + j * 3) % 40 for j in range(4 + i % 5)), 2) for i in range(24)]


def settings(**changes) -> TrainConfig:
    values = {
        "steps": 8, "batch_tokens": 40, "learning_rate": 1e-2, "warmup": 2, "save_every": 3,
        "compute": "float32",
    }  # fmt: skip
    return TrainConfig(**(values | changes))


def test_loss_equals_the_plain_full_logits_loss():
    model, batch = tiny(), collate(EXAMPLES[:5])
    logits = model(input_ids=batch.ids, attention_mask=batch.attend).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(next_token_loss(model, batch), expected)


def test_training_lowers_the_loss():
    model = tiny()
    result = train(model, EXAMPLES, settings(steps=60))
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert result.tokens > 0


@pytest.mark.parametrize("muon", [0.0, 0.01])
@pytest.mark.parametrize("stop", [3, 6])
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path, monkeypatch, muon, stop):
    whole = tiny()
    train(whole, EXAMPLES, settings(muon_rate=muon))

    import suture.training.loop as loop

    original = loop._one_step
    calls = {"n": 0}

    def dies(*args):
        if calls["n"] == stop + 1:  # one step past the saved state is lost
            raise KeyboardInterrupt
        calls["n"] += 1
        return original(*args)

    monkeypatch.setattr(loop, "_one_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), EXAMPLES, settings(muon_rate=muon), state=tmp_path)
    monkeypatch.setattr(loop, "_one_step", original)
    resumed = tiny(seed=99)  # other weights: everything must come from the state
    result = train(resumed, EXAMPLES, settings(muon_rate=muon), state=tmp_path)
    assert len(result.losses) == 8 - stop
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_state_of_another_configuration_is_refused(tmp_path):
    train(tiny(), EXAMPLES, settings(), state=tmp_path)
    with pytest.raises(SutureError, match="E904"):
        train(tiny(), EXAMPLES, settings(seed=1), state=tmp_path)


def test_refusals():
    with pytest.raises(SutureError, match="E901"):
        train(tiny(), [], settings())
    with pytest.raises(SutureError, match="E903"):
        train(tiny().to(torch.bfloat16), EXAMPLES, settings())
    broken = tiny()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("inf"))
    with pytest.raises(SutureError, match="E902"):
        train(broken, EXAMPLES, settings())


def test_schedule():
    config = settings(steps=12, warmup=2, final_share=0.1)
    rates = [rate(config, step) for step in range(12)]
    assert rates[0] == 0.5
    assert rates[1] == rates[2] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert 0.1 < rates[-1] < 0.2
    assert rate(settings(schedule="constant"), 7) == 1.0
