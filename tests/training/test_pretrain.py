"""A model from nothing: the run, killed and resumed, its checkpoints, and what is refused first."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import suture.training.loop as loop
import suture.training.pretrain as pretrain
from suture.errors import SutureError
from suture.training.packed import Packed
from suture.training.pretrain import PretrainRecipe, read_pretraining, run_pretraining
from training_corpus import tiny_model, write_corpus

DECODER = {
    "model_type": "suture-decoder", "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "ffn_width": 128,
}  # fmt: skip
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
ARMS = {
    "wide": {},
    "cea": {"outer_ratio": 0.125},
    "moe": {"ffn_width": 32, "experts": 4, "top_k": 2},
}
TRAIN = {"steps": 8, "batch_tokens": 64, "accumulate": 2, "learning_rate": 1e-2, "warmup": 2,
         "compute": "float32", "save_every": 3}  # fmt: skip


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    if not (folder / "a.txt").exists():
        write_corpus(folder)
    sources = [{"name": "prose", "files": ["a.txt"]}, {"name": "rows", "files": ["b.jsonl"]}]
    spec = {"texts": sources, "tokenizer": {"vocabulary": 300}, "block": 16, "held_out": 0.2,
            "dev_blocks": 8}  # fmt: skip
    spec |= changes.pop("pretrain", {})
    base = {"pretrain": spec, "model": DECODER, "output": "out", "checkpoints": 4, "train": TRAIN,
            "device": "cpu"}  # fmt: skip
    return base | changes


def recipe(folder: Path, sets: tuple[str, ...] = (), **changes: Any) -> PretrainRecipe:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values(folder, **changes)))
    return read_pretraining(folder / "recipe.yaml", sets)


def everything(folder: Path) -> dict[str, bytes]:
    parts = (folder / "out", folder / "out.steps")
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for part in parts
        for p in sorted(part.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize("arm", sorted(ARMS))
def test_every_architecture_learns(tmp_path: Path, objective: str, arm: str) -> None:
    kind = {"causal": "suture-decoder", "masked": "suture-encoder"}[objective]
    made = recipe(
        tmp_path, pretrain={"objective": objective}, model=DECODER | {"model_type": kind},
        arms=ARMS, arm=arm, train=TRAIN | {"steps": 40, "learning_rate": 2e-2},
    )  # fmt: skip
    report = run_pretraining(made)
    assert report.dev[0][0] == 0
    assert abs(report.dev[0][1] - math.log(300)) < 0.5  # nothing is known before the first step
    assert report.dev[-1][1] < report.dev[0][1] - 1
    assert report.tokens == 40 * 128
    auto = {
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
    }
    model = auto[objective].from_pretrained(report.output)
    assert sum(p.numel() for p in model.parameters()) == report.parameters
    lines = [json.loads(x) for x in (tmp_path / "out.steps/record.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))
    assert [line["step"] for line in lines if "dev" in line] == [*range(0, 41, 4)]
    last = [line for line in lines if "loss" in line][-1]
    assert ("balance" in last) == (arm == "moe")
    if arm == "moe":  # what routers add is noted apart from the loss of language modelling
        assert last["loss"] == pytest.approx(last["lm"] + 0.01 * last["balance"], abs=1e-5)


def test_arms_of_a_seed_share_what_they_can(tmp_path: Path) -> None:
    text = {"vocabulary": 300, "end": 0}
    wide, cea = (
        pretrain.new_model(DECODER | ARMS[arm], "causal", text, block=16, seed=3, device="cpu")
        for arm in ("wide", "cea")
    )
    other = pretrain.new_model(DECODER, "causal", text, block=16, seed=4, device="cpu")
    same = dict(wide.named_parameters())
    shared = [n for n, p in cea.named_parameters() if n in same and p.shape == same[n].shape]
    assert "model.embed_tokens.weight" in shared
    assert all(torch.equal(same[name], dict(cea.named_parameters())[name]) for name in shared)
    assert not torch.equal(other.model.embed_tokens.weight, wide.model.embed_tokens.weight)


def test_a_family_of_transformers_is_pretrained_too(tmp_path: Path) -> None:
    llama = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1,
             "intermediate_size": 32}  # fmt: skip
    report = run_pretraining(recipe(tmp_path, model=llama, checkpoints=0))
    made = transformers.AutoModelForCausalLM.from_pretrained(report.output)
    assert made.config.vocab_size == 300
    assert {path.name for path in (tmp_path / "out.steps").iterdir()} == {
        "record.jsonl",
        "run.json",
    }


@pytest.mark.parametrize(
    "shape",
    [
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2},
        {"model_type": "gpt2", "hidden_size": 16, "n_layer": 1, "n_head": 2, "n_positions": 20},
        BERT | {"is_decoder": True},
    ],
)
def test_names_of_a_family_are_its_own(tmp_path: Path, shape: dict[str, Any]) -> None:
    made = recipe(tmp_path, model=shape, checkpoints=0, train=TRAIN | {"steps": 1})
    report = run_pretraining(made)
    config = transformers.AutoConfig.from_pretrained(report.output)
    assert config.max_position_embeddings == shape.get("n_positions", 16)
    assert (config.hidden_size, config.eos_token_id, config.pad_token_id) == (16, 0, 1)


def test_a_mixture_begins_as_a_dense_model_that_was_trained(tmp_path: Path) -> None:
    run_pretraining(recipe(tmp_path, model=DECODER | {"ffn_width": 32}))
    dense = tmp_path / "out"
    sets = ("start=" + str(dense), f"pretrain.tokenizer={dense}", f"output={tmp_path / 'two'}")
    mixture = DECODER | {"ffn_width": 32, "experts": 4}
    made = recipe(tmp_path, sets, model=mixture)
    report = run_pretraining(made)
    before = json.loads((tmp_path / "out.steps/record.jsonl").read_text().splitlines()[-1])
    assert report.dev[0][1] == pytest.approx(before["dev"], abs=1e-3)
    assert report.dev[-1][1] != report.dev[0][1]
    shutil.rmtree(tmp_path / "two")
    assert run_pretraining(made).dev == report.dev  # the same beginning, so the same run
    for changes in ({"norm": "pre"}, {"ffn_width": 64}, {"moe_place": "inner"}):
        with pytest.raises(SutureError) as caught:
            run_pretraining(recipe(tmp_path, (*sets[:2], f"output={tmp_path / 'three'}"),
                                   model=mixture | changes))  # fmt: skip
        assert caught.value.code == "E967"
        assert str(dense) in str(caught.value.where)
    assert not (tmp_path / "three.steps").exists()


def test_a_step_in_which_nothing_is_masked(tmp_path: Path) -> None:
    objective = {"name": "masked", "share": 0.05}
    shape = DECODER | {"model_type": "suture-encoder", "experts": 2}
    made = recipe(
        tmp_path, pretrain={"objective": objective, "block": 8, "dev_blocks": 200}, model=shape,
        checkpoints=0, train=TRAIN | {"batch_tokens": 8, "accumulate": 1},
    )  # fmt: skip
    run_pretraining(made)
    record = (tmp_path / "out.steps/record.jsonl").read_text().splitlines()
    losses = [line["lm"] for line in map(json.loads, record) if "lm" in line]
    assert 0 in losses
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_killed_anywhere_it_ends_in_the_same_bytes(
    tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after each step, each state and each checkpoint."""
    kind = {"causal": "suture-decoder", "masked": "suture-encoder"}[objective]
    changes = {"pretrain": {"objective": objective, "dev_blocks": 2}, "arms": ARMS, "arm": "moe",
               "model": DECODER | {"model_type": kind}}  # fmt: skip
    (tmp_path / "whole").mkdir()
    run_pretraining(recipe(tmp_path / "whole", **changes))
    want = everything(tmp_path / "whole")
    assert {"out/model.safetensors", "out.steps/step-000004/model.safetensors"} <= want.keys()

    class KilledError(Exception):
        pass

    left = [0]

    def dying(function: Any) -> Any:
        def called(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KilledError
            return function(*given, **named)

        return called

    monkeypatch.setattr(loop, "_one_step", dying(loop._one_step))
    monkeypatch.setattr(loop, "save_state", dying(loop.save_state))
    monkeypatch.setattr(pretrain._Run, "write", dying(pretrain._Run.write))
    monkeypatch.setattr(pretrain._Run, "dev_loss", dying(pretrain._Run.dev_loss))
    folder = tmp_path / "killed"
    folder.mkdir()
    made = recipe(folder, **changes)
    killed = 0
    for distance in (1, 3, 4, 5, 6, 7, 8, 9, 100):
        left[0] = distance
        try:
            run_pretraining(made)
        except KilledError:
            killed += 1
            assert not (folder / "out").exists()
        else:
            break
    assert killed > 3
    assert everything(folder) == want
    assert not (folder / ".out.training").exists()


@pytest.mark.parametrize("match", ["relations", "logits", "hidden"])
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_teacher_is_matched_and_told_apart(tmp_path: Path, kind: str, match: str) -> None:
    teacher = tiny_model(tmp_path / "teacher", kind, steps=3)
    shape = DECODER | {"model_type": f"suture-{kind}", "ffn_width": 64, "experts": 2}
    objective = {"decoder": "causal", "encoder": "masked"}[kind]
    made = recipe(
        tmp_path, pretrain={"objective": objective}, model=shape, checkpoints=[0, 8],
        distil={"teacher": str(teacher), "match": match},
    )  # fmt: skip
    report = run_pretraining(made)
    last = json.loads((tmp_path / "out.steps/record.jsonl").read_text().splitlines()[-2])
    terms = {"relations": {"trunk", "inner", "attention"}}.get(match, {match})
    routers = {"load_entropy", "router_entropy", "dropped"}
    assert last.keys() == {"step", "loss", "lm", "balance", "z"} | routers | terms
    assert 0 <= last["load_entropy"] <= math.log(2) + 1e-6
    assert 0 < last["router_entropy"] <= math.log(2) + 1e-6
    assert last["dropped"] == 0
    parts = last["lm"] + 0.01 * last["balance"] + sum(last[name] for name in terms)
    assert last["loss"] == pytest.approx(parts, rel=1e-5)
    again = json.loads((tmp_path / "out.steps/record.jsonl").read_text().splitlines()[-1])
    assert again["dev"] == report.dev[-1][1]
    begun = tmp_path / "out.steps" / "step-000000"  # a random teacher is a checkpoint like any
    second = recipe(
        tmp_path, sets=(f"distil.teacher={begun}", f"output={tmp_path / 'two'}"),
        pretrain={"objective": objective}, model=shape, distil={"match": match},
    )  # fmt: skip
    run_pretraining(second)


def test_a_student_next_to_its_teacher_has_nothing_to_match(tmp_path: Path) -> None:
    made = recipe(tmp_path, checkpoints=[0])
    run_pretraining(made)
    begun = tmp_path / "out.steps" / "step-000000"
    twin = recipe(
        tmp_path, sets=(f"output={tmp_path / 'two'}",), distil={"teacher": str(begun)},
        train=TRAIN | {"steps": 1},
    )  # fmt: skip
    run_pretraining(twin)
    first = json.loads((tmp_path / "two.steps/record.jsonl").read_text().splitlines()[1])
    assert [first[name] for name in ("trunk", "inner", "attention")] == pytest.approx([0] * 3)


@pytest.mark.parametrize(
    ("shape", "code"),
    [({"num_hidden_layers": 3}, "E978"), ({"num_attention_heads": 4}, "E979")],
)
def test_a_teacher_that_does_not_fit_is_refused(
    tmp_path: Path, shape: dict[str, Any], code: str
) -> None:
    teacher = tiny_model(tmp_path / "teacher", **shape)
    with pytest.raises(SutureError) as caught:
        run_pretraining(recipe(tmp_path, distil={"teacher": str(teacher)}))
    assert caught.value.code == code
    assert not (tmp_path / "out.steps").exists()


def test_a_teacher_of_other_tokens_is_refused(tmp_path: Path) -> None:
    teacher = tiny_model(tmp_path / "teacher")
    rows = [{"name": "rows", "files": ["b.jsonl"]}]
    made = recipe(tmp_path, pretrain={"texts": rows, "held_out": 0.3}, model=DECODER |
                  {"vocab_size": 300}, train=TRAIN | {"batch_tokens": 16, "accumulate": 1},
                  distil={"teacher": str(teacher)})  # fmt: skip
    with pytest.raises(SutureError) as caught:
        run_pretraining(made)
    assert caught.value.code in ("E962", "E977")


def test_checkpoints_of_another_run_are_never_kept(tmp_path: Path) -> None:
    """The output alone was removed, and the recipe changed."""
    made = recipe(tmp_path)
    run_pretraining(made)
    want = everything(tmp_path)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SutureError) as caught:
        run_pretraining(recipe(tmp_path, train=TRAIN | {"learning_rate": 1e-3}))
    assert caught.value.code == "E904"
    assert "out.steps" in str(caught.value.where)
    run_pretraining(made)  # the same recipe makes the same again
    assert everything(tmp_path) == want


