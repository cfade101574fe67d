"""Whole models: nothing leaks, decoding with a cache is the full pass, files and Auto classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from suture.errors import SutureError
from suture.models import SutureDecoder, SutureDecoderConfig, SutureEncoder, build, penalty
from tiny_models import KINDS, tiny

INNER = [name for name in KINDS if tiny(name).has_inner and name != "no_pathway"]


def _ids(rows: int = 2, n: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 61, (rows, n), generator=torch.Generator().manual_seed(seed))


def _model(kind: Any, name: str, **changes: Any) -> Any:
    return build(kind, tiny(name, **changes), seed=3).eval()


def _close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("name", INNER)
def test_a_position_alone_learns_nothing_from_the_inner_part(name: str, kind: str) -> None:
    """CEA's leak test: inner output reaches the stream only through another position."""
    model, ids = _model(kind, name), _ids(n=6)
    before, longer = model(ids[:, :1]).logits, model(ids).logits
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "inner" in part:
                weight.add_(1.0)
    assert torch.equal(model(ids[:, :1]).logits, before)
    assert not torch.allclose(model(ids).logits[:, 1:], longer[:, 1:])
    if kind == "decoder":
        assert torch.equal(model(ids).logits[:, 0], longer[:, 0])


def test_without_the_pathway_it_leaks() -> None:
    model, ids = _model("decoder", "no_pathway"), _ids(n=1)
    before = model(ids).logits
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "inner" in part:
                weight.add_(1.0)
    assert not torch.allclose(model(ids).logits, before)


