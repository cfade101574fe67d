"""States of tokens: of many families what transformers gives for one text alone, cut and whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helpers import write_tokenizer
from suture.errors import SutureError
from suture.inference.states import StateModel, usual_layer
from suture.models import build
from suture.patch import open_model
from tiny_families import tiny_family
from tiny_models import tiny as architecture

_BERT = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
_ROBERTA = {**_BERT, "pad_token_id": 1}
ENCODERS: list[tuple[str, str, dict[str, Any], int]] = [
    ("bert", "BertForMaskedLM", _BERT, 40),
    ("bert", "BertModel", _BERT, 40),
    ("bert", "BertForSequenceClassification", _BERT, 40),
    ("roberta", "RobertaForMaskedLM", _ROBERTA, 38),
    ("xlm-roberta", "XLMRobertaForSequenceClassification", _ROBERTA, 38),
    ("camembert", "CamembertForMaskedLM", _ROBERTA, 38),
    ("mpnet", "MPNetForMaskedLM", _ROBERTA, 38),
    ("deberta-v2", "DebertaV2ForSequenceClassification", _BERT, 40),
    ("electra", "ElectraModel", {**_BERT, "embedding_size": 8}, 40),
    ("modernbert", "ModernBertForMaskedLM", {**_BERT, "local_attention": 8}, 40),
    (
        "distilbert", "DistilBertForMaskedLM",
        {"vocab_size": 300, "dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2,
         "max_position_embeddings": 40, "pad_token_id": 0}, 40,
    ),
    (
        "gpt2", "GPT2LMHeadModel",
        {"vocab_size": 300, "n_embd": 16, "n_head": 2, "n_layer": 3, "n_positions": 40,
         "eos_token_id": 0}, 40,
    ),
]  # fmt: skip
TEXTS = ["How do I bake a loaf of bread?", "no", "the lazy dog " * 30, "", "quick brown fox, jumps"]


def _written(path: Path, kind: str, name: str, settings: dict[str, Any]) -> Path:
    config = transformers.AutoConfig.for_model(kind, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, name)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    write_tokenizer(path, vocab=300)
    settings = json.loads((path / "config.json").read_text())
    settings.pop("_name_or_path", None)
    (path / "config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize(("kind", "name", "settings", "context"), ENCODERS)
def test_they_are_those_of_one_text_alone(
    kind: str, name: str, settings: dict[str, Any], context: int, tmp_path: Path
) -> None:
    folder = _written(tmp_path / "m", kind, name, settings)
    plain = transformers.AutoModel.from_pretrained(folder).eval()
    for layer in (0, 2):
        model = StateModel(open_model(folder), layer)
        tokens = model.tokens(TEXTS)
        assert (model.context, len(tokens[2].ids), tokens[2].cut) == (context, context, True)
        assert [text.cut for text in tokens] == [False, False, True, False, False]
        found = dict(model.states(tokens))
        assert found[3].shape[0] == 0
        for k, text in enumerate(tokens):
            if text.ids:
                with torch.no_grad():
                    out = plain(input_ids=torch.tensor([text.ids]), output_hidden_states=True)
                assert torch.allclose(found[k], out.hidden_states[layer][0], atol=1e-5)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_our_own_models_are_read_too(kind: Any, tmp_path: Path) -> None:
    model = build(kind, architecture("untied"), seed=3, pad_token_id=0).eval()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, vocab=model.config.vocab_size)
    reader = StateModel(open_model(tmp_path), 1)
    tokens = reader.tokens(TEXTS)
    found = dict(reader.states(tokens))
    for k, text in enumerate(tokens):
        if text.ids:
            with torch.no_grad():
                sites = model(input_ids=torch.tensor([text.ids]), capture={"m"}).sites
            assert torch.allclose(found[k], sites["m"][1][0], atol=1e-5)


@pytest.mark.parametrize("batch", [8, 60, 4096])
def test_how_texts_are_batched_changes_nothing(batch: int, tiny: Callable[..., Path]) -> None:
    model = StateModel(open_model(tiny(vocab=300, layers=3)))
    tokens = model.tokens(TEXTS)
    alone = [next(model.states([text]))[1] for text in tokens]
    for k, states in model.states(tokens, max_tokens=batch):
        assert torch.allclose(states, alone[k], atol=1e-5)


def test_what_decides_a_state_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny(vocab=300, layers=3)
    source = open_model(folder)
    about = StateModel(source).identity
    assert about["model"] == source.fingerprint()
    assert about["layer"] == usual_layer(3) == 2
    assert StateModel(source, 1).identity == {**about, "layer": 1}
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert StateModel(open_model(other)).identity == about
    write_tokenizer(other, vocab=290)
    assert StateModel(open_model(other)).identity != about


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_family(tmp_path / "m", "bert")
    write_tokenizer(folder, vocab=300)
    model = StateModel(open_model(folder))
    with pytest.raises(SutureError) as caught:
        list(model.states(model.tokens(TEXTS)))
    assert caught.value.code == "E508"


def test_what_does_not_read_a_text_is_refused(tmp_path: Path) -> None:
    for family in ("t5", "clip"):
        with pytest.raises(SutureError) as caught:
            StateModel(open_model(tiny_family(tmp_path / family, family)))
        assert caught.value.code == "E590"
