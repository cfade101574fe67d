"""config.json and its neighbours: nothing in them may run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raw_folders import floats, write_raw
from suture.checkpoint import Checkpoint
from suture.errors import SutureError


def opened(tmp_path: Path, config: dict[str, Any] | str) -> Checkpoint:
    path = write_raw(tmp_path / "m", {"a": floats(1)})
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    return Checkpoint.open(path)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "modeling.Evil"}},
        {"text_config": {"auto_map": {"AutoModel": "org/repo--modeling.Evil"}}},
        {"layers": [{"auto_map": {"a": "b"}}]},
        {"trust_remote_code": True},
        {"vision_config": {"trust_remote_code": True}},
        {"_attn_implementation": "org/evil-kernel"},
        {"attn_implementation": "org/evil:fn"},
        {"attn_implementation": {"text_config": "org/evil"}},
        {"text_config": {"_attn_implementation": "org/evil"}},
        {"_attn_implementation_internal": "eager"},
        {"experts_implementation": "somebody/kernel"},
        {"use_kernels": True},
        {"model_type": "../../evil"},
        {"model_type": 3},
        {"architectures": ["os.system"]},
        {"architectures": "LlamaForCausalLM"},
    ],
)
def test_keys_that_load_code(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(SutureError, match="E104"):
        opened(tmp_path, config)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": Infinity}', "Infinity"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "duplicate key 'model_type'"),
        ('{"a": {"b": 1, "b": 2}}', "duplicate key 'b'"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested more than 64"),
        ('{"a": 1e5, "b": 99999999999999999999999}', "out of range"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "more than the"),
    ],
)
def test_strict_json(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SutureError, match="E103") as caught:
        opened(tmp_path, text)
    assert words in str(caught.value)
    assert "config.json" in str(caught.value)


def test_a_tokenizer_without_a_limit_may_say_so(tmp_path: Path) -> None:
    """transformers writes int(1e30), as many published folders have it."""
    path = write_raw(tmp_path / "m", {"l.weight": ("F32", (1,), bytes(4))})
    settings = path / "tokenizer_config.json"
    settings.write_text(json.dumps({"model_max_length": int(1e30)}))
    assert Checkpoint.open(path).path == path
    settings.write_text(json.dumps({"model_max_length": int(1e30) + 1}))
    with pytest.raises(SutureError, match="out of range"):
        Checkpoint.open(path)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_quantised_checkpoints_are_refused_by_name(tmp_path: Path, method: str) -> None:
    with pytest.raises(SutureError, match=rf"E105: quantised checkpoint \({method}\)"):
        opened(tmp_path, {"quantization_config": {"quant_method": method}})


def test_quantised_tensors_are_refused_by_name(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "q", {"l.qweight": ("I32", (1,), bytes(4))})
    with pytest.raises(SutureError, match=r"E105.*l\.qweight"):
        Checkpoint.open(path)


def test_the_vetted_copy_chooses_no_implementation(tmp_path: Path) -> None:
    config = {
        "model_type": "odd",
        "_attn_implementation": "sdpa",
        "text_config": {"attn_implementation": None, "_name_or_path": "org/x", "hidden_size": 4},
        "_name_or_path": "org/x",
        "auto_map": None,
        "use_kernels": False,
        "rope_theta": 1e4,
    }
    vetted = opened(tmp_path, config).config
    assert vetted == {"model_type": "odd", "text_config": {"hidden_size": 4}, "rope_theta": 1e4}


def test_tokenizer_configs_are_vetted_too(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m", {"a": floats(1)})
    (path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["t.Evil", null]}}')
    with pytest.raises(SutureError, match=r"(?s)E104.*tokenizer_config\.json"):
        Checkpoint.open(path)
