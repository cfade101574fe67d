from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import brute
from fakes import SAFETY, TASK, Altered, perturbed
from suture.checkpoint import Checkpoint, TensorSource
from suture.data import Pair, encode
from suture.errors import SutureError
from suture.inference import LoadedModel, load
from suture.methods import IRR, MatrixReport
from suture.methods.common import scoped_names
from suture.methods.irr_passes import task_stream
from suture.methods.ordering import in_order

OURS = IRR(solver="balanced", removed=0.4)


class Family:
    """aligned, tuned and unaligned of one tiny architecture with grouped queries."""

    def __init__(self, folder: Path, *, dead: bool = False) -> None:
        base = Checkpoint.open(folder)
        loud = {name: base.read(name) * 6 for name in scoped_names(base, "all")}
        self.aligned = Altered(base, loud)
        self.tuned = perturbed(self.aligned, 1, 0.05)
        self.unaligned = perturbed(self.aligned, 2, 0.05)
        if dead:  # two channels that no task token ever reaches, in attention of the second layer
            norm = "model.layers.1.input_layernorm.weight"
            closed = self.tuned.read(norm)
            closed[[3, 17]] = 0.0
            changes = {name: self.tuned.read(name) for name in self.tuned.tensors}
            self.tuned = Altered(base, {**changes, norm: closed})

    def models(self) -> dict[str, TensorSource]:
        return {"aligned": self.aligned, "tuned": self.tuned, "unaligned": self.unaligned}


@pytest.fixture(scope="module")
def family(tiny: Callable[..., Path]) -> Family:
    return Family(tiny(tie=False, seed=5))


def derive(family: Family, method: IRR, **options: Any) -> dict[str, torch.Tensor]:
    given: dict[str, Any] = {"safety": SAFETY, "calibration": TASK, "device": "cpu", **options}
    return {e.name: e.value for e in method.derive(**family.models(), **given)}


def inputs(lm: LoadedModel, rows: list[Pair], module: torch.nn.Module) -> np.ndarray[Any, Any]:
    """2/N Σ x xᵀ of one layer, from whole forwards of single sequences."""
    caught: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _m, x: caught.append(x[0].detach()[0]))
    with torch.no_grad():
        for row in rows:
            ids = encode(lm.tokenizer, lm.template, row.prompt, row.response).ids
            lm.model(torch.tensor([ids]))
    hook.remove()
    x = torch.cat(caught).double().numpy()
    return 2 / len(rows) * x.T @ x


def importance(family: Family, names: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    lm = load(family.aligned)
    total = {name: 0.0 for name in names}
    parameters = [lm.model.get_parameter(name).requires_grad_() for name in names]
    for row in SAFETY:
        encoded = encode(lm.tokenizer, lm.template, row.prompt, row.response)
        table = lm.model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
        targets = torch.tensor(encoded.response_ids)
        chosen = table[encoded.prompt_length - 1 : -1][torch.arange(len(targets)), targets]
        for name, g in zip(names, torch.autograd.grad(chosen.sum(), parameters), strict=True):
            total[name] = total[name] + g.double().numpy() ** 2 / len(SAFETY)
    return total


def by_force(family: Family, method: IRR) -> dict[str, torch.Tensor]:
    """The whole method again: whole forwards, autograd, dense inverses, layer after layer."""
    names = scoped_names(family.tuned, method.scope)
    F = importance(family, names)
    lm = load(family.tuned)
    found: dict[str, torch.Tensor] = {}
    for layer in range(2):
        here = [name for name in names if f"layers.{layer}." in name]
        moments = {}
        for name in here if method.solver != "none" else []:
            module = lm.model.get_submodule(name.removesuffix(".weight"))
            moments[name] = (inputs(lm, TASK, module), inputs(lm, SAFETY, module))
        for name in here:
            A, W, U = (
                s.read(name).double().numpy()
                for s in (family.aligned, family.tuned, family.unaligned)
            )
            H_task, H_safe = moments.get(name, (None, None))
            delta = brute.irr(
                W - A,
                A - U,
                F[name],
                removed=method.removed,
                policy=method.zero_policy,
                block=method.block,
                solver=method.solver,
                H_task=H_task,
                H_safe=H_safe,
                balance=method.balance,
            )
            value = torch.from_numpy(A + delta).to(family.tuned.read(name).dtype)
            with torch.no_grad():
                lm.model.get_parameter(name).copy_(value)
            found[name] = value
    return found


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("scope", ["all", "qv"])
@pytest.mark.parametrize(
    ("solver", "removed"),
    [("balanced", 0.4), ("balanced", 0.0), ("sequential", 0.4), ("sequential", 1.0), ("none", 0.7)],
)
def test_the_whole_method_equals_brute_force(
    tiny: Callable[..., Path], dead: bool, scope: Any, solver: Any, removed: float
) -> None:
    family = Family(tiny(tie=False, seed=5), dead=dead)
    method = IRR(solver=solver, removed=removed, scope=scope, block=16)
    expected, ours = by_force(family, method), derive(family, method)
    assert sorted(ours) == sorted(expected)
    for name, value in expected.items():
        change = float((value - family.tuned.read(name)).abs().max())
        assert change > 1e-3
        # H is summed in float32, in two orders; test_recalibrate.py compares at equal H, to 1e-8
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-4 * change)
    if dead and solver != "none":
        query = "model.layers.1.self_attn.q_proj.weight"
        gone = [3, 17]
        assert torch.equal(ours[query][:, gone], family.aligned.read(query)[:, gone])


