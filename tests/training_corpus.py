"""A corpus of a few words for tests of pre-training, in our own sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from suture.training.documents import TextSource

WORDS = "the quick brown fox jumps over the lazy dog and bakes a loaf of bread".split()


def write_corpus(folder: Path, *, paragraphs: int = 300) -> list[TextSource]:
    """Two files of random sentences: a text of paragraphs, and rows."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 30)) + "." for _ in range(paragraphs)]
    (folder / "a.txt").write_text("\n\n".join(texts))
    rows = [{"text": " ".join(rng.choice(WORDS, 12))} for _ in range(60)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        TextSource(name="prose", files=(folder / "a.txt",), licence="ours"),
        TextSource(name="rows", files=(folder / "b.jsonl",)),
    ]


def tiny_model(folder: Path, kind: str = "decoder", *, steps: int = 1, **shape: Any) -> Path:
    """A checkpoint of one of our models with its tokenizer, trained for `steps` on the corpus."""
    from suture.training.pretrain import PretrainRecipe, run_pretraining

    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "pretrain": {
            "texts": write_corpus(folder), "tokenizer": {"vocabulary": 300}, "block": 16,
            "held_out": 0.2, "dev_blocks": 2,
            "objective": {"decoder": "causal", "encoder": "masked"}[kind],
        },
        "model": {"model_type": f"suture-{kind}", "hidden_size": 16, "num_hidden_layers": 2,
                  "num_attention_heads": 2, "ffn_width": 64} | shape,
        "output": folder / "model",
        "train": {"steps": steps, "batch_tokens": 256, "learning_rate": 1e-2, "warmup": 2,
                  "compute": "float32"},
        "device": "cpu",
    }  # fmt: skip
    run_pretraining(PretrainRecipe.load(values))
    return folder / "model"