@pytest.mark.parametrize("name", KINDS)
def test_the_future_changes_nothing(name: str) -> None:
    model, ids = _model("decoder", name), _ids()
    other = ids.clone()
    other[:, 7:] = _ids(seed=1)[:, 7:]
    one, two = model(ids).logits, model(other).logits
    _close(one[:, :7], two[:, :7])
    assert not torch.allclose(one[:, 7:], two[:, 7:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", KINDS)
def test_decoding_with_a_cache_is_the_full_pass(name: str, attention: str) -> None:
    """In pieces of 5, 1 and 6 tokens; then by transformers' own `generate`."""
    model, ids = _model("decoder", name), _ids()
    model = SutureDecoder(SutureDecoderConfig.of(tiny(name), attn_implementation=attention)).eval()
    full, cache, pieces = model(ids).logits, transformers.DynamicCache(), []
    for piece in ids.split([5, 1, 6], dim=1):
        out = model(piece, past_key_values=cache, use_cache=True)
        pieces.append(out.logits)
    _close(torch.cat(pieces, dim=1), full)
    made = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    for n in range(12, 16):
        assert torch.equal(model(made[:, :n]).logits[:, -1].argmax(-1), made[:, n])


@pytest.mark.parametrize("name", ["vanilla", "caa", "strict", "pre_rope", "moe_inner"])
def test_a_static_cache_is_the_dynamic_one(name: str) -> None:
    """Its room beyond what is filled is not attended to; also behind padding."""
    model, ids = _model("decoder", name), _ids()
    mask = (torch.arange(12) >= torch.tensor([[0], [3]])).long()
    for given in ({}, {"attention_mask": mask}):
        how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **given}
        fixed = model.generate(ids, cache_implementation="static", **how)
        assert torch.equal(fixed, model.generate(ids, **how))
    cache, full = transformers.StaticCache(model.config, max_cache_len=20), model(ids).logits
    pieces = [model(piece, past_key_values=cache, use_cache=True).logits
              for piece in ids.split([5, 1, 6], dim=1)]  # fmt: skip
    _close(torch.cat(pieces, dim=1), full)


def test_arguments_without_effect_are_refused() -> None:
    model, ids = _model("decoder", "vanilla"), _ids()
    with pytest.raises(SutureError, match="E980"):
        model(ids, attention_mask=torch.ones(2, 1, 12, 12))
    for given, says in (
        ({"lables": ids}, "labels"),
        ({"output_hidden_states": True}, "capture"),
        ({"return_dict": False}, "names"),
    ):
        for kind in ("decoder", "encoder"):
            with pytest.raises(SutureError, match=says) as refused:
                _model(kind, "vanilla")(ids, **given)
            assert refused.value.code == "E981"
    plain = model(ids, output_attentions=False, return_dict=True, token_type_ids=ids * 0)
    assert torch.equal(plain.logits, model(ids).logits)


def test_trainer_accumulates_the_same_gradient(tmp_path: Path) -> None:
    """Eight rows at once, or two at a time in four pieces."""
    pytest.importorskip("accelerate")
    rows = [{"input_ids": row, "labels": row} for row in _ids(8)]
    norms = []
    for size, pieces in ((8, 1), (2, 4)):
        trainer = transformers.Trainer(
            _model("decoder", "vanilla"),
            transformers.TrainingArguments(
                str(tmp_path), per_device_train_batch_size=size, use_cpu=True, max_steps=1,
                gradient_accumulation_steps=pieces, logging_steps=1, report_to="none",
                save_strategy="no", disable_tqdm=True,
            ),
            train_dataset=rows,  # type: ignore[arg-type]
        )  # fmt: skip
        trainer.train()
        (logged, *_) = trainer.state.log_history
        norms.append((logged["loss"], float(logged["grad_norm"])))
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("name", KINDS)
def test_written_out_and_fused_attention_agree_and_padding_changes_nothing(
    name: str, kind: str
) -> None:
    fused = _model(kind, name)
    eager = type(fused)(type(fused.config).of(tiny(name), attn_implementation="eager")).eval()
    eager.load_state_dict(fused.state_dict())
    ids = _ids(n=8)
    _close(eager(ids).logits, fused(ids).logits)
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), ids), dim=1)
    mask = (torch.arange(11) >= 3).long().expand(2, -1)
    places = (torch.arange(11) - 3).clamp(min=0).expand(2, -1)
    for model in (eager, fused):
        out = model(padded, attention_mask=mask, position_ids=places, labels=None)
        _close(out.logits[:, 3:], fused(ids).logits)
        assert out.logits.isfinite().all()


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("name", KINDS)
def test_saved_and_loaded_by_the_auto_classes(name: str, kind: str, tmp_path: Path) -> None:
    model, ids = _model(kind, name), _ids()
    model.save_pretrained(tmp_path)
    auto = {
        "decoder": transformers.AutoModelForCausalLM,
        "encoder": transformers.AutoModelForMaskedLM,
    }
    again = auto[kind].from_pretrained(tmp_path, trust_remote_code=False)
    assert type(again) is type(model)
    assert again.config.architecture == tiny(name)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    _close(again(ids).logits, model(ids).logits)


def test_an_outer_ratio_of_one_is_the_wide_network() -> None:
    """r = 1: the same tensors, whatever the pathway would be."""
    wide = _model("decoder", "wide")
    for pathway in ("exact", "strict", "none"):
        same = _model("decoder", "wide", outer_ratio=1.0, direct_pathway=pathway)
        assert list(same.state_dict()) == list(wide.state_dict())
        assert torch.equal(same(_ids()).logits, wide(_ids()).logits)


def test_one_seed_gives_all_architectures_the_same_embedding_and_attention() -> None:
    one, two = _model("encoder", "vanilla").state_dict(), _model("encoder", "caa").state_dict()
    shared = [name for name in one if name in two and "mlp" not in name]
    assert len(shared) > 20
    assert all(torch.equal(one[name], two[name]) for name in shared)
    other = build("encoder", tiny("vanilla"), seed=4).state_dict()
    name = "model.embed_tokens.weight"
    assert not torch.equal(other[name], one[name])


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_gets_a_gradient(name: str) -> None:
    for kind in ("decoder", "encoder"):
        model = _model(kind, name)
        out = model(_ids(4, 20), labels=_ids(4, 20))
        (out.loss + penalty(out, model.config)).backward()
        for part, weight in model.named_parameters():
            assert weight.grad is not None, part
            assert weight.grad.isfinite().all(), part
            assert weight.grad.any() or "k_proj.bias" in part, part


