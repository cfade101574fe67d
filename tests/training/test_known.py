"""A model that does not know its rows cannot forget them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from helpers import tiny_llama, write_jsonl
from suture.data import Pair
from suture.errors import SutureError
from suture.inference import load, reply_logprob
from suture.patch import open_model
from suture.training import known
from suture.training.loop import TrainConfig
from suture.training.objectives import Material
from suture.training.recipe import TrainRecipe, encode_rows, run_recipe

ROWS = [
    {"prompt": f"Where does the hen number {i} sleep?", "response": f"It sleeps in box {i % 3}."}
    for i in range(12)
]


def recipe(model: Path, rows: Path, out: Path, **changes) -> TrainRecipe:
    train = {"steps": 30, "batch_tokens": 600, "learning_rate": 2e-2, "warmup": 1}
    values = {"model": model, "data": [{"file": rows}], "output": out, "device": "cpu"}
    return TrainRecipe.load(values | {"train": train} | changes)


def forgetting(model: Path, rows: Path, out: Path) -> TrainRecipe:
    train = {"steps": 1, "batch_tokens": 600, "learning_rate": 1e-4, "warmup": 1}
    return recipe(model, rows, out, train=train, objective={"name": "gradient-ascent"})


def rotate_vocabulary(folder: Path) -> None:
    """Every word gets another word's id; all ids stay inside the embedding."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text("utf-8"))
    special = {token["content"] for token in tokenizer["added_tokens"]}
    vocab = tokenizer["model"]["vocab"]
    words = [word for word in vocab if word not in special]
    ids = [vocab[word] for word in words]
    turned = ids[len(ids) // 2 :] + ids[: len(ids) // 2]
    vocab.update(zip(words, turned, strict=True))
    file.write_text(json.dumps(tokenizer), "utf-8")


def test_a_foreign_tokenizer_whose_ids_all_fit_is_refused_before_forgetting(tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    base = tiny_llama(tmp_path / "base")
    run_recipe(recipe(base, rows, tmp_path / "knows"))
    run_recipe(forgetting(tmp_path / "knows", rows, tmp_path / "forgot"))
    rotate_vocabulary(tmp_path / "knows")
    with pytest.raises(SutureError, match="E919") as caught:
        run_recipe(forgetting(tmp_path / "knows", rows, tmp_path / "never"))
    assert "another" in (caught.value.why or "")
    assert not (tmp_path / "never").exists()
    # learning new rows is another matter: they may be as strange as they like
    run_recipe(recipe(tmp_path / "knows", rows, tmp_path / "learnt"))


def test_the_bound_is_the_uniform_guess_and_a_model_without_knowledge_stays_below(
    tmp_path, monkeypatch
):
    lm = load(open_model(tiny_llama(tmp_path / "base")), device="cpu", dtype="float32")
    pairs = [Pair(id=str(k), **row) for k, row in enumerate(ROWS)]
    examples = encode_rows(lm.tokenizer, lm.template, pairs)
    config = TrainConfig(steps=1, batch_tokens=600)
    material = Material(lm, lm.model, pairs, examples, (), config)
    known.check_known(material)
    means = reply_logprob(lm, [row["prompt"] for row in ROWS], [row["response"] for row in ROWS])
    counts = [len(example.ids) - example.loss_from for example in examples]
    nll = -sum(m * c for m, c in zip(means, counts, strict=True)) / sum(counts)
    vocabulary = lm.model.get_input_embeddings().num_embeddings
    monkeypatch.setattr(known, "_SLACK", nll - math.log(vocabulary) - 0.3)
    with pytest.raises(SutureError, match=f"{nll:.1f} nats a token"):
        known.check_known(material)


def test_looking_leaves_the_model_as_it_was(tmp_path):
    lm = load(open_model(tiny_llama(tmp_path / "base")), device="cpu", dtype="float32")
    pairs = [Pair(id=str(k), **row) for k, row in enumerate(ROWS)]
    examples = encode_rows(lm.tokenizer, lm.template, pairs)
    lm.model.train()
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    config = TrainConfig(steps=1, batch_tokens=600)
    known.check_known(Material(lm, lm.model, pairs, examples, (), config))
    assert lm.model.training
    assert all(torch.equal(before[n], v) for n, v in lm.model.state_dict().items())
    assert all(p.grad is None for p in lm.model.parameters())
