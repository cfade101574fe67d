from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import suture.training.loop as loop
from suture import progress
from suture.errors import SutureError
from suture.models import fused
from suture.training.batches import Example, collate
from suture.training.loop import EnoughTraining, TrainConfig, next_token_loss, train
from suture.training.schedule import rate, resolved, steps_of


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
    with pytest.raises(SutureError, match="E914"):
        train(tiny(), EXAMPLES, settings(patience=1))
    for wrong in ({"steps": None}, {"epochs": 2}, {"batch_rows": 2, "accumulate": 2}):
        with pytest.raises(SutureError, match="E702"):
            TrainConfig.load({"steps": 3} | wrong)
    for wrong in (-1, "week"):
        with pytest.raises(SutureError, match="E702"):
            TrainConfig.load({"steps": 3, "warmup": wrong})


def test_schedule():
    config = settings(steps=12, warmup=2, final_share=0.1)
    rates = [rate(config, step) for step in range(12)]
    assert rates[0] == 0.5
    assert rates[1] == rates[2] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert 0.1 < rates[-1] < 0.2
    assert rate(settings(schedule="constant"), 7) == 1.0


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_rows(model, batch):
    """A loss that is a mean over rows: of the mean over each row's tokens."""
    parts = []
    for ids, attend, labels in zip(batch.ids, batch.attend, batch.labels, strict=True):
        end = int(attend.sum())
        row = collate([Example(tuple(ids[:end].tolist()), int((labels == -100)[:end].sum()))])
        parts.append(next_token_loss(model, row))
    return torch.stack(parts).mean()


by_rows.weight = lambda batch: len(batch.ids)


@pytest.mark.parametrize("objective", [None, by_rows])
def test_a_step_of_so_many_rows_does_not_depend_on_how_it_was_cut(objective):
    found = []
    for tokens in (1000, 30, 8):
        model = tiny()
        one = settings(steps=1, batch_rows=10, batch_tokens=tokens, clip=1e9, warmup=0)
        result = train(model, EXAMPLES, one, objective=objective)
        found.append((result.losses[0], flat(model)))
    for loss, weights in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(weights, found[0][1], rtol=1e-3, atol=1e-4)
    assert (found[0][1] - flat(tiny())).abs().max() > 5e-3


def test_accumulated_gradients_are_those_of_all_tokens_together():
    seen = []

    def objective(model, batch):
        seen.append(batch)
        return next_token_loss(model, batch)

    model = tiny()
    one = settings(steps=1, accumulate=3, weight_decay=0.0)
    result = train(model, EXAMPLES, one, objective=objective)
    assert len(seen) == 3
    fresh = tiny()
    losses = [next_token_loss(fresh, batch) for batch in seen]
    tokens = [int((batch.labels[:, 1:] != -100).sum()) for batch in seen]
    assert len(set(tokens)) > 1  # a mean of means would be another number
    mean = sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / sum(tokens)
    assert result.losses[0] == pytest.approx(float(mean.detach()), rel=1e-5)


def test_epochs_are_counted_and_told():
    lengths = [len(example.ids) for example in EXAMPLES]
    config = resolved(settings(steps=None, epochs=3, batch_rows=10, warmup="epoch"), lengths)
    assert (config.steps, config.warmup) == (9, 3)
    config = settings(steps=None, epochs=3, warmup="epoch", accumulate=2)
    told: list[int] = []
    result = train(tiny(), EXAMPLES, config, on_epoch=told.append)
    assert told == [1, 2, 3]
    assert result.steps == resolved(config, lengths).steps
    assert resolved(config, lengths).warmup == steps_of(config, lengths, 1)


def test_a_killed_training_of_epochs_loses_no_whole_epoch(tmp_path, monkeypatch):
    config = settings(steps=None, epochs=4, save_every=100)
    taken = []
    step = loop._one_step

    def watched(*given):
        taken.append(step(*given))
        return taken[-1]

    monkeypatch.setattr(loop, "_one_step", watched)
    whole = train(model := tiny(), EXAMPLES, config)
    each = len(taken) // 4
    assert each > 1

    def die(number):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), EXAMPLES, config, state=tmp_path, on_epoch=die)
    # the second pass was told before its state was written, so that it is told again
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{each:08d}"]
    told = []
    again = train(tiny(seed=9), EXAMPLES, config, state=tmp_path, on_epoch=told.append)
    assert told == [2, 3, 4]
    assert again.losses == whole.losses[each:]

    # states that take longer than what they keep are left to save_every
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(loop, "time", clock)
    saved = []
    save = loop.save_state

    def slow(*given):
        saved.append(given[3])
        clock.monotonic = lambda: 1000.0
        return save(*given)

    monkeypatch.setattr(loop, "save_state", slow)
    train(other := tiny(), EXAMPLES, config, state=tmp_path / "slow")
    assert saved == [each, 4 * each]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_gradient_checkpointing_changes_memory_and_no_bit():
    plain, again = tiny(), tiny()
    calls = {"n": 0}
    again.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.update(n=calls["n"] + 1))
    train(plain, EXAMPLES, settings())
    train(again, EXAMPLES, settings(gradient_checkpointing=True))
    assert torch.equal(flat(plain), flat(again))
    assert calls["n"] == 16  # 8 steps, each worked out twice
    with torch.no_grad():
        again(input_ids=torch.tensor([[1, 2]]))
    assert not any(module.training for module in again.modules())


