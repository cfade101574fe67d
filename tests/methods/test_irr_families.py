"""IRR on every family of decoders against the dense reference of `brute`.

The reference knows the families on its own: which rows or columns of which stored tensor form a
matrix of the paper, and what its inputs are, seen in whole forwards of single sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import brute
from fakes import SAFETY, TASK, Altered, perturbed
from suture.checkpoint import Checkpoint, TensorSource
from suture.data import Pair, encode
from suture.errors import SutureError
from suture.inference import LoadedModel, load
from suture.methods import IRR, MatrixReport, SafeLoRA, TaskArithmetic
from suture.methods.common import scoped_names
from tiny_families import DECODERS, tiny_family

FAMILIES = [*DECODERS, "qwen3_moe", "phi"]


@dataclass
class Piece:
    """A matrix of the paper: `cut` gives it, outputs x inputs, out of its stored tensor."""

    stored: str
    matrix: str
    cut: Callable[[torch.Tensor], torch.Tensor]
    memory: Callable[[Any], torch.Tensor]  # the model's parameter, shaped as stored
    inputs: Callable[[LoadedModel, list[Pair]], torch.Tensor]


def rows(start: int, stop: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t[start:stop]


def columns(start: int, stop: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t[:, start:stop].T


def entering(path: str) -> Callable[[LoadedModel, list[Pair]], torch.Tensor]:
    """What enters a module, all tokens of all rows."""

    def see(lm: LoadedModel, data: list[Pair]) -> torch.Tensor:
        return torch.cat(
            [args[0].reshape(-1, args[0].shape[-1]) for args in caught(lm, path, data)]
        )

    return see


def caught(lm: LoadedModel, path: str, data: list[Pair]) -> list[Any]:
    seen: list[Any] = []
    hook = lm.model.get_submodule(path).register_forward_pre_hook(lambda _m, x: seen.append(x))
    with torch.no_grad():
        for row in data:
            ids = encode(lm.tokenizer, lm.template, row.prompt, row.response).ids
            lm.model(torch.tensor([ids]))
    hook.remove()
    return seen


def expert_inputs(path: str, expert: int, down: bool) -> Callable[..., torch.Tensor]:
    """The tokens that the router sends to an expert, before or after its gate."""

    def see(lm: LoadedModel, data: list[Pair]) -> torch.Tensor:
        found = [x[(chosen == expert).any(-1)] for x, chosen, _ in caught(lm, path, data)]
        x = torch.cat(found)
        if not down:
            return x
        gate, up = (x @ lm.model.get_submodule(path).gate_up_proj[expert].T).chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    return see


def plain(name: str, matrix: str) -> Piece:
    module = name.removesuffix(".weight")
    return Piece(name, matrix, lambda t: t, lambda m: m.get_parameter(name), entering(module))


def cut_from(name: str, matrix: str, cut: Callable[[torch.Tensor], torch.Tensor]) -> Piece:
    return Piece(
        name, matrix, cut, lambda m: m.get_parameter(name), entering(name.removesuffix(".weight"))
    )


def pieces(family: str, layer: int) -> Iterator[Piece]:
    """The matrices of one layer."""
    at = f"model.layers.{layer}"
    if family == "gpt2":
        at = f"transformer.h.{layer}"
        for i, m in enumerate("qkv"):
            yield cut_from(f"{at}.attn.c_attn.weight", m, columns(16 * i, 16 * i + 16))
        yield cut_from(f"{at}.attn.c_proj.weight", "o", columns(0, 16))
        yield cut_from(f"{at}.mlp.c_fc.weight", "fc1", columns(0, 64))
        yield cut_from(f"{at}.mlp.c_proj.weight", "fc2", columns(0, 16))
        return
    if family == "opt":
        at = f"model.decoder.layers.{layer}"
    if family == "phi3":
        for m, start, stop in (("q", 0, 16), ("k", 16, 24), ("v", 24, 32)):
            yield cut_from(f"{at}.self_attn.qkv_proj.weight", m, rows(start, stop))
        for m, start in (("gate", 0), ("up", 24)):
            yield cut_from(f"{at}.mlp.gate_up_proj.weight", m, rows(start, start + 24))
        yield plain(f"{at}.self_attn.o_proj.weight", "o")
        yield plain(f"{at}.mlp.down_proj.weight", "down")
        return
    for m in "qkv":
        yield plain(f"{at}.self_attn.{m}_proj.weight", m)
    out = {"opt": "out_proj", "phi": "dense"}.get(family, "o_proj")
    yield plain(f"{at}.self_attn.{out}.weight", "o")
    if family in ("opt", "phi"):
        inner = at if family == "opt" else f"{at}.mlp"
        yield plain(f"{inner}.fc1.weight", "fc1")
        yield plain(f"{inner}.fc2.weight", "fc2")
    elif family in ("mixtral", "qwen3_moe"):
        yield from experts(family, at)
    else:
        for m in ("gate", "up", "down"):
            yield plain(f"{at}.mlp.{m}_proj.weight", m)


def experts(family: str, at: str) -> Iterator[Piece]:
    home = f"{at}.mlp.experts"
    for e in range(4):
        for m, code in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            stored = f"{home}.{e}.{m}_proj.weight"
            if family == "mixtral":
                stored = f"{at}.block_sparse_moe.experts.{e}.{code}.weight"

            def memory(model: Any, m: str = m, e: int = e) -> torch.Tensor:
                fused = model.get_submodule(home)
                if m == "down":
                    return fused.down_proj[e]
                half = fused.gate_up_proj.shape[1] // 2
                return fused.gate_up_proj[e][:half] if m == "gate" else fused.gate_up_proj[e][half:]

            yield Piece(stored, m, lambda t: t, memory, expert_inputs(home, e, m == "down"))


class Models:
    """aligned, tuned and unaligned of one family."""

    def __init__(self, folder: Path, family: str) -> None:
        self.family = family
        self.aligned = Altered(Checkpoint.open(folder))
        self.tuned = perturbed(self.aligned, 1, 0.05)
        self.unaligned = perturbed(self.aligned, 2, 0.05)

    def sources(self) -> dict[str, TensorSource]:
        return {"aligned": self.aligned, "tuned": self.tuned, "unaligned": self.unaligned}


def derive(models: Models, method: IRR, **options: Any) -> dict[str, torch.Tensor]:
    given: dict[str, Any] = {"safety": SAFETY, "calibration": TASK, "device": "cpu", **options}
    return {e.name: e.value for e in method.derive(**models.sources(), **given)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def build(family: str) -> Path:
        if family not in made:
            path = tmp_path_factory.mktemp(family) / "model"
            made[family] = tiny_family(path, family, seed=5, loud=8.0)
        return made[family]

    return build


def importance(models: Models) -> list[dict[str, torch.Tensor]]:
    """Per layer and stored tensor: mean squared gradient of each refusal's log-likelihood."""
    lm = load(models.aligned)
    lm.model.requires_grad_(True)
    found: list[dict[str, torch.Tensor]] = [{}, {}]
    for row in SAFETY:
        encoded = encode(lm.tokenizer, lm.template, row.prompt, row.response)
        table = lm.model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
        targets = torch.tensor(encoded.response_ids)
        chosen = table[encoded.prompt_length - 1 : -1][torch.arange(len(targets)), targets]
        lm.model.zero_grad()
        chosen.sum().backward()
        with torch.no_grad():
            gradients = Gradients(lm.model)
            for layer in range(2):
                for stored, memory in {
                    p.stored: p.memory for p in pieces(models.family, layer)
                }.items():
                    square = memory(gradients).double().square() / len(SAFETY)
                    found[layer][stored] = found[layer].get(stored, 0) + square
    return found


