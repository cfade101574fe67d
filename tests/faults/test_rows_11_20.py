"""Faults 11 to 20: odd weights, vocabularies, ties, layouts, code in configs, disks and processes.

One test per fault and surface; the fault is made on disk, met through the command line, and
everything on disk is compared with what it was. Row 19 has a matrix of its own beside this file.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from raw_folders import floats, write_raw
from snapshots import everything
from suture.checkpoint import Checkpoint, staging
from suture.cli.main import run
from suture.patch import verify

Refused = Callable[..., str]
Said = Callable[..., str]
Model = Callable[..., Path]
EMBED, K = "model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"
SUTURE = (sys.executable, "-m", "suture")


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the tensors of a one-file checkpoint."""
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


def settings(path: Path, name: str, **changes: Any) -> Path:
    """Change keys of a JSON file of a folder; None removes one."""
    content = json.loads((path / name).read_text())
    content.update(changes)
    kept = {key: value for key, value in content.items() if changes.get(key, value) is not None}
    (path / name).write_text(json.dumps(kept))
    return path


def arithmetic(tmp_path: Path, aligned: Path, tuned: Path) -> list[object]:
    models = ["--aligned", aligned, "--tuned", tuned]
    return ["derive", "task-arithmetic", *models, "--write", tmp_path / "out"]


# Row 11: zero, constant and outsized layers load everywhere.


@pytest.mark.parametrize(
    ("factor", "words"),
    [(0.0, "is zero everywhere"), (50.0, "times as large"), (0.02, "times as small")],
)
def test_row_11_layers_that_stand_out(model: Model, said: Said, factor: float, words: str) -> None:
    path = model(layers=6)
    assert "times as" not in said(["inspect", path, "--hash"])

    def scale(state: dict[str, Any]) -> None:
        state[K] *= factor

    rewrite(path, scale)
    assert words not in said(["inspect", path])  # that costs a read of every byte
    text = said(["inspect", path, "--hash"])
    assert f"'{K}' is" in text
    assert words in text
    assert ("z = " in text) == (factor != 0)
    assert text.count("problem ") == 1


def test_row_11_constant_layers(model: Model, said: Said) -> None:
    path = rewrite(model(), lambda state: state[K].fill_(0.25))
    assert f"'{K}' is constant: every entry is the same" in said(["inspect", path, "--hash"])


# Row 12: dtypes that differ are computed in float32 and the rounding is told.


def test_row_12_dtype_mixes(model: Model, tmp_path: Path, said: Said) -> None:
    import torch

    aligned = model("aligned", dtype="float32", seed=1)
    tuned = model("tuned", dtype="bfloat16", seed=2)
    text = said([*arithmetic(tmp_path, aligned, tuned), "--scale", "0.5"])
    assert "20 tensors are F32 in aligned and BF16 in tuned" in text
    assert "rounded to BF16 (relative error up to 0.004)" in text
    a, t = (load_file(path / "model.safetensors")[K] for path in (aligned, tuned))
    made = load_file(tmp_path / "out" / "model.safetensors")[K]
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, (a + 0.5 * (t.float() - a)).bfloat16())


def test_row_12_a_mix_within_one_model_is_told(model: Model, said: Said) -> None:
    path = rewrite(model(), lambda state: state.update({K: state[K].half()}))
    assert "mixed dtypes: F16, F32" in said(["inspect", path])


def test_row_12_a_copy_in_another_dtype_is_no_base(
    model: Model, tmp_path: Path, refused: Refused
) -> None:
    pair = model("half", dtype="float16"), model("whole")
    refused(["diff", *pair, "-o", tmp_path / "p"], "E209", "F16", "F32", "another model")


# Row 13: tokens and rows.


