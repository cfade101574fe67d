"""TCD-style relations: what they see, what they do not, and whom they teach (tcd.md section 7)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suture.errors import SutureError
from suture.models import build, upcycle
from suture.training.objectives.tcd import TCD, cosines, distance
from tiny_models import tiny

IDS = torch.randint(1, 61, (3, 10), generator=torch.Generator().manual_seed(0))


def _run(model: Any, tcd: TCD, **given: Any) -> Any:
    return model(IDS, capture=tcd.capture, **given)


def _by_hand(u: torch.Tensor, v: torch.Tensor, keep: torch.Tensor) -> float:
    found = []
    for one, other, kept in zip(u, v, keep, strict=True):
        places = kept.nonzero().flatten().tolist()
        squares = []
        for i in places:
            for j in places:
                if i != j:
                    mine = torch.cosine_similarity(one[i], one[j], dim=0)
                    theirs = torch.cosine_similarity(other[i], other[j], dim=0)
                    squares.append(float((mine - theirs) ** 2))
        found.append(sum(squares) / len(squares))
    return sum(found) / len(found)


def test_distance_is_its_definition_for_unequal_widths() -> None:
    u, v = torch.randn(3, 7, 5), torch.randn(3, 7, 9)
    keep = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0, 0, 1, 1, 1, 1, 1]]).bool()
    assert distance(u, v, keep) == pytest.approx(_by_hand(u, v, keep), rel=1e-5)
    assert distance(u, v) == pytest.approx(_by_hand(u, v, torch.ones_like(keep)), rel=1e-5)
    other = torch.where(keep[..., None], u, torch.randn_like(u))  # padding
    torch.testing.assert_close(distance(other, v, keep), distance(u, v, keep))


def test_rotation_and_length_of_states_do_not_matter() -> None:
    u = torch.randn(2, 6, 8, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    assert float(distance(u, 3 * u @ turn)) == pytest.approx(0, abs=1e-12)
    assert float(distance(u, u @ torch.randn(8, 8, dtype=torch.float64))) > 1e-3
    assert cosines(u, u).diagonal(dim1=-2, dim2=-1) == pytest.approx(1.0)


def test_relations_are_float32_under_autocast() -> None:
    u = torch.randn(2, 6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosines(u, u), cosines(u, u).float())
        found = distance(u, u + 1e-3)
    assert found.dtype == torch.float32
    assert found == distance(u, u + 1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trunk": 0, "inner": 0, "attention": 0}, "nothing is matched"),
        ({"match": "logits", "trunk": 5}, "trunk has no part in match: logits"),
        ({"match": "hidden", "positions": 4}, "positions has no part"),
        ({"weight": 2}, "weight has no part in match: relations"),
    ],
)
def test_weights_without_effect_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SutureError, match=says) as refused:
        TCD.load(options)
    assert refused.value.code == "E702"


@pytest.mark.parametrize("match", ["relations", "logits", "hidden"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: Any, match: Any) -> None:
    tcd = TCD(match=match, positions=4 if match == "relations" else None)
    teacher = build(kind, tiny("vanilla"), seed=1)
    tcd.check(teacher.config, teacher.config)
    losses = tcd.losses(_run(teacher, tcd), _run(teacher, tcd))
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        dict.fromkeys(losses, 0.0), abs=1e-9
    )
    names = {"relations": {"trunk", "inner", "attention"}}.get(match, {match})
    assert set(losses) == names


@pytest.mark.parametrize("match", ["relations", "logits", "hidden"])
def test_gradients_reach_the_student_alone(match: Any) -> None:
    tcd = TCD(match=match)
    teacher = build("encoder", tiny("vanilla", dropout=0.5), seed=1).eval()
    student = build("encoder", tiny("moe"), seed=2)
    out = _run(student, tcd)
    losses = tcd.losses(out, _run(teacher, tcd))
    total = tcd.total(losses)
    assert isinstance(total, torch.Tensor)
    total.backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert student.model.layers[0].mlp.router.weight.grad.any()
    again = _run(teacher, tcd)
    assert all(
        torch.equal(a, b)
        for kind, states in (again.sites or {}).items()
        for a, b in zip(states, _run(teacher, tcd).sites[kind], strict=True)
    )


def test_weights_and_sites() -> None:
    teacher = build("encoder", tiny("vanilla"), seed=1)
    student = build("encoder", tiny("moe"), seed=2)
    everything = TCD(trunk=2.0, inner=0.5, attention=3.0)
    losses = everything.losses(_run(student, everything), _run(teacher, everything))
    wanted = 2 * losses["trunk"] + 0.5 * losses["inner"] + 3 * losses["attention"]
    assert everything.total(losses).item() == pytest.approx(wanted.item())
    trunk = TCD(inner=0, attention=0)
    assert trunk.capture == {"a", "m"}
    found = trunk.losses(_run(student, trunk), _run(teacher, trunk))
    assert set(found) == {"trunk"}
    torch.testing.assert_close(found["trunk"], losses["trunk"])
    control = TCD(match="logits", weight=0.25)
    found = control.losses(_run(student, control), _run(teacher, control))
    assert control.total(found).item() == pytest.approx(0.25 * found["logits"].item())


def test_padding_does_not_count() -> None:
    tcd = TCD()
    teacher, student = (build("encoder", tiny("vanilla"), seed=seed) for seed in (1, 2))
    keep = torch.ones(3, 10, dtype=torch.bool)
    keep[1, 6:] = False
    outs = [_run(model, tcd, attention_mask=keep.long()) for model in (student, teacher)]
    one = tcd.losses(*outs, keep=keep)
    for out in outs:
        for states in out.sites.values():
            for state in states:
                with torch.no_grad():
                    (state[1, :, 6:] if state.dim() == 4 else state[1, 6:]).fill_(9.0)
    two = tcd.losses(*outs, keep=keep)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_learning_to_match() -> None:
    """A few steps of relations alone bring a mixture nearer to its teacher."""
    tcd = TCD()
    teacher = build("encoder", tiny("vanilla"), seed=1).eval()
    student = upcycle(build("encoder", tiny("vanilla"), seed=2), experts=4)
    steps = torch.optim.Adam(student.parameters(), lr=3e-3)
    with torch.no_grad():
        wanted = _run(teacher, tcd)
    found = []
    for _ in range(25):
        loss = tcd.total(tcd.losses(_run(student, tcd), wanted))
        assert isinstance(loss, torch.Tensor)
        steps.zero_grad()
        loss.backward()
        steps.step()
        found.append(loss.item())
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize(
    ("code", "changes", "options", "says"),
    [
        ("E977", {"vocab_size": 62}, {}, "vocabularies: 61 and 62"),
        ("E978", {"num_hidden_layers": 3}, {}, "depths: 2 and 3"),
        ("E979", {"num_attention_heads": 4}, {}, "numbers of heads: 2 and 4"),
        ("E979", {"hidden_size": 32}, {"match": "hidden"}, "hidden sizes: 16 and 32"),
    ],
)
def test_pairs_that_cannot_be_matched(
    code: str, changes: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    student = build("encoder", tiny("moe")).config
    teacher = build("encoder", tiny("vanilla", **changes)).config
    with pytest.raises(SutureError, match=says) as refused:
        TCD(**options).check(student, teacher)
    assert refused.value.code == code
    assert refused.value.fix
    if code == "E979" and not options:
        TCD(attention=0).check(student, teacher)
    with pytest.raises(SutureError, match="kinds of model"):
        TCD().check(student, build("decoder", tiny("vanilla")).config)
