"""Losses of running text against one text at a time through transformers' own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from helpers import tiny_llama
from suture.errors import SutureError
from suture.inference.reading import load_reader
from suture.inference.text_loss import batches, text_losses, windows
from suture.patch import open_model
from suture.suites.passages import masking
from training_corpus import tiny_model

TEXTS = ["the quick brown fox " * 20, "a loaf of bread", "dog", "jumps over the lazy dog and " * 7]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {
        "decoder": tiny_model(home / "decoder", "decoder", outer_ratio=0.5),
        "encoder": tiny_model(home / "encoder", "encoder", outer_ratio=0.0),
        "llama": tiny_llama(home / "llama", vocab=300),
    }


@pytest.mark.parametrize("name", ["decoder", "llama"])
def test_a_decoder_predicts_every_token_but_the_first_once(
    folders: dict[str, Path], name: str
) -> None:
    reader = load_reader(open_model(folders[name]), device="cpu")
    reader.context = 16
    found = text_losses(reader, TEXTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    for text, one in zip(TEXTS, found, strict=True):
        ids = reader.tokenizer(text)["input_ids"]
        assert one.tokens == len(ids) - 1
        nats = 0.0
        with torch.no_grad():
            for at in range(0, len(ids) - 1, 15):
                piece = torch.tensor([ids[at : at + 16]])
                output = model(input_ids=piece, labels=piece)
                nats += float(output.loss) * (piece.shape[1] - 1)
        assert one.nats == pytest.approx(nats, rel=1e-5)


def test_an_encoder_predicts_the_masked_tokens(folders: dict[str, Path]) -> None:
    reader = load_reader(open_model(folders["encoder"]), device="cpu")
    assert not reader.causal
    mask = masking(reader)
    found = text_losses(reader, TEXTS, mask=mask)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folders["encoder"]).eval()
    for number, (text, one) in enumerate(zip(TEXTS, found, strict=True)):
        ids = reader.tokenizer(text)["input_ids"]
        nats, count = 0.0, 0
        for place, at in enumerate(range(0, len(ids), 16)):
            read = np.asarray([ids[at : at + 16]])
            if read.shape[1] < 2:
                continue
            labels = torch.from_numpy(mask(read, number * 4096 + place))
            known = int((labels != -100).sum())
            if known:
                with torch.no_grad():
                    output = model(input_ids=torch.from_numpy(read), labels=labels)
                nats, count = nats + float(output.loss) * known, count + known
        assert one.tokens == count
        assert one.nats == pytest.approx(nats, rel=1e-4)
    assert found[2].tokens == 0
    assert np.isnan(found[2].mean)
    again = text_losses(reader, TEXTS, mask=masking(reader))
    assert [one.tokens for one in again] == [one.tokens for one in found]


def test_batches_hold_every_window_once(folders: dict[str, Path], monkeypatch: Any) -> None:
    import suture.inference.text_loss as text_loss

    monkeypatch.setattr(text_loss, "BATCH_TOKENS", 40)
    reader = load_reader(open_model(folders["decoder"]), device="cpu")
    cut = windows(reader, TEXTS)
    made = batches(cut, reader)
    assert sorted(map(id, (w for batch in made for w in batch))) == sorted(map(id, cut))
    assert all(len(batch) * max(len(w.ids) for w in batch) <= 40 for batch in made)
    assert len(made) > 2


def test_what_predicts_no_tokens_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    import json
    import shutil

    t5 = transformers.T5Config(vocab_size=300, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8)
    transformers.T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(SutureError) as caught:
        load_reader(open_model(tmp_path / "t5"))
    assert caught.value.code == "E512"
    shutil.copytree(folders["encoder"], tmp_path / "bare")
    facts = json.loads((tmp_path / "bare" / "tokenizer_config.json").read_text())
    del facts["mask_token"]
    (tmp_path / "bare" / "tokenizer_config.json").write_text(json.dumps(facts))
    with pytest.raises(SutureError) as caught:
        load_reader(open_model(tmp_path / "bare"))
    assert caught.value.code == "E512"
    assert "mask token" in caught.value.what