def pad(path: Path, rows: int) -> Path:
    """Give the embedding `rows` rows, as resize_token_embeddings does."""
    import torch

    def grow(state: dict[str, Any]) -> None:
        more = rows - len(state[EMBED])
        state[EMBED] = torch.cat([state[EMBED], torch.zeros(more, state[EMBED].shape[1])])

    return settings(rewrite(path, grow), "config.json", vocab_size=rows)


def add_token(path: Path, index: int) -> Path:
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": index, "content": "!?"})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


def test_row_13_vocabulary_resized(model: Model, tmp_path: Path, refused: Refused) -> None:
    aligned, tuned = model("aligned"), model("tuned", vocab=80)
    text = refused(arithmetic(tmp_path, aligned, tuned), "E123", "64 rows", "80")
    assert "padding" not in text
    padded = pad(model("padded", seed=1), 72)
    refused(
        arithmetic(tmp_path, aligned, padded),
        "E123",
        f"'{EMBED}' has 64 rows in aligned, 72 in tuned",
        "only padding rows differ",
        "resize_token_embeddings",
    )


def test_row_13_config_and_embedding_disagree(model: Model, refused: Refused) -> None:
    path = settings(model(), "config.json", vocab_size=1 << 20)
    refused(["inspect", path], "E140", "'vocab_size' is 1,048,576", EMBED, "64 rows")


def test_row_13_more_tokens_than_rows(model: Model, tmp_path: Path, said: Said) -> None:
    path = add_token(model("tuned", seed=1), 64)
    words = "ids up to 64, the embedding 64 rows: 1 tokens have no row ('!?')"
    assert words in said(["inspect", path])
    assert words in said(arithmetic(tmp_path, add_token(model("aligned"), 64), path))


