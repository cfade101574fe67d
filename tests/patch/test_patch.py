"""Patches: bit-exact both ways, bound to their base, commuting where they may."""

from __future__ import annotations

import errno
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from helpers import tiny_llama
from raw_folders import Raw, floats, listing, write_raw
from suture.checkpoint import Checkpoint, CheckpointWriter, TensorEdit, dtypes
from suture.errors import SutureError
from suture.patch import (
    Patch,
    PatchedCheckpoint,
    PatchWriter,
    apply,
    diff,
    drain,
    open_model,
    revert,
    verify,
)


def raws(path: Path) -> dict[str, Raw]:
    """All tensors by the reader under test, as raw bytes."""
    model = Checkpoint.open(path, allow_nonfinite=True)
    return {n: (i.dtype, i.shape, model.read_bytes(n)) for n, i in model.tensors.items()}


SPECIAL = {  # bit patterns that float arithmetic would lose
    "F32": [b"\x00\x00\x00\x80", b"\x01\x00\xc0\x7f", b"\x01\x00\x00\x00", b"\x00\x00\x80\x7f"],
    "BF16": [b"\x00\x80", b"\xc1\x7f", b"\x01\x00", b"\x80\xff"],
    "F16": [b"\x00\x80", b"\x01\x7e", b"\x01\x00", b"\x00\xfc"],
    "F8_E4M3": [b"\x80", b"\x7f", b"\xff", b"\x01"],
}
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def tensor_pairs(draw: st.DrawFn) -> tuple[Raw, Raw]:
    """One tensor twice: same dtype and shape, bytes equal, nearly equal or unrelated."""
    dtype = draw(st.sampled_from(sorted(dtypes.BITS)))
    shape = draw(shapes.filter(lambda s: dtypes.nbytes(dtype, s) >= 0))
    size = dtypes.nbytes(dtype, shape)
    old = bytearray(draw(st.binary(min_size=size, max_size=size)))
    patterns = SPECIAL.get(dtype)
    if patterns and size:
        pattern = draw(st.sampled_from(patterns))
        old[: len(pattern)] = pattern
    new = bytearray(old)
    for index in draw(st.lists(st.integers(0, max(0, size - 1)), max_size=4)) if size else []:
        new[index] ^= draw(st.integers(0, 255))
    return (dtype, shape, bytes(old)), (dtype, shape, bytes(new))


@settings(max_examples=40)
@given(
    pairs=st.dictionaries(st.sampled_from("abcdef"), tensor_pairs(), min_size=1),
    lost=st.sets(st.sampled_from("abcdef"), max_size=2),
    gained=st.sets(st.sampled_from("abcdef"), max_size=2),
    shards=st.tuples(st.integers(1, 2), st.integers(1, 3)),
)
def test_round_trip_over_all_dtypes_shardings_new_and_removed(
    pairs: dict[str, tuple[Raw, Raw]],
    lost: set[str],
    gained: set[str],
    shards: tuple[int, int],
) -> None:
    old = {n: pair[0] for n, pair in pairs.items() if n not in gained - lost}
    new = {n: pair[1] for n, pair in pairs.items() if n not in lost - gained}
    if not old or not new or old == new:
        return
    with tempfile.TemporaryDirectory() as home:
        base = write_raw(Path(home) / "base", old, shards=min(shards[0], len(old)))
        edited = write_raw(Path(home) / "edited", new, shards=min(shards[1], len(new)))
        patch = Path(home) / "patch"
        info = diff(base, edited, patch, allow_nonfinite=True)
        assert apply(base, [patch], Path(home) / "there", allow_nonfinite=True).result_fingerprint
        assert raws(Path(home) / "there") == new
        revert(Path(home) / "there", patch, Path(home) / "back", allow_nonfinite=True)
        assert raws(Path(home) / "back") == old
        there = Checkpoint.open(Path(home) / "there", allow_nonfinite=True)
        assert info.result_fingerprint == there.fingerprint()
        unwritten = PatchedCheckpoint(Checkpoint.open(base, allow_nonfinite=True), [patch])
        assert unwritten.fingerprint() == info.result_fingerprint
        assert {n: unwritten.read_bytes(n) for n in unwritten.tensors} == {
            n: raw for n, (_d, _s, raw) in new.items()
        }
        touched = {n for n in {*old, *new} if old.get(n) != new.get(n)}
        assert set(Patch.open(patch).tensors) == touched


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "m", dtype="bfloat16", shards=2)