class Gradients:
    """Looks like the model, holds its gradients."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def get_parameter(self, name: str) -> torch.Tensor:
        gradient = self.model.get_parameter(name).grad
        assert gradient is not None
        return gradient

    def get_submodule(self, name: str) -> Any:
        @dataclass
        class Fused:
            gate_up_proj: torch.Tensor
            down_proj: torch.Tensor

        home = self.model.get_submodule(name)
        return Fused(home.gate_up_proj.grad, home.down_proj.grad)


def by_force(models: Models, method: IRR) -> dict[str, torch.Tensor]:
    """The whole method again: whole forwards, autograd, dense inverses, layer after layer."""
    F = importance(models)
    lm = load(models.tuned)
    found: dict[str, torch.Tensor] = {}
    for layer in range(2):
        here = [
            p
            for p in pieces(models.family, layer)
            if method.scope == "all" or p.matrix in ("q", "v")
        ]
        moments = []
        for piece in here:
            xs = [piece.inputs(lm, data).double().numpy() for data in (TASK, SAFETY)]
            pair = zip(xs, (TASK, SAFETY), strict=True)
            moments.append([2 / len(data) * x.T @ x for x, data in pair])
        for piece, (H_task, H_safe) in zip(here, moments, strict=True):
            A, W, U = (
                piece.cut(s.read(piece.stored)).double().numpy()
                for s in (models.aligned, models.tuned, models.unaligned)
            )
            delta = brute.irr(
                W - A,
                A - U,
                piece.cut(F[layer][piece.stored]).numpy(),
                removed=method.removed,
                policy=method.zero_policy,
                block=method.block,
                solver=method.solver,
                H_task=H_task,
                H_safe=H_safe,
                balance=method.balance,
            )
            whole = found.setdefault(piece.stored, models.tuned.read(piece.stored))
            piece.cut(whole).copy_(torch.from_numpy(A + delta))
            with torch.no_grad():
                piece.memory(lm.model).copy_(whole)
    return found


def agree(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tuned: Any) -> None:
    """To 1e-5 relative, entries to 1e-4 of the largest; every tensor has moved far more."""
    assert sorted(ours) == sorted(expected)
    for name, value in expected.items():
        gap, size = ours[name] - value, value
        assert float((value - tuned.read(name)).norm()) > 1e-2 * float(size.norm()), name
        assert float(gap.norm()) < 1e-5 * float(size.norm()), name
        assert float(gap.abs().max()) < 1e-4 * float(size.abs().max()), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("solver", "removed", "scope"), [("balanced", 0.4, "all"), ("sequential", 0.7, "qv")]
)
def test_derive_equals_brute_force(
    folder: Callable[[str], Path], family: str, solver: Any, removed: float, scope: Any
) -> None:
    models = Models(folder(family), family)
    method = IRR(solver=solver, removed=removed, scope=scope, block=8)
    agree(derive(models, method), by_force(models, method), models.tuned)


def test_a_fused_model_is_edited_like_one_stored_apart(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Phi-3 is Llama with fused tensors: its edits are those of the other, stacked."""
    fused = Models(folder("phi3"), "phi3")
    base = Checkpoint.open(tiny_family(tmp_path / "llama", "llama", rms_norm_eps=1e-5))
    apart = Models(folder("phi3"), "llama")
    for name in ("aligned", "tuned", "unaligned"):
        source = getattr(fused, name)
        changes: dict[str, torch.Tensor] = {}
        for stored in source.tensors:
            value = source.read(stored)
            if "qkv_proj" in stored:
                for m, part in zip("qkv", value.split((16, 8, 8)), strict=True):
                    changes[stored.replace("qkv_proj", f"{m}_proj")] = part.contiguous()
            elif "gate_up_proj" in stored:
                for m, part in zip(("gate", "up"), value.chunk(2), strict=True):
                    changes[stored.replace("gate_up_proj", f"{m}_proj")] = part.contiguous()
            else:
                changes[stored] = value
        setattr(apart, name, Altered(base, changes))
    for scope in ("all", "qv"):
        method = IRR(solver="balanced", removed=0.4, scope=scope, block=8)
        one, other = derive(fused, method), derive(apart, method)
        for layer in range(2):
            at = f"model.layers.{layer}.self_attn"
            keys = [f"{at}.{m}_proj.weight" for m in "qkv"]
            stacked = torch.cat([other.get(k, apart.tuned.read(k)) for k in keys])
            torch.testing.assert_close(one[f"{at}.qkv_proj.weight"], stacked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "name", "key"),
    [
        ("gpt2", "transformer.h.{}.attn.c_attn.weight", columns(16, 32)),
        ("phi3", "model.layers.{}.self_attn.qkv_proj.weight", rows(16, 24)),
    ],
)
@pytest.mark.parametrize("solver", ["sequential", "none"])
def test_query_and_value_only_leaves_the_key_alone(
    folder: Callable[[str], Path], family: str, name: str, key: Any, solver: Any
) -> None:
    models = Models(folder(family), family)
    report: list[MatrixReport] = []
    ours = derive(models, IRR(scope="qv", solver=solver, drop=0.3), report=report)
    assert list(ours) == [name.format(layer) for layer in range(2)]
    assert [row.name for row in report] == [f"{n}[{m}]" for n in ours for m in ("q", "v")]
    for stored, value in ours.items():
        tuned = models.tuned.read(stored)
        assert torch.equal(key(value), key(tuned))
        assert value.is_contiguous()
        assert (value != tuned).float().mean() > 0.3


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_methods_on_whole_tensors_refuse_query_and_value_only(
    folder: Callable[[str], Path], family: str
) -> None:
    models = Models(folder(family), family)
    with pytest.raises(SutureError) as caught:
        list(TaskArithmetic(scope="qv").derive(aligned=models.aligned, tuned=models.tuned))
    assert caught.value.code == "E440"
    assert "--scope all" in str(caught.value)


