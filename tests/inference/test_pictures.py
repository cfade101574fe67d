"""Models with image input, against transformers' own loading of the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers import tiny_llama
from looking import tiny_llava
from suture.errors import SutureError, TooLongError
from suture.inference.pictures import load_looking, look, sees
from suture.patch import diff, open_model

COLOURS = {"night": (0, 0, 0), "snow": (255, 255, 255), "poppy": (255, 0, 0), "sea": (0, 60, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("looking"))


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    files = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
        files.append(tmp_path / f"{name}.png")
    return files


def said_by_transformers(folder: Path, prompt: str, picture: Path) -> list[int]:
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(images=Image.open(picture), text=f"<image>{prompt}", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def ask(prompt: str, picture: Path | None = None) -> list[dict[str, object]]:
    turn: dict[str, object] = {"role": "user", "content": prompt}
    return [turn if picture is None else turn | {"image": picture}]


def test_the_reply_is_that_of_transformers_and_hangs_on_the_picture(folder, pictures):
    lm = load_looking(open_model(folder), device="cpu", dtype="float32")
    prompt = "What is in the picture?"
    replies = look(lm, [ask(prompt, picture) for picture in pictures], max_new_tokens=6)
    for reply, picture in zip(replies, pictures, strict=True):
        ids = said_by_transformers(folder, prompt, picture)
        stop = lm.processor.tokenizer.eos_token_id
        ids = ids[: ids.index(stop)] if stop in ids else ids
        assert reply.text == lm.processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert reply.tokens == len(ids)
    assert len({reply.text for reply in replies}) > 1
    assert look(lm, [ask(prompt)], max_new_tokens=6)[0].text  # and without one


def test_a_patch_is_seen_through(folder, pictures, tmp_path):
    edited = tmp_path / "edited"
    edited.mkdir()
    for file in folder.iterdir():
        (edited / file.name).write_bytes(file.read_bytes())
    tensors = load_file(edited / "model.safetensors")
    name = next(n for n in tensors if n.endswith("projector.linear_1.weight"))
    tensors[name] = -tensors[name]
    save_file(tensors, edited / "model.safetensors", metadata={"format": "pt"})
    base = open_model(folder)
    diff(base, open_model(edited), tmp_path / "patch")
    patched = open_model(folder, patches=[tmp_path / "patch"])
    asked = [ask("What is this?", pictures[0])]
    through = look(load_looking(patched, device="cpu", dtype="float32"), asked)
    written = look(load_looking(open_model(edited), device="cpu", dtype="float32"), asked)
    before = look(load_looking(base, device="cpu", dtype="float32"), asked)
    assert through == written != before


def test_weights_that_are_missing_are_never_made_up(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("projector.linear_1.bias"))
    del tensors[gone]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SutureError, match=r"E502.*not in the checkpoint"):
        load_looking(open_model(broken), device="cpu")


def test_a_broken_picture_names_its_file(folder, tmp_path):
    lm = load_looking(open_model(folder), device="cpu", dtype="float32")
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"not a picture")
    with pytest.raises(SutureError, match="E513") as caught:
        look(lm, [ask("What?", file)])
    assert caught.value.where == str(file)


def test_a_model_without_eyes_is_told_apart(folder, tmp_path):
    plain = tiny_llama(tmp_path / "plain")
    assert sees(json.loads((folder / "config.json").read_text()))
    assert not sees(json.loads((plain / "config.json").read_text()))
    with pytest.raises(SutureError, match="E516"):
        load_looking(open_model(plain), device="cpu")


def test_a_folder_without_its_processor_says_what_to_copy(folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        if "processor" not in file.name:
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SutureError, match="E505") as caught:
        load_looking(open_model(bare), device="cpu")
    assert "processor_config.json" in (caught.value.fix or "")


def test_a_conversation_beyond_the_context_is_refused(folder, pictures):
    lm = load_looking(open_model(folder), device="cpu", dtype="float32")
    room = lm.model.config.text_config.max_position_embeddings
    with pytest.raises(TooLongError, match="E506") as caught:
        look(lm, [ask("a"), ask("b", pictures[0])], max_new_tokens=room)
    assert caught.value.row == 0


def test_the_folder_says_which_tokens_end_a_reply(folder, pictures, tmp_path):
    asked = [ask("What is this?", pictures[0])]
    before = look(load_looking(open_model(folder), device="cpu", dtype="float32"), asked)[0]
    ends = tmp_path / "ends"
    ends.mkdir()
    for file in folder.iterdir():
        (ends / file.name).write_bytes(file.read_bytes())
    vocabulary = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    every = {"eos_token_id": list(range(vocabulary))}
    (ends / "generation_config.json").write_text(json.dumps(every))
    reply = look(load_looking(open_model(ends), device="cpu", dtype="float32"), asked)[0]
    assert before.tokens > 0
    assert (reply.tokens, reply.ended) == (0, True)