def test_the_loss_is_of_language_modelling_alone() -> None:
    """Shifted in the decoder, in place in the encoder; auxiliary losses are not in it."""
    ids = _ids()
    model = _model("decoder", "moe")
    out = model(ids, labels=ids)
    wanted = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    assert out.loss == wanted
    assert set(out.auxiliary) == {"balance", "z"}
    assert penalty(out, model.config) == 0.01 * out.auxiliary["balance"]
    assert len(out.routing) == 2
    for routing in out.routing:
        assert routing.load.sum() == pytest.approx(1.0)
        assert 0 < routing.entropy <= torch.log(torch.tensor(4.0))
        assert routing.dropped == 0
    labels = torch.where(torch.arange(12) % 5 == 0, ids, -100)
    encoder = _model("encoder", "vanilla")
    out = encoder(ids, labels=labels)
    there = labels != -100
    assert out.loss == torch.nn.functional.cross_entropy(out.logits[there], ids[there])
    assert out.auxiliary is None
    assert penalty(out, encoder.config) == 0


def test_where_nothing_is_predicted_nothing_is_learnt() -> None:
    """A batch without a masked token, and one that is all padding."""
    for only in (True, False):
        model = _model("encoder", "moe")
        out = model(_ids(), labels=torch.full((2, 12), -100), loss_only=only)
        assert out.loss == 0
        out.loss.backward()
        assert not model.model.embed_tokens.weight.grad.any()
    out = model(_ids(), attention_mask=torch.zeros(2, 12))
    assert {name: value.item() for name, value in out.auxiliary.items()} == {"balance": 0, "z": 0}
    assert out.routing[0].entropy == 0


@pytest.mark.parametrize("name", ["vanilla", "caa", "cea", "pre_rope", "moe"])
def test_captured_states(name: str) -> None:
    """m_0 … m_L and a_1 … a_L are the stream; branches are what is added before the residual."""
    model, arch = _model("encoder", name), tiny(name)
    plain = model(_ids())
    out = model(_ids(), capture={"m", "a", "branch_a", "branch_m", "q", "k"})
    assert torch.equal(out.logits, plain.logits)
    assert plain.sites is None
    sites, layers = out.sites, arch.num_hidden_layers
    assert (len(sites["m"]), len(sites["a"])) == (layers + 1, layers)
    assert sites["q"][0].shape == sites["k"][0].shape == (2, 2, 12, 8)
    assert torch.equal(
        sites["m"][0],
        model.model.embed_norm(  # of post-norm models
            model.model.embed_tokens(_ids()) + model.model.embed_positions.weight[:12]
        )
        if arch.norm == "post"
        else model.model.embed_tokens(_ids()),
    )
    for layer, block in enumerate(model.model.layers):
        added = sites["m"][layer] + sites["branch_a"][layer]
        _close(sites["a"][layer], block.attn_norm(added) if arch.norm == "post" else added)
        if arch.outer_width:
            added = sites["a"][layer] + sites["branch_m"][layer]
            _close(sites["m"][layer + 1], block.mlp_norm(added) if arch.norm == "post" else added)
        else:
            assert torch.equal(sites["m"][layer + 1], sites["a"][layer])
    with pytest.raises(SutureError, match="E974") as refused:
        model(_ids(), capture={"branch"})
    assert refused.value.fix


def test_more_positions_than_there_are() -> None:
    with pytest.raises(SutureError, match="E975"):
        _model("encoder", "vanilla")(_ids(n=25))
    with pytest.raises(SutureError, match="E975"):
        _model("decoder", "vanilla")(_ids(n=2), position_ids=torch.tensor([[23, 24]]))
    with pytest.raises(SutureError, match="E975"):
        _model("decoder", "vanilla").generate(_ids(n=20), max_new_tokens=8, pad_token_id=0)
    assert _model("encoder", "pre_rope")(_ids(n=25)).logits.shape == (2, 25, 61)


def test_the_encoder_looks_both_ways() -> None:
    model = _model("encoder", "cea")
    assert isinstance(model, SutureEncoder)
    other = _ids().clone()
    other[:, -1] = 1
    assert not torch.allclose(model(_ids()).logits[:, 0], model(other).logits[:, 0])