def test_edits_come_in_checkpoint_order_and_leave_the_rest(family: Family) -> None:
    names = list(derive(family, IRR(block=16)))
    order = list(family.tuned.tensors)
    assert names == sorted(names, key=order.index)
    assert len(names) == 14
    assert not any("norm" in n or "embed" in n or "lm_head" in n for n in names)


def test_order_holds_where_layers_are_stored_as_0_1_10_2() -> None:
    from suture.checkpoint import TensorEdit

    stored = ["layers.0.w", "layers.1.w", "layers.10.w", "layers.2.w"]
    numeric = [f"layers.{i}.w" for i in (0, 1, 2, 10)]
    edits = iter([TensorEdit(name, torch.zeros(1)) for name in numeric])
    assert [edit.name for edit in in_order(stored, edits)] == stored


@pytest.mark.parametrize(
    ("edited", "named"), [(["a", "c"], "b"), (["b"], "a"), (["a", "b", "c", "d"], "d")]
)
def test_no_edit_is_lost_on_the_way(edited: list[str], named: str) -> None:
    from suture.checkpoint import TensorEdit

    edits = iter([TensorEdit(name, torch.zeros(1)) for name in edited])
    with pytest.raises(SutureError) as caught:
        list(in_order(["a", "b", "c"], edits))
    assert (caught.value.code, caught.value.where) == ("E406", named)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("solver", ["sequential", "none"])
def test_nothing_removed_returns_the_tuned_model(
    tiny: Callable[..., Path], dtype: str, solver: Any
) -> None:
    """acceptance test 1; `balanced` moves weights even then."""
    family = Family(tiny(tie=False, seed=5, dtype=dtype))
    for name, value in derive(family, IRR(removed=0.0, solver=solver)).items():
        assert value.dtype == getattr(torch, dtype)
        assert torch.equal(value, family.tuned.read(name))


def test_everything_removed_without_recalibration_agrees_with_v(family: Family) -> None:
    """acceptance test 2."""
    for name, value in derive(family, IRR(removed=1.0, solver="none")).items():
        delta = value - family.aligned.read(name)
        v = family.aligned.read(name) - family.unaligned.read(name)
        alive = delta != 0
        assert alive.any()
        assert not alive.all()
        assert torch.equal(delta[alive].sign(), v[alive].sign())


@pytest.mark.parametrize("solver", ["sequential", "balanced"])
def test_removed_entries_of_the_first_layer_are_the_aligned_ones(
    family: Family, solver: Any
) -> None:
    """acceptance test 3, in one block, where the mask is that of the original delta."""
    ours = derive(family, IRR(removed=1.0, solver=solver))
    for name in (n for n in ours if "layers.0." in n):
        A, W, U = (s.read(name) for s in (family.aligned, family.tuned, family.unaligned))
        mask = (W - A).sign() != (A - U).sign()
        assert torch.equal(ours[name][mask], A[mask])
        assert not torch.equal(ours[name][~mask], W[~mask])


def test_recalibration_keeps_task_outputs_nearer(family: Family) -> None:
    """acceptance test 4, first layer: ‖(δ̂ − δ) X‖² of sequential ≤ of none, same entries unsafe."""
    options = {"removed": 1.0, "scope": "qv"}
    lm = load(family.tuned)
    name = "model.layers.0.self_attn.v_proj.weight"
    H = inputs(lm, TASK, lm.model.get_submodule(name.removesuffix(".weight")))
    errors = {}
    for solver in ("sequential", "none"):
        value = derive(family, IRR(solver=solver, **options))[name]  # type: ignore[arg-type]
        e = (value - family.tuned.read(name)).double().numpy()
        errors[solver] = float(np.trace(e @ H @ e.T))
    assert errors["sequential"] < 0.9 * errors["none"]