def test_dev_losses_of_two_kinds_never_stand_in_one_record(tmp_path: Path) -> None:
    run_pretraining(recipe(tmp_path))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SutureError) as caught:
        run_pretraining(recipe(tmp_path, pretrain={"dev_blocks": 4}))
    assert caught.value.code == "E904"


def test_a_checkpoint_says_what_was_held_out(tmp_path: Path) -> None:
    run_pretraining(recipe(tmp_path))
    (packed,) = tmp_path.glob("packed-*")
    told = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert told["held_out"] == 0.2
    assert told["text"] == Packed.open(packed).identity
    assert [source["name"] for source in told["sources"]] == ["prose", "rows"]
    assert str(tmp_path) not in json.dumps(told)
    step = tmp_path / "out.steps" / "step-000004" / "pretraining.json"
    assert json.loads(step.read_text()) == told


def test_a_training_that_went_astray_is_told(tmp_path: Path) -> None:
    plain = run_pretraining(recipe(tmp_path))
    assert plain.warnings == ()
    assert plain.checkpoints == 3
    wild = run_pretraining(
        recipe(tmp_path, output="wild", train=TRAIN | {"learning_rate": 2.0, "warmup": 8})
    )
    late, risen = wild.warnings
    assert "warms up for 8 steps" in late
    assert "lowest after step 0" in risen