def test_row_13_added_tokens_and_merges_differ(
    model: Model, tmp_path: Path, refused: Refused
) -> None:
    aligned, tuned = model("aligned"), model("tuned", seed=1)
    shutil.copyfile(aligned / "tokenizer.json", tmp_path / "kept.json")
    add_token(tuned, 63)
    refused(arithmetic(tmp_path, aligned, tuned), "E123", "tokens", '"!?" (none, 63)')
    tokenizer = json.loads((tmp_path / "kept.json").read_text())
    tokenizer["model"]["merges"].reverse()
    (tuned / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(arithmetic(tmp_path, aligned, tuned), "E123", "merges")


def test_row_13_special_ids_and_templates_are_told(
    model: Model, tmp_path: Path, said: Said
) -> None:
    tuned = settings(model("tuned", seed=1), "generation_config.json", eos_token_id=[0, 3])
    settings(tuned, "tokenizer_config.json", chat_template="{{ messages }}")
    text = said(arithmetic(tmp_path, model("aligned"), tuned))
    assert "eos is 0 in aligned and 0 and 3 in tuned" in text
    assert "different chat templates" in text
    settings(tuned, "config.json", eos_token_id=99)
    settings(tuned, "tokenizer_config.json", pad_token="<nowhere>", chat_template=None)
    text = said(["inspect", tuned])
    assert "eos is id 99 in config.json, but the embedding has 64 rows" in text
    assert "the pad token that tokenizer_config.json names is not in the tokenizer" in text
    assert "no chat template" in text


# Row 14: one tensor or two.


def test_row_14_ties(model: Model, tmp_path: Path, refused: Refused, said: Said) -> None:
    import torch

    head = "lm_head.weight"
    path, edited = model("tied"), model("edited", seed=1)
    for folder in (path, edited):
        rewrite(folder, lambda state: state.update({head: state[EMBED].clone()}))
    said(["diff", path, edited, "-o", tmp_path / "p"])
    said(["apply", path, tmp_path / "p", "-o", tmp_path / "out"])
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(made[head], made[EMBED])
    assert f"{head} = {EMBED}" in said(["inspect", tmp_path / "out"])
    rewrite(path, lambda state: state[head].add_(1))
    refused(["inspect", path], "E118", head, EMBED, "tie_word_embeddings")
    untied = model("untied", tie=False)
    refused(arithmetic(tmp_path / "x", untied, edited), "E122", head, "one model ties it")


# Row 15: the layers that differ, by number and name.


def test_row_15_layers_and_architectures_are_explained(
    model: Model, tmp_path: Path, refused: Refused
) -> None:
    aligned = model("aligned")
    deep = model("deep", layers=5)
    text = refused(arithmetic(tmp_path, aligned, deep), "E122", "aligned has 2 layers, tuned 5")
    assert "layers 2-4 of 'model.layers' are only in tuned" in text
    wide = model("wide", inter=64)
    refused(
        arithmetic(tmp_path, aligned, wide), "E122", "mlp.", "[32, 48] in aligned", "other tensors"
    )
    other = settings(model("other"), "config.json", model_type="mistral")
    refused(arithmetic(tmp_path, aligned, other), "E122", "llama model", "mistral model")


def mixture(path: Path, layers: int, experts: int, *, fused: bool = False) -> Path:
    tensors = {}
    for layer in range(layers):
        block = f"model.layers.{layer}.mlp.experts"
        names = ["gate_up_proj", "down_proj"] if fused else []
        names = names or [f"{e}.{m}.weight" for e in range(experts) for m in ("w1", "w2", "w3")]
        tensors.update({f"{block}.{name}": floats(layer, experts) for name in names})
        tensors[f"model.layers.{layer}.norm.weight"] = floats(1)
    return write_raw(path, tensors, config={"model_type": "some_moe"})


def test_row_15_mixtures_of_experts_are_explained(tmp_path: Path, refused: Refused) -> None:
    aligned = mixture(tmp_path / "aligned", 3, 4)
    fewer = mixture(tmp_path / "fewer", 3, 2)
    fused = mixture(tmp_path / "fused", 3, 4, fused=True)
    args = arithmetic(tmp_path, aligned, fewer)
    refused(args, "E122", "aligned has 4 experts per layer, tuned 2 experts per layer")
    refused(arithmetic(tmp_path, fused, aligned), "E122", "aligned stores the experts", "fused")
    lacking = write_raw(
        tmp_path / "lacking",
        {n: floats(1) for n in Checkpoint.open(aligned).tensors if ".norm" not in n},
        config={"model_type": "some_moe"},
    )
    refused(arithmetic(tmp_path, aligned, lacking), "E122", "norm.weight in layers 0-2")


# Row 16: nothing that runs code.


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "boom"))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "x.pth", "x.pkl", "x.ckpt", ".metadata", "0.distcp"]
)
def test_row_16_pickles_are_refused_unread(
    model: Model, tmp_path: Path, refused: Refused, name: str
) -> None:
    path = model()
    (path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    refused(["inspect", path], "E106", name, "runs code", "safetensors")
    (path / "model.safetensors").unlink()
    refused(["inspect", path], "E106", name)


def test_row_16_code_in_the_folder_is_ignored_and_told(
    model: Model, tmp_path: Path, refused: Refused, said: Said
) -> None:
    path, edited = model(), model("edited", seed=1)
    (path / "modeling_llama.py").write_text(f"open({str(tmp_path / 'boom')!r}, 'w')")
    assert "'modeling_llama.py' is never opened or copied" in said(["inspect", path])
    said(["diff", path, edited, "-o", tmp_path / "p"])
    said(["apply", path, tmp_path / "p", "-o", tmp_path / "out"])
    assert not (tmp_path / "out" / "modeling_llama.py").exists()
    assert not (tmp_path / "boom").exists()
    settings(path, "config.json", auto_map={"AutoModel": "modeling_llama.Evil"})
    refused(["inspect", path], "E104", "'auto_map'", "config.json", "run code")


# Row 17: what config.json may say.


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"_attn_implementation": "org/kernel"}, "E104", "'org/kernel'"),
        ({"attn_implementation": {"text_config": "org/kernel"}}, "E104", "attn_implementation"),
        ({"text_config": {"auto_map": {"a": "b"}}}, "E104", "text_config.auto_map"),
        ({"trust_remote_code": True}, "E104", "trust_remote_code"),
        ({"model_type": "../llama"}, "E104", "model_type"),
        ({"num_hidden_layers": 10**9}, "E140", "num_hidden_layers"),
        ({"hidden_size": -1}, "E140", "hidden_size"),
        ({"vocab_size": 64.0}, "E140", "vocab_size"),
        ({"num_attention_heads": "4"}, "E140", "num_attention_heads"),
        ({"intermediate_size": True}, "E140", "intermediate_size"),
        ({"text_config": {"num_experts": 1 << 40}}, "E140", "text_config.num_experts"),
        ({"torch_dtype": "os.system"}, "E140", "torch_dtype"),
        ({"dtype": 16}, "E140", "dtype"),
        ({"rope_theta": 10**30}, "E103", "out of range"),
    ],
)
def test_row_17_hostile_config(
    model: Model, refused: Refused, change: dict[str, Any], code: str, words: str
) -> None:
    refused(["inspect", settings(model(), "config.json", **change)], code, words, "config.json")


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", '1, "hidden_size": 64'])
def test_row_17_what_pythons_json_would_accept(model: Model, refused: Refused, text: str) -> None:
    path = model()
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace("{", '{"rms_norm_eps_2": ' + text + ",", 1))
    refused(["inspect", path], "E103", "config.json")