def test_a_model_without_blocks_knows_no_gradient_checkpointing():
    model = torch.nn.Linear(2, 2)
    model.config = type("Config", (), {"model_type": "flat"})
    with pytest.raises(SutureError, match=r"E917.*flat"):
        train(model, EXAMPLES, settings(gradient_checkpointing=True))


def test_progress_tells_loss_speed_and_memory(monkeypatch, capsys):
    monkeypatch.setattr(progress, "silent", False)
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_PLAIN_EVERY", 0.0)
    train(tiny(), EXAMPLES, settings(), label="here")
    last = capsys.readouterr().err.splitlines()[-2]
    assert re.match(r"here: 8/8 \(100%\), ETA 0 s, loss \d\.\d+, [\d,]+ tokens/s, \d\.\d GB", last)


@pytest.mark.parametrize(("compute", "quick"), [("bfloat16", True), ("float32", False)])
def test_attention_of_short_rows_is_written_out_in_bfloat16(monkeypatch, compute, quick):
    calls = []
    written = fused.attention
    monkeypatch.setattr(fused, "attention", lambda *a, **k: calls.append(1) or written(*a, **k))
    train(tiny(), EXAMPLES, settings(steps=1, compute=compute))
    assert bool(calls) == quick


def test_dropout_is_off():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.5,
            embd_pdrop=0.5, attn_pdrop=0.5, bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip
    model.eval()
    batch = collate(EXAMPLES)
    expected = float(next_token_loss(model, batch).detach())
    for checkpointing in (False, True):
        config = settings(steps=1, batch_tokens=4000, gradient_checkpointing=checkpointing)
        found = train(model, EXAMPLES, config.model_copy(update={"learning_rate": 1e-12})).losses[0]
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path):
    calls = {"n": 0}

    def objective(model, batch):
        calls["n"] += 1
        loss = next_token_loss(model, batch)
        return loss * float("nan") if calls["n"] == 6 else loss

    model, good = tiny(), tiny()
    with pytest.raises(SutureError, match="E902") as stopped:
        train(model, EXAMPLES, settings(), objective=objective, state=tmp_path)
    assert "step 5" in stopped.value.what
    assert str(tmp_path / "step-00000005") in (stopped.value.fix or "")
    assert f"delete {tmp_path} " in (stopped.value.fix or "")
    train(good, EXAMPLES, settings(), objective=stops_after(5))
    assert torch.equal(flat(model), flat(good))
    kept = load_file(tmp_path / "step-00000005" / "state.safetensors")
    for name, parameter in good.named_parameters():
        assert torch.equal(kept[f"model/{name}"], parameter)


def stops_after(steps):
    calls = {"n": 0}

    def objective(model, batch):
        calls["n"] += 1
        if calls["n"] > steps:
            raise EnoughTraining
        return next_token_loss(model, batch)

    return objective


def test_an_infinite_gradient_stops_before_the_update():
    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    model, before = tiny(), flat(tiny())
    with pytest.raises(SutureError, match="gradient is"):
        train(
            model, EXAMPLES, settings(),
            objective=lambda m, b: Explodes.apply(next_token_loss(m, b)),
        )  # fmt: skip
    assert torch.equal(flat(model), before)


DEV = [Example(tuple((i * 11 + j * 5 + 3) % 40 for j in range(6)), 2) for i in range(6)]


def dev_loss(model) -> float:
    with torch.no_grad():
        return float(next_token_loss(model, collate(DEV)))


def test_early_stopping_ends_and_gives_the_best_epoch(tmp_path):
    losses = []
    model = tiny()
    config = settings(steps=None, epochs=20, batch_rows=8, patience=2, schedule="constant")
    result = train(
        model, EXAMPLES, config, dev=DEV, on_epoch=lambda _: losses.append(dev_loss(model))
    )
    best = losses.index(min(losses))
    assert len(losses) < 20
    assert len(losses) == best + 3  # two more, neither of them better
    assert result.best_step == 3 * (best + 1)
    assert result.steps == 3 * len(losses)
    assert dev_loss(model) == pytest.approx(min(losses), rel=1e-5)
    # the same with the best weights on disk, and again from the finished state
    for _ in range(2):
        other = tiny()
        train(other, EXAMPLES, config, dev=DEV, state=tmp_path)
        assert torch.equal(flat(other), flat(model))
    assert len(list(tmp_path.glob("best-*"))) == 1


def test_what_older_recipes_are_known_by_does_not_change():
    config = TrainConfig(steps=150, batch_tokens=2048, learning_rate=3e-4, warmup=10)
    assert config.fingerprint() == (
        "314c1cb30bc137e2dbc713f94f22e3cc711ba227b1900038579bef88e6e5bb41"
    )
    assert settings(beta2=0.999).fingerprint() != settings().fingerprint()
    assert TrainConfig.load(config.model_dump()) == config
