"""Written checkpoints are whole or absent, and inputs stay as they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny_llama
from raw_folders import floats, listing, write_raw
from suture.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    TensorEdit,
    hash_file,
    hashes,
    staged_folder,
    staging,
    write_json,
)
from suture.checkpoint.source import content_hash
from suture.checkpoint.staging import Stage
from suture.errors import SutureError

NAME = "model.layers.1.mlp.up_proj.weight"


def written(base: Checkpoint, out: Path, *edits: TensorEdit, **options: Any) -> Checkpoint:
    writer = CheckpointWriter(base, out, **options)
    for edit in edits:
        writer.put(edit)
    writer.close()
    return Checkpoint.open(out)


@pytest.mark.parametrize("shards", [1, 3])
def test_one_edit_changes_one_tensor(tmp_path: Path, shards: int) -> None:
    path = tiny_llama(tmp_path / "m", shards=shards, dtype="bfloat16")
    (path / "LICENSE").write_text("free")
    (path / "modeling_evil.py").write_text("1/0")
    before, base = listing(path), Checkpoint.open(path)
    value = base.read(NAME) * 2
    out = tmp_path / "out"
    result = written(base, out, TensorEdit(NAME, value), card="# New\n")
    assert listing(path) == before
    expected: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        expected |= load_file(file)
        changed = file.read_bytes() != (out / file.name).read_bytes()
        assert changed == (NAME in load_file(file))
    expected[NAME] = value
    found: dict[str, torch.Tensor] = {}
    for file in sorted(out.glob("*.safetensors")):
        found |= load_file(file)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert result.fingerprint() != base.fingerprint()
    assert (out / "README.md").read_text() == "# New\n"
    assert (out / "LICENSE").read_text() == "free"
    assert not (out / "modeling_evil.py").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "out"]


def test_manifest_lists_everything_by_hash(tmp_path: Path) -> None:
    base = Checkpoint.open(tiny_llama(tmp_path / "m", shards=2))
    out = tmp_path / "out"
    result = written(base, out, TensorEdit(NAME, base.read(NAME) + 1))
    manifest = json.loads((out / "suture.json").read_text())
    assert manifest["fingerprint"] == result.fingerprint()
    assert manifest["base_fingerprint"] == base.fingerprint()
    assert manifest["edited"] == [NAME]
    assert set(manifest["files"]) == {p.name for p in out.iterdir()} - {"suture.json"}
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (out / name).stat().st_size
        if not name.endswith(".safetensors"):
            assert entry["hash"] == hash_file(out / name)
            continue
        raw = (out / name).read_bytes()  # header and tensors together are every byte of a shard
        start = 8 + int.from_bytes(raw[:8], "little")
        assert entry["header"] == content_hash(raw[:start])
        header = json.loads(raw[8:start])
        header.pop("__metadata__")
        assert max(t["data_offsets"][1] for t in header.values()) == len(raw) - start
        for tensor, place in header.items():
            begin, end = place["data_offsets"]
            assert manifest["tensors"][tensor] == content_hash(raw[start + begin : start + end])
    again = written(result, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "suture.json").read_text())["edited"] == []
    assert again.fingerprint() == result.fingerprint()


def test_a_tie_stored_twice_is_kept(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    state = load_file(path / "model.safetensors")
    embed = "model.embed_tokens.weight"
    save_file({**state, "lm_head.weight": state[embed].clone()}, path / "model.safetensors")
    base = Checkpoint.open(path)
    value = base.read(embed) * 3
    written(base, tmp_path / "out", TensorEdit(embed, value))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found[embed], value)
    assert torch.equal(found["lm_head.weight"], value)


def test_wrong_edits(tmp_path: Path) -> None:
    base = Checkpoint.open(tiny_llama(tmp_path / "m"))
    good = base.read(NAME)
    for edit, code in (
        (TensorEdit(NAME, good.half()), "E127"),
        (TensorEdit(NAME, good.T.contiguous()), "E127"),
        (TensorEdit(NAME, good * float("nan")), "E117"),
        (TensorEdit("model.layers.1.mlp.up_proj", good), "E130"),
        (TensorEdit("lm_head.weight", base.read("model.embed_tokens.weight")), "E130"),
    ):
        writer = CheckpointWriter(base, tmp_path / "out")
        with pytest.raises(SutureError, match=code):
            writer.put(edit)
        writer.abort()
    writer = CheckpointWriter(base, tmp_path / "out")
    writer.put(TensorEdit(NAME, good))
    with pytest.raises(SutureError, match="edited twice"):
        writer.put(TensorEdit(NAME, good))
    writer.abort()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_outputs_are_never_overwritten(tmp_path: Path) -> None:
    base = Checkpoint.open(write_raw(tmp_path / "m", {"a": floats(1)}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for out in ("full", "file", "m", "m/inside"):
        with pytest.raises(SutureError, match="E124"):
            CheckpointWriter(base, tmp_path / out)
    (tmp_path / "empty").mkdir()
    assert written(base, tmp_path / "empty").fingerprint() == base.fingerprint()


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    writer = CheckpointWriter(Checkpoint.open(tiny_llama(tmp_path / "m")), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("x")
    with pytest.raises(SutureError, match="E124"):
        writer.close()
    assert listing(tmp_path / "out") == {"theirs": b"x"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "out"]


def test_failure_between_shards_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Checkpoint.open(tiny_llama(tmp_path / "m", shards=4))
    done: set[str] = set()

    def bring(self: CheckpointWriter, shard: Any, info: Any) -> None:
        done.add(shard.name)
        if len(done) == 3:
            raise KeyboardInterrupt
        original(self, shard, info)

    original = CheckpointWriter._bring
    monkeypatch.setattr(CheckpointWriter, "_bring", bring)
    writer = CheckpointWriter(base, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    assert len(done) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_files_stay_open_until_nobody_writes_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed descriptor's number may be another file's by the time a late write comes."""
    base = Checkpoint.open(
        write_raw(tmp_path / "m", {f"t{i}": floats(*range(1 << 13)) for i in range(3)})
    )
    open_then: list[bool] = []

    def late(self: Any, tiles: Any, scanner: Any) -> None:
        time.sleep(0.3)
        open_then.append(all(os.fstat(fd).st_nlink for fd, _start in self._places))

    def bring(self: CheckpointWriter, shard: Any, info: Any) -> None:
        if info.name == "t2":
            raise KeyboardInterrupt
        original(self, shard, info)

    original = CheckpointWriter._bring
    monkeypatch.setattr("suture.checkpoint.writer._Slot.carry", late)
    monkeypatch.setattr(CheckpointWriter, "_bring", bring)
    with pytest.raises(KeyboardInterrupt):
        CheckpointWriter(base, tmp_path / "out").close()
    assert open_then == [True, True]