def test_row_17_only_known_keys_are_passed_on(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from suture.checkpoint import vetting
    from suture.inference.loading import model_config

    notes: list[str] = []
    monkeypatch.setattr(vetting, "note", notes.append)
    strange = {
        "kernel_repo": "org/kernel",
        "hook": {"module": "os"},
        "window_2": 7,
        "torch_dtype": "float16",
    }
    config = model_config(Checkpoint.open(settings(model(), "config.json", **strange)))
    assert not hasattr(config, "kernel_repo")
    assert not hasattr(config, "hook")
    assert config.window_2 == 7  # a number cannot name code
    assert "kernel_repo, hook" in notes[0]


def test_row_17_no_built_in_architecture_loses_a_key() -> None:
    """The allowlist is the architecture's own; whatever transformers writes, it gets back."""
    from transformers import CONFIG_MAPPING

    from suture.checkpoint.vetting import handed_over, vet_config

    kinds = "llama mistral qwen3 gemma gemma2 gemma3_text phi3 gpt2 opt mixtral bloom gpt_neo t5"
    for kind in kinds.split():
        raw = json.loads(CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
        vetted = vet_config(raw, where=kind)
        assert handed_over(vetted, CONFIG_MAPPING[kind]) == vetted
        again = CONFIG_MAPPING[kind].from_dict(handed_over(vetted, CONFIG_MAPPING[kind]))
        assert again.to_dict() == CONFIG_MAPPING[kind].from_dict(vetted).to_dict()
    old = {
        "model_type": "llama",
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    assert handed_over(old, CONFIG_MAPPING["llama"]) == old


# Row 18: the disk.


def limited(limit: int, args: list[object]) -> subprocess.CompletedProcess[str]:
    """A suture command that can write no file beyond `limit` bytes: a full disk, to the program."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from suture.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as a full disk")
@pytest.mark.parametrize("verb", ["apply", "diff", "derive"])
def test_row_18_disk_full(model: Model, tmp_path: Path, verb: str) -> None:
    base, edited = model("base", dtype="bfloat16"), model("edited", dtype="bfloat16", seed=1)
    assert run(["diff", str(base), str(edited), "-o", str(tmp_path / "p")]) == 0
    out = tmp_path / "out"
    args: list[object] = {
        "apply": ["apply", base, tmp_path / "p", "-o", out],
        "diff": ["diff", base, edited, "-o", out],
        "derive": arithmetic(tmp_path, base, edited),
    }[verb]
    before = everything(tmp_path)
    done = limited(9000, args)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("E125: cannot write"), done.stderr
    assert "free some space" in done.stderr
    after = everything(tmp_path)
    assert {name: after[name] for name in before} == before
    left = [n for n in after if n not in before and not n.startswith(".out.staged-run-")]
    assert left == []  # what is staged may stay, to be resumed, under a hidden name
    assert run([str(arg) for arg in args]) == 0
    verify(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "edited", "out", "p"]


def test_row_18_space_is_asked_for_first(
    model: Model, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, edited = model("base"), model("edited", seed=1)
    assert run(["diff", str(base), str(edited), "-o", str(tmp_path / "p")]) == 0
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    args = ["apply", base, tmp_path / "p", "-o", tmp_path / "out"]
    refused(args, "E125", "not enough disk space", "GB free", str(tmp_path))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("after", [0, 9])
def test_row_18_a_disk_that_fails_half_way(
    model: Model,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    after: int,
) -> None:
    """Every write goes through one function; from the ninth on it fails, as a bad disk would."""
    base, edited = model("base"), model("edited", seed=1)
    assert run(["diff", str(base), str(edited), "-o", str(tmp_path / "p")]) == 0
    written = iter(range(1000))

    def failing(fd: int, data: memoryview, offset: int) -> None:
        if next(written) >= after:
            raise OSError(number, os.strerror(number))
        os.pwrite(fd, data, offset)

    monkeypatch.setattr("suture.checkpoint.writer.write_at", failing)
    outs = ["-o", tmp_path / "q", "--write", tmp_path / "out"]
    models = ["--aligned", base, "--tuned", edited]
    words = f"cannot write: {os.strerror(number)}", "inputs are as they were"
    refused(["derive", "task-arithmetic", *models, *outs], "E125", *words)
    monkeypatch.undo()
    assert run([str(arg) for arg in ["derive", "task-arithmetic", *models, *outs]]) == 0
    verify(tmp_path / "out")


@pytest.mark.parametrize("kind", ["file", "long", "link"])
def test_row_18_places_where_nothing_can_be_written(
    model: Model, tmp_path: Path, refused: Refused, kind: str
) -> None:
    base, edited = model("base"), model("edited", seed=1)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    out = {"file": "file/out", "long": "o" * 300, "link": "link/out"}[kind]
    refused(["diff", base, edited, "-o", tmp_path / out], "E796", "check the path")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_row_18_read_only_folder(model: Model, tmp_path: Path, refused: Refused) -> None:
    base, edited = model("base"), model("edited", seed=1)
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(["diff", base, edited, "-o", tmp_path / "closed" / "p"], "E125", "cannot write")


# Row 19: what killed runs leave; how they are killed is in test_crash_matrix.py.


def test_row_19_remains_of_killed_writers(
    model: Model, tmp_path: Path, said: Said, refused: Refused
) -> None:
    base, edited = model("base"), model("edited", seed=1)
    (base / ".tmpAbC123").write_bytes(b"half a shard")  # safetensors' own, after a kill
    (base / "model.safetensors.tmp").write_bytes(b"half a shard")
    host = staging.owner().split("-")[0]
    dead = tmp_path / f".out.staged-{host}-00000000-1-abcd1234"
    dead.mkdir()
    (dead / "model.safetensors").write_bytes(b"half")
    os.utime(dead, (2**33, 2**33))  # the clock was wrong then: the next century
    said(["diff", base, edited, "-o", tmp_path / "p"])
    said(["apply", base, tmp_path / "p", "-o", tmp_path / "out"])
    assert not dead.exists()
    dead.mkdir()  # killed when it had published, and was putting things away
    assert run(["apply", str(base), str(tmp_path / "p"), "-o", str(tmp_path / "out")]) == 1
    assert not dead.exists()
    assert not {".tmpAbC123", "model.safetensors.tmp"} & {
        p.name for p in (tmp_path / "out").iterdir()
    }
    (tmp_path / "half").mkdir()  # a folder that was copied without its last files
    shutil.copyfile(edited / "model.safetensors", tmp_path / "half" / "model.safetensors")
    refused(["inspect", tmp_path / "half"], "E102", "config.json")


# Row 20: two at once.


def test_row_20_two_runs_on_one_output(model: Model, tmp_path: Path) -> None:
    base, edited = model("base", hidden=64), model("edited", hidden=64, seed=1)
    assert run(["diff", str(base), str(edited), "-o", str(tmp_path / "p")]) == 0
    args = ["apply", str(base), str(tmp_path / "p"), "-o", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    racers = [
        subprocess.Popen([*SUTURE, *args], env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    told = [(racer.communicate()[1], racer.returncode) for racer in racers]
    assert sorted(code for _, code in told) == [0, 1, 1]
    for text, code in told:
        assert code == 0 or text.startswith(("E124: ", "E131: ")), text
    verify(tmp_path / "out")
    assert Checkpoint.open(tmp_path / "out").fingerprint() == Checkpoint.open(edited).fingerprint()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "edited", "out", "p"]


def test_row_20_a_live_run_keeps_its_output(model: Model, tmp_path: Path, refused: Refused) -> None:
    from suture.checkpoint import CheckpointWriter

    base, edited = model("base"), model("edited", seed=1)
    writer = CheckpointWriter(Checkpoint.open(base), tmp_path / "out")
    assert run(["diff", str(base), str(edited), "-o", str(tmp_path / "out")]) == 0
    with pytest.raises(Exception, match="E124"):
        writer.close()
    assert verify(tmp_path / "out").kind == "patch"
    refused(["diff", base, edited, "-o", tmp_path / "out"], "E124", "nothing is overwritten")


@pytest.mark.parametrize("kernel", [True, False])
def test_row_20_stale_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    """Who holds a lock is decided by the kernel, or by host, boot and process; never by a clock."""
    from suture.checkpoint import lock
    from suture.errors import SutureError

    if not kernel:
        monkeypatch.setattr(lock, "_flock", lambda fd: None)
    host, boot, pid = lock.owner().split("-")
    file = tmp_path / "lock"
    for holder, lives in (
        (f"{host}-{boot}-{2**22 + 1}", False),  # a process that does not exist
        (f"{host}-00000000-{pid}", False),  # before the machine was restarted
        ("half a wr", False),
        (f"{host}-{boot}-{os.getppid()}", True),
        (f"ffffffff-{boot}-1", True),  # on another machine: nobody can tell
    ):
        file.write_text(holder)
        for clock in (0, 2**33):  # set to 1970, or to the next century
            os.utime(file, (clock, clock))
            if lives and not kernel:
                with pytest.raises(SutureError, match="E131"):
                    lock.Lock(file)
                assert lock.is_held(file)
            else:
                lock.Lock(file).release()
                assert file.read_text() == lock.owner()
                file.write_text(holder)


def test_row_20_a_run_folder_has_one_run(tmp_path: Path) -> None:
    from suture.errors import SutureError
    from suture.runs.folder import RunFolder

    code = (
        "import sys, time; from suture.runs.folder import RunFolder\n"
        "with RunFolder.open(sys.argv[1]).lock(): print('held', flush=True); time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    args = [sys.executable, "-c", code, str(tmp_path / "run")]
    holder = subprocess.Popen(args, env=env, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    home = RunFolder.open(tmp_path / "run")
    with pytest.raises(SutureError, match=rf"E726.*pid {holder.pid}"), home.lock():
        pass
    holder.kill()
    holder.communicate()
    began = time.monotonic()
    with home.lock():  # the lock of a dead process binds nobody
        assert time.monotonic() - began < 5
