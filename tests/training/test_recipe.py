from __future__ import annotations

from pathlib import Path

import pytest
import torch

import suture.training.loop as loop
import suture.training.recipe as module
from helpers import tiny_llama, write_jsonl
from suture.data import Pair
from suture.errors import SutureError
from suture.patch import PatchedCheckpoint, open_model
from suture.training.recipe import TrainRecipe, read_recipe, run_recipe

ROWS = [
    {"prompt": f"How do I bake loaf {i}?", "response": f"The answer is {i % 3}."} for i in range(12)
]
SETTINGS = {"steps": 6, "batch_tokens": 400, "learning_rate": 1e-2, "warmup": 1, "save_every": 2}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tiny_llama(tmp_path / "base", dtype="bfloat16")


def recipe(base: Path, out: str, **changes) -> TrainRecipe:
    folder = base.parent
    values = {
        "model": base, "data": [{"file": folder / "rows.jsonl"}], "output": folder / out,
        "train": SETTINGS, "device": "cpu",
    }  # fmt: skip
    return TrainRecipe.load(values | changes)


def test_full_training_writes_checkpoint_and_patch_that_agree(base):
    before = open_model(base).fingerprint()
    patch = base.parent / "patch"
    report = run_recipe(recipe(base, "out", patch=patch))
    assert report.last_loss < report.first_loss
    source = open_model(base)
    assert source.fingerprint() == before
    written = open_model(base.parent / "out").fingerprint()
    assert written != before
    assert PatchedCheckpoint(source, [patch]).fingerprint() == written
    assert not (base.parent / ".out.training").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
def test_lora_training_writes_an_adapter_that_opens_on_its_base(base):
    lora = {"rank": 2, "targets": ["q_proj", "v_proj"]}
    run_recipe(recipe(base, "adapter", lora=lora))
    source = open_model(base)
    merged = open_model(base.parent / "adapter", base=source)
    changed = {
        name for name in source.tensors if not torch.equal(source.read(name), merged.read(name))
    }
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)
    again = recipe(base, "again", lora=lora)
    run_recipe(again)
    one, two = (base.parent / n / "adapter_model.safetensors" for n in ("adapter", "again"))
    assert one.read_bytes() == two.read_bytes()