def test_experts_in_one_tensor_are_merged_whole_and_not_cut(
    folder: Callable[[str], Path],
) -> None:
    models = Models(folder("gpt_oss"), "gpt_oss")
    experts = {
        f"model.layers.{layer}.mlp.experts.{leaf}"
        for layer in range(2)
        for leaf in ("gate_up_proj", "down_proj")
    }
    pair: dict[str, Any] = {"aligned": models.aligned, "tuned": models.tuned}
    whole, ours = (
        {e.name: e.value for e in TaskArithmetic(scale=0.5, scope=scope).derive(**pair)}
        for scope in ("model", "all")
    )
    assert {name for name, value in ours.items() if value.dim() == 3} == experts
    assert not [name for name in ours if name.endswith("bias") or "router" in name]
    assert all(torch.equal(value, whole[name]) for name, value in ours.items())
    safe_lora = SafeLoRA().derive
    refusing = (
        lambda: derive(models, IRR()),
        lambda: safe_lora(**pair, unaligned=models.unaligned),
    )
    for method in refusing:
        with pytest.raises(SutureError, match=r"experts of a layer(.|\n)*--scope qv") as caught:
            method()
        assert caught.value.code == "E440"
    report: list[MatrixReport] = []
    derive(models, IRR(scope="qv", removed=0.4), report=report)
    assert len(report) == 4


