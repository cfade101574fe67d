"""Merges on the command line: base, donors and weights; adapters as donors; the same any way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import Altered, perturbed
from helpers import tiny_llama, write_shards
from suture.checkpoint import Checkpoint
from suture.checkpoint.staging import CRASH, CRASHED
from suture.cli.main import run
from suture.methods import METHODS, TIES, TaskArithmetic

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, one, two and three: a model and its fine-tunes, in bfloat16."""
    home = tmp_path_factory.mktemp("merge")
    base = Checkpoint.open(tiny_llama(home / "base", dtype="bfloat16", tie=False))
    for seed, name in enumerate(("one", "two", "three"), 1):
        shutil.copytree(home / "base", home / name)
        changed = perturbed(Altered(base), seed, 0.01)
        write_shards(home / name, {n: changed.read(n) for n in changed.tensors})
    return home


@pytest.fixture
def call(home: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call(method, *flags, donors=...)`: exit code and output."""

    def invoke(method: str, *flags: object, donors: tuple[object, ...] = ()) -> tuple[int, str]:
        named = [x for donor in donors for x in ("--donor", str(home / str(donor)))]
        capsys.readouterr()
        code = run(["derive", method, "--base", str(home / "base"), *named, *map(str, flags)])
        out = capsys.readouterr()
        return code, out.out + out.err

    return invoke


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    source = Checkpoint.open(folder)
    return {name: source.read(name) for name in source.tensors}


def sources(home: Path, *names: str) -> list[Checkpoint]:
    return [Checkpoint.open(home / name) for name in names]


def test_donors_and_weights_go_in_order(call: Call, home: Path, tmp_path: Path) -> None:
    flags = ("--weight", 0.5, "--weight", -0.25, "--weight", 1, "--write", tmp_path / "out")
    code, text = call("task-arithmetic", *flags, "--json", donors=("one", "two", "three"))
    assert code == 0, text
    facts = json.loads(text)
    assert facts["config"]["weight"] == [0.5, -0.25, 1.0]
    assert list(facts["models"]) == ["base", "donor 1", "donor 2", "donor 3"]
    assert facts["models"]["donor 2"] == Checkpoint.open(home / "two").fingerprint()
    base, *donors = sources(home, "base", "one", "two", "three")
    expected = TaskArithmetic(weight=(0.5, -0.25, 1.0)).derive(base=base, donors=donors)
    found = tensors(tmp_path / "out")
    assert all(torch.equal(found[edit.name], edit.value) for edit in expected)


def test_the_order_of_donors_counts(call: Call, home: Path, tmp_path: Path) -> None:
    for out, donors in (("a", ("one", "two")), ("b", ("two", "one"))):
        flags = ("--weight", 1, "--weight", 0, "--write", tmp_path / out)
        assert call("task-arithmetic", *flags, donors=donors)[0] == 0
    first, second = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    for name in first:
        assert torch.equal(first[name], tensors(home / "one")[name])
        assert torch.equal(second[name], tensors(home / "two")[name])


def adapter(folder: Path, base: Path) -> Path:
    """A rank-2 LoRA of every query and value matrix, in PEFT's layout."""
    from safetensors.torch import save_file

    noise = torch.Generator().manual_seed(7)
    state = {}
    for name, info in Checkpoint.open(base).tensors.items():
        if "q_proj" in name or "v_proj" in name:
            module = "base_model.model." + name.removesuffix(".weight")
            rows, columns = info.shape
            state[f"{module}.lora_A.weight"] = torch.randn(2, columns, generator=noise) * 0.1
            state[f"{module}.lora_B.weight"] = torch.randn(rows, 2, generator=noise) * 0.1
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("method", ["ties", "dare", "linear"])
def test_a_lora_folder_is_a_donor(call: Call, home: Path, tmp_path: Path, method: str) -> None:
    """It gives what its merged checkpoint gives."""
    from suture.patch import open_model

    lora = adapter(tmp_path / "lora", home / "base")
    merged = open_model(lora, base=Checkpoint.open(home / "base"))
    shutil.copytree(home / "base", tmp_path / "merged")
    write_shards(tmp_path / "merged", {n: merged.read(n) for n in merged.tensors})
    for out, donor in (("a", lora), ("b", tmp_path / "merged")):
        code, text = call(method, "--write", tmp_path / out, donors=("one", donor))
        assert code == 0, text
    first, second = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], tensors(home / "one")[name]) for name in first)


@pytest.mark.parametrize("method", ["ties", "dare-ties", "breadcrumbs", "slerp"])
def test_the_memory_budget_does_not_change_a_bit(call: Call, tmp_path: Path, method: str) -> None:
    donors = ("one",) if method == "slerp" else ("one", "two", "three")
    prints = set()
    for budget in ("96MB", "1GB"):
        flags = ("-o", tmp_path / budget, "--memory", budget, "--json")
        code, text = call(method, *flags, donors=donors)
        assert code == 0, text
        prints.add(json.loads(text)["patch"]["fingerprint"])
    assert len(prints) == 1


def test_a_patch_on_the_base_gives_the_written_model(
    call: Call, home: Path, tmp_path: Path
) -> None:
    from suture.patch import apply

    patch, out = tmp_path / "patch", tmp_path / "out"
    assert call("ties", "-o", patch, "--write", out, donors=("one", "two"))[0] == 0
    apply(home / "base", [patch], tmp_path / "applied")
    written = Checkpoint.open(out).fingerprint()
    assert Checkpoint.open(tmp_path / "applied").fingerprint() == written
    base, *donors = sources(home, "base", "one", "two")
    for edit in TIES().derive(base=base, donors=donors):
        assert torch.equal(tensors(out)[edit.name], edit.value)


WRONG: dict[str, tuple[str, str, tuple[object, ...], tuple[str, ...]]] = {
    "no donor": ("ties", "E712", (), ()),
    "weights": ("ties", "E410", ("--weight", 1, "--weight", 2), ("one", "two", "three")),
    "not a number": ("ties", "E714", ("--weight", "x"), ("one",)),
    "infinite": ("ties", "E702", ("--weight", "inf"), ("one",)),
    "sum of weights": ("linear", "E410", ("--weight", 1, "--weight", -1), ("one", "two")),
    "two donors": ("slerp", "E410", (), ("one", "two")),
    "both forms": ("task-arithmetic", "E411", ("--tuned", "one"), ("one",)),
    "no base's model": ("ties", "E101", (), ("nowhere",)),
    "share": ("dare", "E702", ("--drop", 1), ("one",)),
    "misspelt": ("ties", "E710", ("--densty", 1), ("one",)),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_input_is_refused_and_nothing_is_written(
    call: Call, home: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    method, expected, flags, donors = WRONG[what]
    code, text = call(method, "-o", tmp_path / "patch", *flags, donors=donors)
    assert code == 1
    assert expected in text, text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_vocabularies_are_compared_before_anything_is_read(
    call: Call, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from helpers import write_tokenizer

    folder = tmp_path_factory.mktemp("other")
    other = tiny_llama(folder / "other", dtype="bfloat16", tie=False)
    write_tokenizer(other, vocab=60)  # the same rows, other tokens
    code, text = call("dare", "-o", tmp_path / "patch", donors=("one", other, other))
    assert code == 1
    for part in ("E123", "donor 2", "donor 3", "tokens", str(other)):
        assert part in "".join(text.split()) or part in text, part
    assert list(tmp_path.iterdir()) == []


def test_base_needs_nothing_but_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["derive", "ties", "--donor", "x", "-o", "y"]) == 1
    assert "--base is missing" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["ties", "task-arithmetic", "resta"])
def test_help_names_base_donors_and_weights(
    capsys: pytest.CaptureFixture[str], method: str
) -> None:
    assert run(["derive", method, "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--base", "--donor", "--weight"):
        assert flag in text
    assert ("--tuned" in text) == (method != "ties")


def test_list_shows_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "methods"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in METHODS)


@pytest.mark.parametrize("method", list(METHODS))
def test_methods_have_documented_fields(method: str) -> None:
    fields: dict[str, Any] = METHODS[method].model_fields
    assert METHODS[method].__doc__
    assert all(field.description for field in fields.values())


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "slerp"])
def test_a_killed_merge_goes_on_and_gives_the_same_bytes(
    call: Call, home: Path, tmp_path: Path, method: str
) -> None:
    donors = ("one",) if method == "slerp" else ("one", "two")
    whole, patch = tmp_path / "whole", tmp_path / "patch"
    assert call(method, "-o", whole, donors=donors)[0] == 0
    words = ["derive", method, "--base", home / "base", "-o", patch]
    words += [x for donor in donors for x in ("--donor", home / donor)]
    program = "import sys; from suture.cli.main import run; sys.exit(run(sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), CRASH: "after-tensor:9"}
    line = [sys.executable, "-c", program, *map(str, words)]
    assert subprocess.run(line, env=env, capture_output=True, check=False).returncode == CRASHED
    assert not patch.exists()
    assert call(method, "-o", patch, donors=donors)[0] == 0
    for file in ("patch.json", "tensors-00001.safetensors"):
        assert (patch / file).read_bytes() == (whole / file).read_bytes(), file


def test_help_and_bad_values_never_import_torch() -> None:
    probe = (
        "import sys; from suture.cli.main import run;"
        "assert run(['derive', 'ties', '--help']) == 0;"
        "assert run('derive ties --base x --donor y -o z --density 7'.split()) == 1;"
        "assert run('derive ties --base x --donor y -o z --donor'.split()) == 1;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, env=env, text=True)
    assert done.returncode == 0, done.stderr
    assert "E702" in done.stderr


def test_a_negative_weight_takes_away_what_a_model_learned_further(
    call: Call, home: Path, tmp_path: Path
) -> None:
    """Task-vector negation: θ_o − s (θ_aug − θ_o)."""
    code, text = call(
        "task-arithmetic", "--weight", -2.5, "--write", tmp_path / "out", donors=("one",)
    )
    assert code == 0, text
    original, augmented, found = (
        tensors(folder) for folder in (home / "base", home / "one", tmp_path / "out")
    )
    for name, value in found.items():
        step = augmented[name].double() - original[name].double()
        exact = original[name].double() - 2.5 * step
        torch.testing.assert_close(value, exact.to(value.dtype), rtol=0.01, atol=1e-6)
        moved = value.double() - original[name].double()
        assert float((moved * step).sum()) < 0
