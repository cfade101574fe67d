"""The shared fixture itself: what it writes loads in transformers and is the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import tiny_llama


@pytest.mark.parametrize("options", [{}, {"shards": 3, "tie": False, "dtype": "bfloat16"}])
def test_tiny_llama_is_a_whole_folder(tmp_path: Path, options: dict[str, object]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tiny_llama(tmp_path / "model", **options)
    assert len(list(path.glob("*.safetensors"))) == options.get("shards", 1)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert str(model.dtype).endswith(str(options.get("dtype", "float32")))
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>Hi<|end|><|assistant|>"
    assert tokenizer.decode(tokenizer("a short list").input_ids) == "a short list"


def test_tiny_llama_is_deterministic(tmp_path: Path) -> None:
    one, two, other = (tiny_llama(tmp_path / str(i), seed=s) for i, s in enumerate((1, 1, 2)))
    read = [(p / "model.safetensors").read_bytes() for p in (one, two, other)]
    assert read[0] == read[1] != read[2]