def test_what_is_remembered_is_not_remembered_again(tmp_path: Path) -> None:
    """A copy of tensors whose hashes are known leaves the remembered ones alone."""
    folder = write_raw(
        tmp_path / "m", {"a": floats(*range(1 << 13)), "b": floats(*range(1, 1 + (1 << 13)))}
    )
    os.utime(folder / "model.safetensors", (1, 1))
    base = Checkpoint.open(folder)
    base.fingerprint()
    kept = {path: path.stat().st_mtime_ns for path in hashes.cache_folder().rglob("*.json")}
    written(base, tmp_path / "out")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


KILLED = """
import os, signal, sys
from suture.checkpoint import staging
from suture.checkpoint.staging import staged_folder

point, out = sys.argv[1:]
def die(): os.kill(os.getpid(), signal.SIGKILL)
if point == "commit":
    staging.fsync = lambda path: die()
if point == "rename":
    rename = os.rename
    staging.os.rename = lambda a, b: (rename(a, b), die())
with staged_folder(out, overwrite=os.path.exists(out)) as stage:
    (stage / "one").write_text("new")
    if point == "files":
        die()
    (stage / "two").write_text("new")
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("point", ["files", "commit", "rename"])
@pytest.mark.parametrize("old", [False, True])
def test_killed_anywhere_the_result_is_old_new_or_absent(
    tmp_path: Path, point: str, old: bool
) -> None:
    out = tmp_path / "out"
    whole = {"one": b"old", "two": b"old"}
    if old:
        out.mkdir()
        for name in whole:
            (out / name).write_text("old")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, point, str(out)], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    found = listing(out) if out.exists() else None
    assert found in (None, whole, {"one": b"new", "two": b"new"})
    assert len(list(tmp_path.iterdir())) >= 1
    with staged_folder(out, overwrite=True) as stage:  # the next run cleans up and succeeds
        (stage / "one").write_text("next")
        if old and point != "rename":
            assert listing(out) == whole
    assert listing(out) == {"one": b"next"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_live_writers_stage_is_left_alone(tmp_path: Path) -> None:
    other = Stage(tmp_path / "out")
    second = Stage(tmp_path / "out")
    assert other.path.exists()
    (other.path / "x").write_text("first")
    other.commit()  # two runs on one output: the first to finish wins, the other is refused
    with pytest.raises(SutureError, match="E124"):
        second.commit()
    second.discard()
    assert listing(tmp_path) == {"out/x": b"first"}


def test_a_dropped_writer_leaves_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "out")
    assert stage.path.exists()
    del stage
    assert list(tmp_path.iterdir()) == []


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    base = Checkpoint.open(tiny_llama(tmp_path / "m"))
    with pytest.raises(SutureError, match="E125: not enough disk space"):
        CheckpointWriter(base, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as a full disk")
def test_disk_full_while_writing(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "m", hidden=64)
    code = (
        "import resource, signal, sys; from suture.checkpoint import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))\n"
        "base = Checkpoint.open(sys.argv[1])\n"
        "from suture.errors import SutureError\n"
        "try: CheckpointWriter(base, sys.argv[2]).close()\n"
        "except SutureError as error: sys.exit(5 if error.code == 'E125' else 6)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    args = [sys.executable, "-c", code, str(tmp_path / "m"), str(tmp_path / "out")]
    assert subprocess.run(args, env=env, check=False).returncode == 5
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_write_json_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": "é"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": "é"}
    assert list(tmp_path.iterdir()) == [path]
