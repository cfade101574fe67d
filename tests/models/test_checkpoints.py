"""Our models through Suture's own doors: strict loading, patches, layer by layer, generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import suture
from helpers import write_tokenizer
from suture.checkpoint import roles
from suture.errors import SutureError
from suture.inference.capture import BlockStream
from suture.inference.loading import load_bare
from suture.inference.scoring import text_likelihoods
from suture.models import build
from tiny_models import KINDS, tiny


def _saved(path: Path, kind: Any, name: str, *, seed: int = 0) -> Any:
    arch = tiny(name, vocab_size=64, max_position_embeddings=64)
    model = build(kind, arch, seed=seed, pad_token_id=0, eos_token_id=0).eval()
    model.save_pretrained(path)
    write_tokenizer(path)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_strictly_loaded_it_is_the_same_model(name: str, tmp_path: Path) -> None:
    """Names on disk are names in memory, byte for byte; the encoder is no model that continues."""
    model = _saved(tmp_path / "decoder", "decoder", name)
    lm = suture.load(suture.open_model(tmp_path / "decoder"))
    stored = load_file(tmp_path / "decoder" / "model.safetensors")
    held = lm.model.state_dict()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert set(stored) == set(held) - tied
    assert all(torch.equal(value, held[part]) for part, value in stored.items())
    ids = torch.randint(1, 64, (2, 9))
    torch.testing.assert_close(lm.model(ids).logits, model(ids).logits, rtol=1e-5, atol=2e-5)
    one = suture.generate(lm, ["How do I bake?"], max_new_tokens=5)
    two = suture.generate(lm, ["The answer is yes. The answer", "How do I bake?"], max_new_tokens=5)
    assert one[0] == two[1]  # padding and company change nothing
    encoder = _saved(tmp_path / "encoder", "encoder", name)
    source = suture.open_model(tmp_path / "encoder")
    torch.testing.assert_close(
        load_bare(source)(ids).logits, encoder(ids).logits, rtol=1e-5, atol=2e-5
    )
    with pytest.raises(SutureError, match="E512"):
        suture.load(source)


@pytest.mark.parametrize("name", ["caa", "pre_rope", "moe_cea"])
def test_layer_by_layer_is_the_whole_model(name: str, tmp_path: Path) -> None:
    model = _saved(tmp_path, "decoder", name)
    lm = suture.load(suture.open_model(tmp_path))
    rows = [[5, 6, 7, 8, 9], [10, 11]]
    stream = BlockStream(lm, rows)
    for _ in range(2):
        stream.advance()
    logits = stream.logits(0, stream.entering(0), 1)
    order = stream._held[0].rows
    for place, row in enumerate(order):
        wanted = model(torch.tensor([rows[row]])).logits[0, -1]
        torch.testing.assert_close(logits[place, -1], wanted, rtol=1e-5, atol=2e-5)


def test_roles_of_the_tensors(tmp_path: Path) -> None:
    _saved(tmp_path, "decoder", "moe_inner")
    found = roles(suture.open_model(tmp_path).tensors)
    assert {role.matrix for role in found.values()} >= {
        "q", "k", "v", "o", "fc1", "fc2", "router", "up", "down", "norm", "embed",
    }  # fmt: skip
    assert found["model.layers.1.self_attn.inner.router.weight"].matrix == "router"
    assert found["model.layers.1.self_attn.inner.experts.up_proj"].matrix == "up"


def test_a_patch_between_two_of_them(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("edited", 1)):
        _saved(tmp_path / name, "decoder", "caa", seed=seed)
    suture.diff(tmp_path / "base", tmp_path / "edited", tmp_path / "patch")
    suture.apply(tmp_path / "base", [tmp_path / "patch"], tmp_path / "again")
    wanted, made = (
        suture.open_model(tmp_path / name).fingerprint() for name in ("edited", "again")
    )
    assert made == wanted


def test_a_missing_tensor_and_a_false_config_are_refused(tmp_path: Path) -> None:
    _saved(tmp_path, "decoder", "caa")
    file, settings = tmp_path / "model.safetensors", tmp_path / "config.json"
    config, state = json.loads(settings.read_text()), load_file(file)
    for key, value, code in (
        ("outer_ratio", 1.0, "E502"),  # asks for other tensors
        ("num_attention_heads", 3, "E501"),  # 16 is no multiple of it
        ("ffn_width", 1 << 30, "E140"),
        ("experts", -1, "E140"),
    ):
        settings.write_text(json.dumps({**config, key: value}))
        with pytest.raises(SutureError, match=code):
            suture.load(suture.open_model(tmp_path))
    settings.write_text(json.dumps(config))
    state.pop("model.layers.1.self_attn.inner.fc1.weight")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(SutureError) as refused:
        suture.load(suture.open_model(tmp_path))
    assert "inner.fc1" in str(refused.value)


@pytest.mark.parametrize("name", ["caa", "strict", "pre_rope", "moe_before"])
def test_likelihoods_behind_a_shared_prefix(name: str, tmp_path: Path) -> None:
    """The scorer keeps a prefix in the cache and continues it in padded batches."""
    model = _saved(tmp_path, "decoder", name)
    lm = suture.load(suture.open_model(tmp_path))
    contexts = ["How do I bake a loaf of bread? The answer is"] * 2
    options = [[" yes.", " no no no."], [" quick brown fox jumps.", " no."]]
    for context, row, made in zip(
        contexts, options, text_likelihoods(lm, contexts, options), strict=True
    ):
        start = len(lm.tokenizer(context, add_special_tokens=False)["input_ids"])
        for option, found in zip(row, made, strict=True):
            ids = lm.tokenizer(context + option, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            wanted = sum(logprobs[i - 1, ids[i]].item() for i in range(start, len(ids)))
            assert found.logprob == pytest.approx(wanted, abs=1e-4)
