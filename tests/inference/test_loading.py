from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fakes import Altered
from suture.checkpoint import Checkpoint
from suture.errors import SutureError
from suture.inference import generate, load
from suture.inference.loading import check_device

EMBED = "model.embed_tokens.weight"
V = "model.layers.1.self_attn.v_proj.weight"


def code(call: Callable[[], object]) -> str:
    with pytest.raises(SutureError) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_equal_those_of_transformers(
    tiny: Callable[..., Path], tie: bool, dtype: str
) -> None:
    import transformers

    folder = tiny(tie=tie, dtype=dtype, shards=2)
    lm = load(Checkpoint.open(folder))
    assert lm.dtype == torch.float32  # auto on the CPU
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, theirs.eval()(ids).logits)
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert not lm.model.training


def test_bfloat16_on_request(tiny: Callable[..., Path]) -> None:
    lm = load(Checkpoint.open(tiny()), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}
    assert lm.model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_ties_share_memory_and_follow_each_other(tiny: Callable[..., Path]) -> None:
    lm = load(Checkpoint.open(tiny(tie=True)))
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    untied = load(Checkpoint.open(tiny(tie=False)))
    assert untied.model.lm_head.weight is not untied.model.model.embed_tokens.weight


def test_fingerprint_is_the_sources(tiny: Callable[..., Path]) -> None:
    source = Checkpoint.open(tiny())
    assert load(source).fingerprint == source.fingerprint()


def test_a_missing_tensor_is_never_random(tiny: Callable[..., Path]) -> None:
    source = Altered(tiny(), {V: None})
    with pytest.raises(SutureError) as caught:
        load(source)
    assert caught.value.code == "E502"
    assert V in str(caught.value)


def test_an_unexpected_tensor_is_refused(tiny: Callable[..., Path]) -> None:
    source = Altered(tiny(), {"model.layers.0.adapter.weight": torch.zeros(2, 2)})
    assert code(lambda: load(source)) == "E502"


def test_a_rotary_table_of_an_old_exporter_is_recomputed(tiny: Callable[..., Path]) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    lm = load(Altered(tiny(), {name: torch.full((4,), 9.0)}))
    assert name not in lm.names.values()


def test_a_decoder_without_the_prefix_is_understood(tiny: Callable[..., Path]) -> None:
    base = Checkpoint.open(tiny(tie=True))
    bare: dict[str, torch.Tensor | None] = dict.fromkeys(base.tensors)
    bare.update({name.removeprefix("model."): base.read(name) for name in base.tensors})
    lm = load(Altered(base, bare))
    assert lm.names[V] == V.removeprefix("model.")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, load(base).model(ids).logits)


def test_other_shapes_are_refused(tiny: Callable[..., Path]) -> None:
    assert code(lambda: load(Altered(tiny(), {V: torch.zeros(3, 32)}))) == "E503"


def test_tied_tensors_must_agree(tiny: Callable[..., Path]) -> None:
    base = Checkpoint.open(tiny(tie=True))
    same = Altered(base, {"lm_head.weight": base.read(EMBED)})
    assert load(same).names["lm_head.weight"] == "lm_head.weight"
    other = Altered(base, {"lm_head.weight": base.read(EMBED) + 1})
    assert code(lambda: load(other)) == "E504"


def test_an_unknown_architecture_is_named(tiny: Callable[..., Path]) -> None:
    source = Altered(tiny(), config={"model_type": "lama"})
    with pytest.raises(SutureError) as caught:
        load(source)
    assert caught.value.code == "E501"
    assert "llama" in str(caught.value.fix)


def test_keys_that_name_code_or_kernels_are_not_followed(tiny: Callable[..., Path]) -> None:
    tricks = {"_attn_implementation": "some/repo", "auto_map": {"AutoModel": "x.Y"}}
    assert load(Altered(tiny(), config=tricks)).model.config._attn_implementation == "sdpa"


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    folder = shutil.copytree(tiny(), tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    assert code(lambda: load(Checkpoint.open(folder))) == "E505"


def test_an_id_beyond_the_embedding_is_refused(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    source = Altered(tiny(vocab=64))
    source.path = shutil.copytree(tiny(vocab=300), tmp_path / "m")
    lm = load(source)
    assert code(lambda: generate(lm, ["the quick brown fox"])) == "E508"


def test_a_chat_template_file_replaces_the_folders(
    tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[0].content }}")
    source = Checkpoint.open(tiny())
    lm = load(source, chat_template=file)
    assert lm.template.render([{"role": "user", "content": "hi"}]) == "hi"
    assert lm.template.fingerprint != load(source).template.fingerprint


def test_stops_come_from_every_place_that_names_them(
    tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    folder = shutil.copytree(tiny(), tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 9]}))
    assert load(Checkpoint.open(folder)).stops == {0, 9}


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cpu0", "cuda:x", ""])
def test_a_device_that_cannot_be_is_refused_without_torch(name: str) -> None:
    assert code(lambda: check_device(name)) == "E507"


def test_a_device_that_is_not_there_is_refused(tiny: Callable[..., Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("has CUDA")
    assert code(lambda: load(Checkpoint.open(tiny()), device="cuda:3")) == "E507"


def test_importing_inference_and_methods_imports_nothing_heavy() -> None:
    probe = (
        "import sys, suture.inference, suture.methods, suture.methods.fisher;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=env)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