def test_a_torn_last_line_of_the_record_is_no_line(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    file.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    record = pretrain.Record(file)
    assert record.curve("loss") == [(1, 2.5)]
    record.go_on_at(1)
    record.add({"step": 1, "loss": 2.0})
    assert file.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_text_is_packed_once_for_all_runs(tmp_path: Path) -> None:
    run_pretraining(recipe(tmp_path, checkpoints=0))
    (packed,) = tmp_path.glob("packed-*")
    before = (packed / "packed.json").stat().st_mtime_ns
    run_pretraining(recipe(tmp_path, sets=("output=" + str(tmp_path / "two"),), checkpoints=0))
    assert (packed / "packed.json").stat().st_mtime_ns == before
    assert Packed.open(packed).facts["tokens"]["train"] > 1000


def test_texts_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    texts = values(tmp_path)["pretrain"]["texts"]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "texts.yaml").write_text(yaml.safe_dump({"texts": texts}))
    made = recipe(tmp_path, pretrain={"texts": "lists/texts.yaml", "root": "."})
    assert made.pretrain.texts[0].files == (tmp_path / "a.txt",)
    beside = recipe(tmp_path, pretrain={"texts": "lists/texts.yaml"})
    assert beside.pretrain.texts[0].files == (tmp_path / "lists" / "a.txt",)
    (tmp_path / "lists" / "texts.yaml").write_text("texts: x\n")
    with pytest.raises(SutureError, match="E704"):
        recipe(tmp_path, pretrain={"texts": "lists/texts.yaml"})


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"model": DECODER | {"num_attention_heads": 3}}, "E970", "3 heads"),
        ({"model": DECODER | {"experts": 2, "top_k": 3}}, "E971", "3 experts"),
        ({"model": DECODER | {"ffn_widht": 3}}, "E701", "ffn_widht"),
        ({"model": {"model_type": "suture-decodr"}}, "E946", "suture-decodr"),
        ({"model": {"hidden_size": 16}}, "E946", "None"),
        ({"model": {"model_type": "llama", "hiden_size": 16}}, "E946", "hiden_size"),
        ({"model": {"model_type": "bert", "hidden_size": 10}}, "E946", "10"),
        ({"model": DECODER | {"max_position_embeddings": 8}}, "E947", "16 tokens"),
        ({"model": DECODER | {"vocab_size": 200}}, "E949", "300 tokens"),
        ({"arms": ARMS, "arm": "ceq"}, "E702", "did you mean 'cea'"),
        ({"arms": ARMS}, "E702", "arm must be one of"),
        ({"train": TRAIN | {"batch_tokens": 10**6}}, "E943", "one step takes"),
        ({"pretrain": {"texts": [{"name": "x", "files": ["c.txt"]}]}}, "E940", "no such text"),
        ({"pretrain": {"block": 4000, "held_out": 0.01}, "train": TRAIN | {"batch_tokens": 8,
          "accumulate": 1}}, "E943", "held out"),
        ({"output": "there"}, "E905", "exists"),
        ({"checkpoints": [2, 500]}, "E948", "after step 500, and the training has 8"),
        ({"model": BERT}, "E964", "sees the tokens"),
        ({"model": DECODER | {"model_type": "suture-encoder"}}, "E965", "type=suture-decoder"),
        ({"pretrain": {"objective": "masked"}}, "E965", "model_type=suture-encoder"),
        ({"model": DECODER | {"dropout": 0.5}}, "E966", "model.dropout"),
        ({"model": BERT | {"attention_probs_dropout_prob": 0.1}}, "E966", "dropped out"),
        ({"arms": {"odd": {"num_attention_heads": 3}}, "arm": "odd"}, "E970",
         "recipe.yaml: model.num_attention_heads, arm odd"),
        ({"model": {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 3}}, "E946",
         "multiple of the number of attention heads"),
        ({"distil": {"teacher": "x", "trunk": 0, "inner": 0, "attention": 0}}, "E702", "matched"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_first_step(
    tmp_path: Path, changes: dict[str, Any], code: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_one_step", None)
    (tmp_path / "there").mkdir()
    with pytest.raises(SutureError) as caught:
        run_pretraining(recipe(tmp_path, **changes))
    assert caught.value.code == code
    assert told in str(caught.value)
    assert caught.value.fix


def test_a_tokenizer_without_a_mask_masks_nothing(tmp_path: Path) -> None:
    from helpers import write_tokenizer

    write_tokenizer(tmp_path / "own", vocab=300)
    made = recipe(
        tmp_path, pretrain={"objective": "masked", "tokenizer": "own"},
        model=DECODER | {"model_type": "suture-encoder"},
    )  # fmt: skip
    with pytest.raises(SutureError) as caught:
        run_pretraining(made)
    assert caught.value.code == "E945"
    assert "mask_token" in str(caught.value.fix)