def tuned(base: Path, out: Path, *names: str, factor: float = 1.01) -> Path:
    """A copy of `base` with some tensors scaled (all when none is named)."""
    shutil.copytree(base, out)
    for file in out.glob("*.safetensors"):
        state = load_file(file)
        for name in state:
            if not names or name in names:
                state[name] = (state[name].float() * factor + 1e-3).to(state[name].dtype)
        save_file(state, file, metadata={"format": "pt"})
    return out


A, B, C = (f"model.layers.{i}.mlp.{m}_proj.weight" for i, m in ((0, "up"), (1, "down"), (1, "up")))


def test_disjoint_patches_commute_and_stack_on_the_same_result(base: Path, tmp_path: Path) -> None:
    patches = []
    for name in (A, B, C):
        edited = tuned(base, tmp_path / name, name)
        patches.append(diff(base, edited, tmp_path / f"p-{name}").path)
    together = Checkpoint.open(tuned(base, tmp_path / "all", A, B, C)).fingerprint()
    for order in itertools.permutations(patches):
        assert PatchedCheckpoint(Checkpoint.open(base), order).fingerprint() == together
    info = apply(base, patches, tmp_path / "out")
    assert info.result_fingerprint == together == Checkpoint.open(tmp_path / "out").fingerprint()
    assert info.tensors == 3
    revert(tmp_path / "out", patches[1], tmp_path / "less")  # the middle one, not the last
    less = Checkpoint.open(tuned(base, tmp_path / "two", A, C)).fingerprint()
    assert Checkpoint.open(tmp_path / "less").fingerprint() == less


def test_order_is_enforced_on_the_same_tensors(base: Path, tmp_path: Path) -> None:
    first = tuned(base, tmp_path / "1", A, B)
    second = tuned(first, tmp_path / "2", B, C)
    p1 = diff(base, first, tmp_path / "p1").path
    p2 = diff(first, second, tmp_path / "p2").path
    apply(base, [p1, p2], tmp_path / "good")
    final = Checkpoint.open(second).fingerprint()
    assert Checkpoint.open(tmp_path / "good").fingerprint() == final
    with pytest.raises(SutureError, match=r"E207.*'p2'[\s\S]*give 'p1' right before 'p2'"):
        apply(base, [p2, p1], tmp_path / "bad")
    other = diff(base, tuned(base, tmp_path / "3", B, factor=2), tmp_path / "p3").path
    with pytest.raises(SutureError, match="E207"):
        apply(base, [p1, other], tmp_path / "bad")
    with pytest.raises(SutureError, match="E206"):
        revert(second, p1, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_wrong_base_is_refused_with_nothing_written(base: Path, tmp_path: Path) -> None:
    patch = diff(base, tuned(base, tmp_path / "t", A), tmp_path / "p").path
    others = {
        "seed": tiny_llama(tmp_path / "seed", dtype="bfloat16", seed=9),
        "dtype": tiny_llama(tmp_path / "dtype", dtype="float32"),
        "shape": tiny_llama(tmp_path / "shape", dtype="bfloat16", inter=64),
        "layers": tiny_llama(tmp_path / "layers", dtype="bfloat16", layers=1),
        "applied": tmp_path / "t",
    }
    before = listing(tmp_path)
    for other in others.values():
        with pytest.raises(SutureError, match=r"E206.*1 of 1 tensors[\s\S]*belongs to the model"):
            apply(other, [patch], tmp_path / "out")
    assert listing(tmp_path) == before
    assert not list(tmp_path.glob(".out*"))


def test_untouched_tensors_may_be_anything(base: Path, tmp_path: Path) -> None:
    patch = diff(base, tuned(base, tmp_path / "t", A), tmp_path / "p").path
    other = tuned(base, tmp_path / "o", C, factor=3)
    apply(other, [patch], tmp_path / "out")
    found = Checkpoint.open(tmp_path / "out").fingerprint()
    assert found == Checkpoint.open(tuned(other, tmp_path / "e", A)).fingerprint()


def test_ties_are_one_record(tmp_path: Path) -> None:
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    path = tiny_llama(tmp_path / "m")
    state = load_file(path / "model.safetensors")
    save_file({**state, head: state[embed].clone()}, path / "model.safetensors")
    edited = shutil.copytree(path, tmp_path / "e")
    new = {**state, embed: state[embed] * 2, head: state[embed] * 2}
    save_file(new, edited / "model.safetensors")
    info = diff(path, edited, tmp_path / "p")
    assert info.tensors == 1
    apply(path, [tmp_path / "p"], tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], new[name]) for name in new)


