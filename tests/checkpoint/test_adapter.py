"""LoRA folders: merged while reading as PEFT merges them, anything else refused by name."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers import tiny_llama
from raw_folders import listing
from suture.checkpoint import AdapterCheckpoint, Checkpoint, CheckpointWriter, compare_layouts
from suture.errors import SutureError

Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"


def make_adapter(base: Path, out: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Write an adapter with random factors; returns PEFT's own merged weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, about tied embeddings and old names
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        wrapped.save_pretrained(out, save_embedding_layers=False)
        return dict(wrapped.merge_and_unload().state_dict())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "m")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt2") / "m"
    config = transformers.GPT2Config(vocab_size=16, n_embd=8, n_head=2, n_layer=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    make_adapter(base, tmp_path / "adapter", r=4, target_modules=["q_proj"])
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": ["up_proj", "down_proj"]},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "up_proj", "o_proj"],
            "rank_pattern": {"up_proj": 2, "layers.0.self_attn.q_proj": 6},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 32, "up_proj": 3},
        },
        {"r": 2, "target_modules": ["embed_tokens", "q_proj"]},
        {"r": 2, "target_modules": "all-linear", "init_lora_weights": "gaussian"},
    ],
)
def test_merges_as_peft_does(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    expected = make_adapter(base, tmp_path / "adapter", **settings)
    model = AdapterCheckpoint(Checkpoint.open(base), tmp_path / "adapter")
    assert len(model.merged) >= 2
    for name in model.tensors:
        torch.testing.assert_close(model.read(name), expected[name], rtol=1e-6, atol=1e-7)
        changed = not torch.equal(model.read(name), Checkpoint.open(base).read(name))
        assert changed == (name in model.merged)


def test_conv1d_weights_are_transposed(gpt2: Path, tmp_path: Path) -> None:
    expected = make_adapter(gpt2, tmp_path / "a", r=2, target_modules=["c_attn", "c_proj"])
    model = AdapterCheckpoint(Checkpoint.open(gpt2), tmp_path / "a")
    assert len(model.merged) == 6
    for name in model.merged:
        torch.testing.assert_close(model.read(name), expected[name], rtol=1e-6, atol=1e-7)


def test_bfloat16_is_rounded_once(base: Path, adapter: Path, tmp_path: Path) -> None:
    rounded = tiny_llama(tmp_path / "bf16", dtype="bfloat16")
    model = AdapterCheckpoint(Checkpoint.open(rounded), adapter)
    factors = load_file(adapter / "adapter_model.safetensors")
    stem = f"base_model.model.{Q.removesuffix('.weight')}"
    delta = factors[f"{stem}.lora_B.weight"].double() @ factors[f"{stem}.lora_A.weight"].double()
    exact = Checkpoint.open(rounded).read(Q).double() + delta * (8 / 4)
    assert model.read(Q).dtype == torch.bfloat16
    assert (model.read(Q).double() - exact).abs().max() <= exact.abs().max() * 2**-8


def test_written_and_read_are_the_same_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    before = listing(base)
    model = AdapterCheckpoint(Checkpoint.open(base), adapter)
    CheckpointWriter(model, tmp_path / "merged").close()
    assert Checkpoint.open(tmp_path / "merged").fingerprint() == model.fingerprint()
    assert model.fingerprint() != model.base.fingerprint()
    compare_layouts(Checkpoint.open(base), model)
    assert listing(base) == before


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        ({"use_dora": True}, "E120", "use_dora"),
        ({"bias": "all"}, "E120", "bias"),
        ({"modules_to_save": ["lm_head"]}, "E120", "modules_to_save"),
        ({"lora_bias": True}, "E120", "lora_bias"),
        ({"init_lora_weights": "pissa"}, "E120", "pissa"),
        ({"layer_replication": [[0, 1]]}, "E120", "layer_replication"),
        ({"some_future_setting": {"x": 1}}, "E120", "some_future_setting"),
        ({"peft_type": "IA3"}, "E120", "IA3"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "E120", "alpha_pattern"),
        ({"lora_alpha": "8"}, "E120", "lora_alpha"),
        ({"r": 3}, "E121", "rank 4"),
    ],
)
def test_unsupported_features_are_refused_by_name(
    base: Path, adapter: Path, change: dict[str, Any], code: str, word: str
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(SutureError, match=f"{code}.*{word}"):
        AdapterCheckpoint(Checkpoint.open(base), adapter)


def test_factors_must_fit_the_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    state = load_file(file)
    stem = f"base_model.model.{Q.removesuffix('.weight')}.lora_"
    for change, code, word in (
        ({f"{stem}A.weight": None}, "E121", "only lora_B"),
        ({f"{stem}A.weight": torch.zeros(4, 7)}, "E121", "is \\[32, 32\\]"),
        ({f"{stem}magnitude_vector": torch.zeros(4)}, "E120", "no LoRA factor"),
        ({f"{stem}A.weight": torch.full((4, 32), float("nan"))}, "E117", "q_proj"),
    ):
        new = {k: v for k, v in {**state, **change}.items() if v is not None}
        save_file(new, file)
        with pytest.raises(SutureError, match=f"{code}.*{word}"):
            AdapterCheckpoint(Checkpoint.open(base), adapter).fingerprint()
    save_file({k: v for k, v in state.items() if "layers.1" in k}, file)
    small = Checkpoint.open(tiny_llama(tmp_path / "one", layers=1))
    with pytest.raises(SutureError, match=r"E121.*layers\.1"):
        AdapterCheckpoint(small, adapter)


def test_pickled_adapters_are_refused(base: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(SutureError, match=r"E106.*adapter_model\.bin"):
        AdapterCheckpoint(Checkpoint.open(base), adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(SutureError, match="E107"):
        AdapterCheckpoint(Checkpoint.open(base), adapter)
    shutil.rmtree(adapter)
    with pytest.raises(SutureError, match="E101"):
        AdapterCheckpoint(Checkpoint.open(base), adapter)