def test_an_unknown_order_of_query_key_and_value_is_refused(
    folder: Callable[[str], Path],
) -> None:
    base = Checkpoint.open(folder("phi3"))
    odd = Altered(base, config={"model_type": "falcon", "num_key_value_heads": 3})
    with pytest.raises(SutureError) as caught:
        scoped_names(odd, "qv", parts=True)
    assert caught.value.code == "E440"
    assert len(scoped_names(odd, "all", parts=True)) == 8


def test_embeddings_positions_norms_and_routers_are_out_of_scope(
    folder: Callable[[str], Path],
) -> None:
    for family in FAMILIES:
        source = Checkpoint.open(folder(family))
        names = scoped_names(source, "all")
        expected = {piece.stored for layer in range(2) for piece in pieces(family, layer)}
        assert set(names) == expected, family


@pytest.mark.parametrize("solver", ["sequential", "balanced", "none"])
def test_a_dead_expert_is_left_alone_and_reported(
    folder: Callable[[str], Path], tmp_path: Path, solver: Any
) -> None:
    """Router rows r, −r, 0, 0 and one expert per token: the last two are never chosen."""
    path = tiny_family(tmp_path / "m", "mixtral", seed=5, loud=8.0, num_experts_per_tok=1)
    models = Models(path, "mixtral")
    for layer in range(2):
        router = f"model.layers.{layer}.block_sparse_moe.gate.weight"
        rows_ = torch.zeros(4, 16)
        rows_[0] = models.tuned.read(router)[0]
        rows_[1] = -rows_[0]
        models.tuned._values[router] = rows_
    report: list[MatrixReport] = []
    ours = derive(models, IRR(solver=solver, removed=1.0), report=report)
    rows_by_name = {row.name: row for row in report}
    assert len(report) == len(ours) == 2 * (4 + 12)
    for name, value in ours.items():
        dead = ".experts.2." in name or ".experts.3." in name
        left_alone = dead and solver != "none"
        assert rows_by_name[name].reached is not left_alone
        assert torch.equal(value, models.tuned.read(name)) is left_alone
        if left_alone:
            row = rows_by_name[name]
            assert (row.removed, row.dead_columns, row.damping) == (0, value.shape[1], None)