def test_extended_embedding_and_its_tokenizer(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m", tie=False)
    edited = shutil.copytree(path, tmp_path / "e")
    state = load_file(path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name] * 1.5, torch.randn(3, 32)])
    save_file(state, edited / "model.safetensors")
    config = (path / "config.json").read_text().replace('"vocab_size": 64', '"vocab_size": 67')
    (edited / "config.json").write_text(config)
    (edited / "tokenizer_config.json").unlink()
    (edited / "added_tokens.json").write_text('{"<new>": 64}')
    patch = diff(path, edited, tmp_path / "p").path
    opened = Patch.open(patch)
    assert {r.encoding for r in opened.tensors.values()} == {"extended"}
    assert set(opened.files) == {"config.json", "tokenizer_config.json", "added_tokens.json"}
    model = open_model(path, patches=[patch])
    assert model.config["vocab_size"] == 67
    assert torch.equal(model.read("lm_head.weight"), state["lm_head.weight"])
    assert (model.path / "added_tokens.json").exists()
    assert not (model.path / "tokenizer_config.json").exists()
    apply(path, [patch], tmp_path / "out")
    revert(tmp_path / "out", patch, tmp_path / "back")
    for made, wanted in (("out", edited), ("back", path)):
        assert raws(tmp_path / made) == raws(wanted)
        for name in ("config.json", "tokenizer_config.json", "added_tokens.json"):
            made_file, wanted_file = tmp_path / made / name, wanted / name
            assert made_file.exists() == wanted_file.exists()
            assert not made_file.exists() or made_file.read_bytes() == wanted_file.read_bytes()
    (path / "config.json").write_text(config)
    with pytest.raises(SutureError, match=r"E206.*config\.json"):
        open_model(path, patches=[patch])
    home = model.path
    del model
    assert not home.exists()


def test_a_patch_cannot_bring_in_code(base: Path, tmp_path: Path) -> None:
    edited = tuned(base, tmp_path / "e", A)
    evil = (base / "config.json").read_text().replace("{", '{"auto_map": {"A": "evil.B"},', 1)
    patch = diff(base, edited, tmp_path / "p").path
    (edited / "config.json").write_text(evil)
    with pytest.raises(SutureError, match="E104"):
        diff(base, edited, tmp_path / "p2")
    writer = PatchWriter(Checkpoint.open(base), tmp_path / "p3")
    writer.put_file("config.json", (base / "config.json").read_bytes(), evil.encode())
    writer.close()
    with pytest.raises(SutureError, match="E104"):
        apply(base, [tmp_path / "p3"], tmp_path / "out")
    writer = PatchWriter(Checkpoint.open(base), tmp_path / "p4")
    with pytest.raises(SutureError, match="E210"):
        writer.put_file("modeling.py", None, b"1/0")
    writer.abort()
    assert verify(patch).kind == "patch"
    assert not (tmp_path / "out").exists()


def test_diff_refuses_what_is_no_difference(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SutureError, match="E208"):
        diff(base, shutil.copytree(base, tmp_path / "same"), tmp_path / "p")
    for options in ({"dtype": "float32"}, {"dtype": "bfloat16", "inter": 64}):
        other = tiny_llama(tmp_path / str(options["dtype"]), **options)  # type: ignore[arg-type]
        with pytest.raises(SutureError, match="E209"):
            diff(base, other, tmp_path / "p")
    for out in (base, base / "p"):
        with pytest.raises(SutureError, match="E124"):
            diff(base, tuned(base, tmp_path / f"x{out.name}", A), out)
    assert not list(tmp_path.glob("p")) + list(tmp_path.glob(".p*"))