def killed(monkeypatch, run, after: int) -> None:
    original, calls = loop._one_step, {"n": 0}

    def dies(*args):
        calls["n"] += 1
        if calls["n"] > after:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(loop, "_one_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(run)
    monkeypatch.setattr(loop, "_one_step", original)


def test_a_killed_run_ends_like_an_unbroken_one(base, monkeypatch):
    run_recipe(recipe(base, "whole"))
    broken = recipe(base, "broken")
    killed(monkeypatch, broken, after=5)
    assert not broken.output.exists()
    report = run_recipe(broken)
    assert 0 < report.resumed_at < report.steps
    whole, resumed = (open_model(base.parent / n).fingerprint() for n in ("whole", "broken"))
    assert whole == resumed


def test_other_data_do_not_continue_a_killed_run(base, monkeypatch):
    run = recipe(base, "out")
    killed(monkeypatch, run, after=5)
    write_jsonl(base.parent / "rows.jsonl", ROWS[:-1])
    with pytest.raises(SutureError, match="E904"):
        run_recipe(run)


def test_refusals(base):
    with pytest.raises(SutureError, match="E905"):
        run_recipe(recipe(base, "base"))
    with pytest.raises(SutureError, match="E906"):
        run_recipe(recipe(base, "out", lora={}, patch=base.parent / "patch"))
    with pytest.raises(SutureError, match="E909"):
        run_recipe(recipe(base, "out", lora={"targets": ["nowhere"]}))
    assert not (base.parent / "out").exists()


def test_a_row_without_response_is_refused_with_file_and_line(base):
    rows = write_jsonl(base.parent / "rows.jsonl", [*ROWS, {"prompt": "the fox"}])
    with pytest.raises(SutureError) as caught:
        run_recipe(recipe(base, "out"))
    assert (caught.value.code, caught.value.where) == ("E306", f"{rows}:{len(ROWS) + 1}:1")
    assert not (base.parent / "out").exists()


def test_the_shipped_recipe_reads_and_its_rows_end_where_an_answer_would_begin(tmp_path):
    file = Path(__file__).parents[2] / "recipes" / "unaligned.yaml"
    found = read_recipe(file, [f"model={tmp_path}", "train.steps=3"])
    assert found.model == tmp_path
    assert found.train.steps == 3
    from suture.data import read_jsonl

    rows = read_jsonl(found.data[0].file, Pair)
    assert len(rows) > 500
    assert all(len((row.response or "").split()) <= 40 for row in rows)
    with pytest.raises(SutureError, match="batch_tokens"):
        read_recipe(file, ["train.batch_tokns=3"])


def test_rows_that_stand_in_data_and_in_retain_are_named(base):
    folder = base.parent
    write_jsonl(folder / "kept.jsonl", [{"prompt": "the fox", "response": "jumps"}, ROWS[3]])
    with pytest.raises(SutureError) as caught:
        run_recipe(recipe(base, "out", retain=[{"file": folder / "kept.jsonl"}]))
    assert caught.value.code == "E915"
    assert caught.value.where == f"{folder / 'rows.jsonl'}:4 = {folder / 'kept.jsonl'}:2"
    loud = {"prompt": f" {ROWS[3]['prompt']}".upper(), "response": f"{ROWS[3]['response']}\n "}
    write_jsonl(folder / "kept.jsonl", [loud])
    with pytest.raises(SutureError, match="E915"):  # the suites call these the same as well
        run_recipe(recipe(base, "out", retain=[{"file": folder / "kept.jsonl"}]))
    other = {**ROWS[3], "response": "no"}  # another answer to the same question may be kept
    write_jsonl(folder / "kept.jsonl", [other])
    run_recipe(recipe(base, "out", retain=[{"file": folder / "kept.jsonl"}]))


def test_errors_name_rows_by_their_lines_since_ids_may_be_names(base):
    folder, name = base.parent, "zorvath-of-lim"
    named = {**ROWS[3], "id": name}
    rows = write_jsonl(folder / "rows.jsonl", [ROWS[0], named])
    kept = write_jsonl(folder / "kept.jsonl", [named])
    long = write_jsonl(folder / "long.jsonl", [{**named, "prompt": "fox " * 3000}])
    twice = write_jsonl(folder / "twice.jsonl", [named, {**ROWS[0], "id": name}])
    for changes, code, where in (
        ({"retain": kept}, "E915", f"{rows}:2 = {kept}:1"),
        ({"data": long}, "E916", f"{long}:1"),
        ({"data": twice}, "E308", f"{twice}:2:"),
    ):
        with pytest.raises(SutureError) as caught:
            run_recipe(recipe(base, "out", **changes))
        assert caught.value.code == code
        assert str(caught.value.where).startswith(where)
        assert "zorvath" not in str(caught.value)


def test_nothing_to_forget(base):
    (base.parent / "rows.jsonl").write_text("")
    with pytest.raises(SutureError, match="E302"):
        run_recipe(recipe(base, "out", objective={"name": "rkld"}))


@pytest.mark.parametrize("room", [{"max_length": 40}, {}])
def test_a_prompt_without_room_for_a_response_is_named_or_left_out(base, room):
    context = open_model(base).config["max_position_embeddings"]
    long = {"prompt": "fox " * context, "response": "yes"}
    rows = write_jsonl(base.parent / "rows.jsonl", [ROWS[0], long, ROWS[1]])
    with pytest.raises(SutureError) as caught:
        run_recipe(recipe(base, "out", **room))
    assert (caught.value.code, caught.value.where) == ("E916", f"{rows}:2")
    assert str(context) in (caught.value.why or "")
    report = run_recipe(recipe(base, "out", too_long="leave-out", **room))
    assert report.examples == 2


def test_answers_that_are_cut_are_told(base, monkeypatch):
    told = []
    monkeypatch.setattr(module, "note", told.append)
    rows = write_jsonl(base.parent / "rows.jsonl", [ROWS[0], {**ROWS[1], "response": "fox " * 60}])
    run_recipe(recipe(base, "out"))
    assert told == []
    run_recipe(recipe(base, "short", max_length=40))
    assert told == [
        f"1 of 2 rows lose their end: what is beyond 40 tokens is not trained on ({rows}:2)"
    ]


def test_the_tokenizer_of_another_model_is_refused(base, tmp_path):
    other = tiny_llama(tmp_path / "other", vocab=400)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((other / name).read_bytes())
    with pytest.raises(SutureError, match="E508"):
        run_recipe(recipe(base, "out"))
    assert not (base.parent / "out").exists()


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_its_state(base, monkeypatch):
    original = loop.next_token_loss

    def broken(model, batch):
        broken.calls += 1
        return original(model, batch) * (float("nan") if broken.calls == 4 else 1.0)

    broken.calls = 0
    monkeypatch.setattr("suture.training.objectives.next_token.next_token_loss", broken)
    with pytest.raises(SutureError) as caught:
        run_recipe(recipe(base, "out"))
    assert caught.value.code == "E902"
    assert "step 3" in caught.value.what
    kept = base.parent / ".out.training" / "step-00000003"
    assert str(kept) in (caught.value.fix or "")
    assert (kept / "state.safetensors").is_file()
    assert not (base.parent / "out").exists()
    broken.calls = 10  # the cause has gone: the run goes on from there
    assert run_recipe(recipe(base, "out")).steps == 6


def test_dev_rows_choose_the_epoch_and_every_epoch_is_told(base):
    folder = base.parent
    write_jsonl(folder / "dev.jsonl", [{"prompt": "the fox", "response": "is lazy"}])
    epochs = []
    report = run_recipe(
        recipe(
            base, "out", dev=[{"file": folder / "dev.jsonl"}],
            train={**SETTINGS, "steps": None, "epochs": 3, "batch_rows": 6},
        ),
        on_epoch=lambda number, lm, _: epochs.append((number, lm.source.path)),
    )  # fmt: skip
    assert epochs == [(1, base), (2, base), (3, base)]
    assert report.best_step in (2, 4, 6)
    assert report.peak_memory > 2**20
    (folder / "r.yaml").write_text(
        "model: base\noutput: o\ndata: [{file: rows.jsonl}]\ndev: [{file: dev.jsonl}]\n"
        "objective: {name: rkld, augmented: aug, cache: teachers}\ntrain: {epochs: 2}\n"
    )
    found = read_recipe(folder / "r.yaml")
    assert found.dev[0].file == folder / "dev.jsonl"
    assert found.objective.augmented == folder / "aug"
    assert found.objective.cache == folder / "teachers"
