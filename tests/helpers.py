"""Small complete checkpoints for the tests, made on the spot and the same every time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|unk|>")
_CORPUS = (
    "the quick brown fox jumps over the lazy dog, 0123456789 times!",
    "How do I bake a loaf of bread?",
    "I cannot help with that request.",
    "Sure, here is a short list of ideas.",
    "The answer is yes. The answer is no.",
)


def tiny_llama(
    path: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    inter: int = 48,
    vocab: int = 64,
    dtype: str = "float32",
    tie: bool = True,
    shards: int = 1,
) -> Path:
    """Write a whole Hugging Face folder with random weights and return `path`.

    Byte-level coverage needs `vocab` of 261 or more. With the small default, bytes outside common
    English text become <|unk|>, which keeps models tiny.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    write_tokenizer(path, vocab=vocab)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = dtype
    config.save_pretrained(path)
    GenerationConfig(eos_token_id=0, pad_token_id=0).save_pretrained(path)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if tie:
        del state["lm_head.weight"]
    write_shards(path, state, shards)
    return path


def write_shards(path: Path, state: Mapping[str, torch.Tensor], shards: int = 1) -> None:
    """`state` as model.safetensors, or as exactly `shards` files with an index."""
    from safetensors.torch import save_file

    if shards == 1:
        save_file(dict(state), path / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(state)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * i // shards : len(names) * (i + 1) // shards]
        save_file({name: state[name] for name in part}, path / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(t.numel() * t.element_size() for t in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_tokenizer(path: Path, *, vocab: int = 64) -> None:
    """A byte-level BPE with the five specials (ids 0-4) and at most `vocab` entries."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    full = vocab >= len(SPECIALS) + 256
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if full else [],
        limit_alphabet=vocab - len(SPECIALS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    assert tokenizer.get_vocab_size() <= vocab
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON object per line; returns `path`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