def test_nan_is_refused_and_carried_only_when_asked(tmp_path: Path) -> None:
    good = write_raw(tmp_path / "g", {"a": floats(1, 2)})
    bad = write_raw(tmp_path / "b", {"a": floats(1, float("nan"))})
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(SutureError, match="E117"):
            diff(*pair, tmp_path / "p")
    patch = diff(good, bad, tmp_path / "p", allow_nonfinite=True).path
    with pytest.raises(SutureError, match="E117"):
        open_model(good, patches=[patch]).read("a")
    before = listing(tmp_path)
    with pytest.raises(SutureError, match=r"E117.*1 patched tensors: a"):
        apply(good, [patch], tmp_path / "out")
    with pytest.raises(SutureError, match="E117"):  # also below a patch that is finite itself
        apply(good, [patch, _other_patch(good, tmp_path)], tmp_path / "out")
    assert {name: raw for name, raw in listing(tmp_path).items() if name in before} == before
    assert not list(tmp_path.glob("out")) + list(tmp_path.glob(".out*"))
    apply(good, [patch], tmp_path / "out", allow_nonfinite=True)
    assert raws(tmp_path / "out") == raws(bad)
    revert(tmp_path / "out", patch, tmp_path / "back", allow_nonfinite=True)
    assert raws(tmp_path / "back") == raws(good)


def _other_patch(base: Path, home: Path) -> Path:
    """A finite patch that adds tensor `b` to `base`."""
    other = write_raw(home / "other", {**raws(base), "b": floats(3)})
    return diff(base, other, home / "p-other").path


def edits(source: Any, *names: str, factor: float = 2.0) -> list[TensorEdit]:
    return [TensorEdit(name, source.read(name) * factor) for name in names]