@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize("family", ["gpt2", "mixtral", "opt"])
def test_importance_of_batches_is_the_squared_gradient_of_their_mean_loss(
    folder: Callable[[str], Path], family: str, batch: int
) -> None:
    from suture.methods.fisher import fisher

    lm = load(Checkpoint.open(folder(family)))
    names = [piece.stored for piece in pieces(family, 1)]
    ours = fisher(lm, SAFETY, list(dict.fromkeys(names)), batch=batch)
    total: dict[str, torch.Tensor] = {}
    groups = [SAFETY[i : i + batch] for i in range(0, len(SAFETY), batch)]
    lm.model.requires_grad_(True)
    for group in groups:
        losses = []
        for row in group:
            encoded = encode(lm.tokenizer, lm.template, row.prompt, row.response)
            table = lm.model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
            targets = torch.tensor(encoded.response_ids)
            losses.append(-table[encoded.prompt_length - 1 : -1].gather(1, targets[:, None]))
        lm.model.zero_grad()
        torch.cat(losses).mean().backward()
        with torch.no_grad():
            for piece in pieces(family, 1):
                square = piece.memory(Gradients(lm.model)).square() / len(groups)
                total.setdefault(piece.stored, torch.zeros_like(square))
                if piece.matrix not in ("k", "v") or family != "gpt2":  # one tensor, three pieces
                    total[piece.stored] += square
    for name, value in total.items():
        assert ours[name].shape == value.shape
        scale = float(value.max())
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "minimax"])
def test_layers_of_experts_run_as_before_afterwards(
    folder: Callable[[str], Path], family: str
) -> None:
    """Watching the experts changes how the mixture is computed, and only while it lasts."""
    from suture.inference.matrices import matrices, opened

    lm = load(Checkpoint.open(folder(family)))
    ids = torch.arange(5, 25).unsqueeze(0)
    watched = matrices(lm, [name for name in lm.places if ".experts." in name]).values()
    assert len(watched) == 2 * 4 * 3
    with torch.no_grad():
        before = lm.model(ids).logits
        with opened(matrix.module for matrix in watched):
            inside = lm.model(ids).logits
        assert torch.equal(lm.model(ids).logits, before)
    torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(lm.model.model.layers[0].mlp.experts)