def test_same_inputs_same_bytes(family: Family) -> None:
    first, second = derive(family, OURS), derive(family, OURS)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_seed_matters_only_for_dropped_entries(family: Family) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    plain = {s: derive(family, IRR(solver="none", seed=s))[name] for s in (0, 1)}
    assert torch.equal(plain[0], plain[1])
    thinned = {s: derive(family, IRR(solver="none", drop=0.3, seed=s))[name] for s in (0, 1)}
    assert not torch.equal(thinned[0], thinned[1])
    kept = (thinned[0] != family.aligned.read(name)).float().mean()
    full = (plain[0] != family.aligned.read(name)).float().mean()
    assert float(kept / full) == pytest.approx(0.7, abs=0.05)


def test_precomputed_importance_and_refusals_change_nothing(family: Family) -> None:
    method = OURS
    lm = load(family.aligned, dtype="float32", device="cpu")
    refusals = method.aligned_refusals(lm, SAFETY)
    F = method.aligned_importance(lm, refusals)
    ours = derive(family, method, safety=(), refusals=refusals, importance=F)
    expected = derive(family, method)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_the_report_counts_what_happened(family: Family) -> None:
    report: list[MatrixReport] = []
    derive(family, IRR(solver="balanced", removed=0.4, block=16), report=report)
    assert len(report) == 14
    for row in report:
        A, W, U = (s.read(row.name) for s in (family.aligned, family.tuned, family.unaligned))
        assert row.interfering == int(((W - A).sign() != (A - U).sign()).sum())
        assert row.entries == W.numel()
        assert 0.4 * row.interfering <= row.removed <= 0.4 * row.interfering + 3  # per block
        assert row.damping == 0.01
        assert row.dead_columns == 0


def test_padding_counts_only_for_parity(family: Family) -> None:
    """acceptance test 8: with mask_padding off, H is the second moment over the padded rows."""
    lm = load(family.tuned)
    module = lm.model.model.layers[0].self_attn.q_proj
    method = IRR(mask_padding=False, calibration_tokens=48)
    stream = task_stream(method, lm, TASK)
    total = torch.zeros(32, 32)
    stream.look({"q": module}, lambda _n, x: total.add_(x.T @ x))
    rows = [encode(lm.tokenizer, lm.template, r.prompt, r.response).ids for r in TASK]
    caught: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _m, x: caught.append(x[0].detach()))
    ids = torch.tensor([[lm.pad] * (48 - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (48 - len(r)) + [1] * len(r) for r in rows])
    with torch.no_grad():
        lm.model(ids, attention_mask=mask)
    hook.remove()
    x = caught[0].flatten(0, 1)
    torch.testing.assert_close(total, x.T @ x, rtol=1e-4, atol=1e-3)
    assert len(x) == 48 * len(TASK)


def test_padding_for_parity_stops_at_the_context(family: Family) -> None:
    lm = load(family.tuned)
    lm.model.config.max_position_embeddings = 40
    stream = task_stream(IRR(mask_padding=False), lm, TASK)
    seen: list[int] = []
    layer = lm.model.model.layers[0].self_attn.q_proj
    stream.look({"q": layer}, lambda _n, x: seen.append(len(x)))
    assert sum(seen) == 40 * len(TASK)


def test_safety_positions_choose_the_tokens_of_the_safety_side(family: Family) -> None:
    everything = derive(family, IRR(solver="balanced", removed=0.4, safety_positions="all"))
    response = derive(family, IRR(solver="balanced", removed=0.4, safety_positions="response"))
    assert any(not torch.equal(everything[n], response[n]) for n in everything)


def test_missing_data_is_refused_before_anything_is_loaded(family: Family) -> None:
    models = family.models()
    with pytest.raises(SutureError) as caught:
        OURS.derive(**models, safety=SAFETY)
    assert caught.value.code == "E408"
    with pytest.raises(SutureError) as caught:
        OURS.derive(**models, calibration=TASK)
    assert caught.value.code == "E408"
    with pytest.raises(SutureError) as caught:
        OURS.derive(**models, calibration=TASK, refusals=SAFETY, importance={})
    assert caught.value.code == "E409"


def test_data_that_is_not_needed_is_not_asked_for(family: Family) -> None:
    assert derive(family, IRR(removed=1.0, solver="none"), safety=(), calibration=())
    assert derive(family, IRR(removed=1.0, solver="sequential"), safety=())


def test_another_shape_is_refused(family: Family, tiny: Callable[..., Path]) -> None:
    other = Checkpoint.open(tiny(hidden=64))
    with pytest.raises(SutureError) as caught:
        OURS.derive(**{**family.models(), "unaligned": other}, safety=SAFETY, calibration=TASK)
    assert caught.value.code.startswith("E1")


def test_values_are_checked_by_the_config() -> None:
    for values in ({"removed": 1.1}, {"block": 0}, {"solver": "jointly"}, {"balance": -1}):
        with pytest.raises(SutureError) as caught:
            IRR.load(values)
        assert caught.value.code == "E702"
    with pytest.raises(SutureError) as caught:
        IRR.load({"remove": 0.5})
    assert caught.value.code == "E701"
    assert "removed" in str(caught.value)