def test_both_sinks_in_one_pass_agree(base: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(base)
    patch = PatchWriter(source, tmp_path / "p", {"method": "scale", "seeds": [1], "note": "x"})
    drain(edits(source, C, A), [patch, CheckpointWriter(source, tmp_path / "out")])
    assert patch.info is not None
    assert patch.info == Patch.open(tmp_path / "p").info
    assert patch.info.base_fingerprint == source.fingerprint()
    assert patch.info.result_fingerprint == Checkpoint.open(tmp_path / "out").fingerprint()
    assert patch.info.tensors == 2
    nonzero = sum(int((source.read(n) != 0).sum()) for n in (A, C))
    assert patch.info.elements == nonzero
    manifest = Patch.open(tmp_path / "p").manifest
    assert manifest["method"] == "scale"
    assert manifest["provenance"] == {"note": "x"}
    again = diff(base, tmp_path / "out", tmp_path / "p2")
    assert again.fingerprint == patch.info.fingerprint  # the same change, made in another way


def test_an_edit_that_changes_nothing_is_an_error(base: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(base)
    for sinks in (
        [PatchWriter(source, tmp_path / "p")],
        [CheckpointWriter(source, tmp_path / "out"), PatchWriter(source, tmp_path / "p")],
        [CheckpointWriter(source, tmp_path / "out")],
    ):
        with pytest.raises(SutureError, match="E208"):
            drain(edits(source, A, factor=1.0), sinks)
    with pytest.raises(SutureError, match="E208"):
        drain([], [CheckpointWriter(source, tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_a_failing_method_leaves_nothing(base: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(base)

    def failing() -> Any:
        yield from edits(source, A)
        raise RuntimeError("method")

    sinks = [PatchWriter(source, tmp_path / "p"), CheckpointWriter(source, tmp_path / "o")]
    with pytest.raises(RuntimeError, match="method"):
        drain(failing(), sinks)
    assert list(tmp_path.iterdir()) == []


class Failing(CheckpointWriter):
    """A sink whose last step fails, before or after its folder has its name."""

    def __init__(self, source: Checkpoint, out: Path, others: Path, *, renamed: bool) -> None:
        super().__init__(source, out)
        self._others, self._renamed, self.others_seen = others, renamed, False

    def publish(self) -> None:
        self.others_seen = self._others.exists()
        if self._renamed:
            super().publish()
        raise RuntimeError("publish")


@pytest.mark.parametrize("renamed", [False, True])
def test_when_one_output_cannot_be_published_none_is(
    base: Path, tmp_path: Path, renamed: bool
) -> None:
    source, p, out = Checkpoint.open(base), tmp_path / "p", tmp_path / "out"
    last = Failing(source, out, p, renamed=renamed)
    with pytest.raises(RuntimeError, match="publish"):
        drain(edits(source, A), [PatchWriter(source, p), last])
    assert last.others_seen
    assert list(tmp_path.iterdir()) == []
    drain(edits(source, A), [PatchWriter(source, p), CheckpointWriter(source, out)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "p"]


def test_nothing_is_published_before_all_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, seen = Checkpoint.open(base), []

    def full(self: CheckpointWriter) -> None:
        seen.extend(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(CheckpointWriter, "_write_manifest", full)
    sinks = [PatchWriter(source, tmp_path / "p"), CheckpointWriter(source, tmp_path / "out")]
    with pytest.raises(SutureError, match="E125"):
        drain(edits(source, A), sinks)
    assert seen == []
    assert list(tmp_path.iterdir()) == []


def test_another_process_output_is_not_removed(base: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(base)
    sinks = [PatchWriter(source, tmp_path / "p"), CheckpointWriter(source, tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("x")
    with pytest.raises(SutureError, match="E124"):
        drain(edits(source, A), sinks)
    assert listing(tmp_path) == {"out/theirs": b"x"}


def test_open_model_finds_out_what_a_folder_is(base: Path, tmp_path: Path) -> None:
    patch = diff(base, tuned(base, tmp_path / "t", A), tmp_path / "p").path
    source = Checkpoint.open(base)
    wanted = Checkpoint.open(tmp_path / "t").fingerprint()
    assert open_model(base, patches=[patch]).fingerprint() == wanted
    assert open_model(patch, base=source).fingerprint() == wanted
    with pytest.raises(SutureError, match="E211"):
        open_model(patch)
    with pytest.raises(SutureError, match=r"E101.*patch"):
        Checkpoint.open(patch)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(SutureError, match=r"E119[\s\S]*--aligned"):
        open_model(tmp_path / "a")


def test_unchanged_shards_are_copied_whole(base: Path, tmp_path: Path) -> None:
    patch = diff(base, tuned(base, tmp_path / "t", A), tmp_path / "p").path
    model = PatchedCheckpoint(Checkpoint.open(base), [patch])
    plain = [name for name in sorted(p.name for p in base.glob("*.safetensors"))
             if model.plain_shard(name)]  # fmt: skip
    assert len(plain) == 1
    apply(base, [patch], tmp_path / "out")
    assert (tmp_path / "out" / plain[0]).read_bytes() == (base / plain[0]).read_bytes()
    assert (tmp_path / "out" / plain[0]).stat().st_ino != (base / plain[0]).stat().st_ino


def test_tiles_of_any_size_give_the_same_bytes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from suture.patch import operations, writer

    for module in (operations, writer):
        monkeypatch.setattr(module, "TILE", 256)
    patch = diff(base, tuned(base, tmp_path / "t"), tmp_path / "p").path
    assert Patch.open(patch).tile == 256
    model = PatchedCheckpoint(Checkpoint.open(base), [patch])
    expected = Checkpoint.open(tmp_path / "t")
    for name in model.tensors:
        assert model.read_bytes(name) == expected.read_bytes(name)
        assert b"".join(map(bytes, model.tiles(name, 100))) == expected.read_bytes(name)
        assert torch.equal(model.read(name), expected.read(name))


def test_the_card_says_what_was_applied(base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    (own / "README.md").write_text("---\nlicense: mit\n---\n# Mine\nhello\n")
    patch = diff(own, tuned(own, tmp_path / "t", A), tmp_path / "p")
    apply(own, [patch.path], tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\n---\n# Patched checkpoint")
    assert patch.fingerprint[:16] in text
    assert "hello" in text
    revert(tmp_path / "out", patch.path, tmp_path / "back")
    back = (tmp_path / "back" / "README.md").read_text()
    assert back.count("# Patched checkpoint") == 1
    assert "reverted" in back
    assert "hello" in back


def test_verify_checkpoints(base: Path, tmp_path: Path) -> None:
    assert not verify(base).manifest
    patch = diff(base, tuned(base, tmp_path / "t", A), tmp_path / "p").path
    apply(base, [patch], tmp_path / "out")
    result = verify(tmp_path / "out")
    assert result.manifest
    assert result.fingerprint == Checkpoint.open(tmp_path / "out").fingerprint()
    shard = sorted((tmp_path / "out").glob("*.safetensors"))[1]
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(SutureError, match=rf"E126.*{shard.name} \(changed\)"):
        verify(tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(SutureError, match=r"E126.*2 files.*tokenizer\.json \(missing\)"):
        verify(tmp_path / "out")
