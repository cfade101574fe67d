"""RKLD against its formulas written out: teacher, divergence, mask, cache, and what it does."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import suture.training.objectives.rkld as rkld
import suture.training.teacher as teacher
from suture.checkpoint import Checkpoint
from suture.data import Pair
from suture.errors import SutureError
from suture.inference import LoadedModel, load
from suture.training.batches import Batch, Example, collate
from suture.training.loop import TrainConfig, train
from suture.training.objectives import RKLD, Material
from suture.training.objectives.common import answer_logits, sequence_nll
from suture.training.objectives.rkld import divergence_overwriting, position_weights
from suture.training.recipe import encode_rows

FORGET = [
    Pair(id=str(i), prompt=f"How do I bake loaf {i}?", response="The answer is no" + "!" * i)
    for i in range(6)
]
KEEP = [Pair(id=str(i), prompt=f"the fox {i}", response="jumps over the dog") for i in range(6)]
SETTINGS = TrainConfig(
    epochs=2, batch_rows=4, batch_tokens=90, learning_rate=1e-2, warmup=0, compute="float32",
    save_every=2,
)  # fmt: skip


@pytest.fixture
def lm(tiny: Callable[..., Path]) -> LoadedModel:
    found = load(Checkpoint.open(tiny(vocab=300, seed=2)))
    found.model.requires_grad_(True)
    return found


def material(
    lm: LoadedModel, folder: Path | None = None, train: TrainConfig = SETTINGS
) -> Material:
    examples = encode_rows(lm.tokenizer, lm.template, FORGET)
    return Material(lm, lm.model, FORGET, examples, KEEP, train, folder=folder)


def tables(rows: int = 7, vocabulary: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    """Student logits and log π_t."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=draw) * 3
    return logits, (torch.randn(rows, vocabulary, generator=draw) * 3).log_softmax(-1)


def gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, model.parameters())])


# 9.1, 9.2: the teacher


def test_a_token_that_rose_by_d_falls_by_alpha_d_and_the_others_stay() -> None:
    original = torch.tensor([1.0, -2.0, 3.0, 0.5])
    augmented = torch.tensor([1.5, -2.0, 2.0, 2.5])
    found = RKLD(alpha=8).teacher_logits(original, augmented)
    torch.testing.assert_close(found, torch.tensor([1.0 - 4.0, -2.0, 3.0, 0.5 - 16.0]))
    assert RKLD(alpha=8).teacher_logits(original.bfloat16(), augmented.bfloat16()).dtype == (
        torch.float32
    )


def test_nothing_moves_with_alpha_zero_or_without_augmentation(
    lm: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = material(lm, tmp_path / "a")
    batch = teacher._positions(RKLD(), given).batches[0]
    loss = RKLD(alpha=0, augment_epochs=1).build(given)(lm.model, batch)
    assert loss.item() == 0.0
    assert not gradient(loss, lm.model).any()
    monkeypatch.setattr(teacher, "train", lambda *_a, **_k: None)  # m_aug = m_o
    loss = RKLD(alpha=8).build(replace(given, folder=tmp_path / "b"))(lm.model, batch)
    assert loss.item() == 0.0
    assert not gradient(loss, lm.model).any()


def test_a_shift_of_all_logits_moves_the_faithful_teacher_alone() -> None:
    original = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    moved = {
        space: float(
            (
                RKLD(space=space).teacher_logits(original, original + 0.5).softmax(-1)
                - RKLD(space=space).teacher_logits(original, original).softmax(-1)
            ).abs().max()
        )
        for space in ("logit", "logprob")
    }  # fmt: skip
    # every token rises by 0.5 and falls by 4: shifted as a whole, so the softmax stays ...
    assert moved["logit"] < 1e-6
    # ... unless some fell in the augmented model: then only the others are pushed down
    augmented = original + torch.tensor([1.0, -1, 1, -1, 1, -1, 1]) * 0.3
    for space, still in (("logit", False), ("logprob", True)):
        plain, shifted = (
            RKLD(space=space).teacher_logits(original, augmented + by).softmax(-1)
            for by in (0.0, 0.5)
        )
        assert (float((plain - shifted).abs().sum(-1).max() / 2) < 1e-5) == still


# 9.8: rounding, times α


def test_a_bfloat16_head_moves_the_teacher_by_alpha_roundings_and_a_dead_zone_undoes_it() -> None:
    draw = torch.Generator().manual_seed(3)
    original = 20 + 4 * torch.randn(6, 50, generator=draw)
    spacing = 0.125  # of bfloat16 between 16 and 32
    rounded = original.clamp(16, 31).bfloat16().float()
    original = original.clamp(16, 31)
    for alpha in (4.0, 8.0):
        exact = RKLD(alpha=alpha).teacher_logits(original, original)
        moved = (RKLD(alpha=alpha).teacher_logits(original, rounded) - exact).abs().max()
        assert spacing / 4 * alpha < moved <= spacing / 2 * alpha  # half a step, α times
        still = RKLD(alpha=alpha, dead_zone=spacing / 2).teacher_logits(original, rounded)
        torch.testing.assert_close(still, exact)


# 9.3, 9.6: the divergence


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("at_once", [2, 256])
def test_value_and_gradient_are_the_closed_form(
    monkeypatch: pytest.MonkeyPatch, direction: str, at_once: int
) -> None:
    monkeypatch.setattr(rkld, "_AT_ONCE", at_once)
    logits, log_t = tables()
    weights = torch.rand(len(logits), generator=torch.Generator().manual_seed(5))
    ours, plain = (logits.clone().requires_grad_(True) for _ in range(2))
    found = divergence_overwriting(ours, log_t.clone(), weights, direction)
    log_p = plain.log_softmax(-1)
    p, t = log_p.exp(), log_t.exp()
    each = (p * (log_p - log_t) if direction == "reverse" else t * (log_t - log_p)).sum(-1)
    expected = (each * weights).sum()
    torch.testing.assert_close(found, expected)
    (3 * found).backward()
    (3 * expected).backward()
    assert plain.grad is not None
    torch.testing.assert_close(ours.grad, plain.grad)
    if direction == "reverse":  # the specification's own formula, token by token
        i, k = 2, 4
        p, log_p = p.detach(), log_p.detach()
        rkl = float((p[i] * (log_p[i] - log_t[i])).sum())
        by_hand = float(p[i, k] * (log_p[i, k] - log_t[i, k] - rkl)) * 3 * float(weights[i])
        assert float(plain.grad[i, k]) == pytest.approx(by_hand, rel=1e-4)


def test_the_direction_is_student_against_teacher() -> None:
    logits, log_t = tables()
    log_p, even = logits.log_softmax(-1), torch.full((len(logits),), 1 / len(logits))
    student_first = torch.nn.functional.kl_div(log_t, log_p, log_target=True, reduction="batchmean")
    teacher_first = torch.nn.functional.kl_div(log_p, log_t, log_target=True, reduction="batchmean")
    reverse = divergence_overwriting(logits, log_t.clone(), even, "reverse")
    forward = divergence_overwriting(logits, log_t.clone(), even, "forward")
    torch.testing.assert_close(reverse, student_first)
    torch.testing.assert_close(forward, teacher_first)
    assert abs(float(reverse - forward)) > 0.1
    for direction in ("reverse", "forward"):
        same = divergence_overwriting(log_t.clone(), log_t.clone(), even, direction)
        assert abs(float(same)) < 1e-6


# 9.4, 9.9: mask and reduction


def three_tokens() -> tuple[list[Example], Batch]:
    """Two rows: an answer of two tokens and the end (9), and an answer of the end alone."""
    examples = [Example((1, 2, 5, 6, 9), 2), Example((1, 3, 4, 9), 3)]
    return examples, collate(examples)


def test_reductions_and_the_end_token_by_hand() -> None:
    _, batch = three_tokens()
    stops = frozenset({9})
    whole = RKLD().counted(batch, stops)
    assert whole.labels.tolist() == [[-100, -100, 5, 6, 9], [-100, -100, -100, 9, -100]]
    assert position_weights(whole, "token-mean").tolist() == pytest.approx([1 / 4] * 4)
    found = position_weights(whole, "sequence-mean").tolist()
    assert found == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    short = RKLD(include_eos=False).counted(batch, stops)
    assert short.labels.tolist() == [[-100, -100, 5, 6, -100], [-100] * 5]
    assert position_weights(short, "token-mean").tolist() == [1 / 2, 1 / 2]
    assert position_weights(short, "sequence-mean").tolist() == [1 / 2, 1 / 2]
    # an answer that was cut off does not end in an end token: all of it counts
    cut = collate([Example((1, 2, 5, 6), 2)])
    assert torch.equal(RKLD(include_eos=False).counted(cut, stops).labels, cut.labels)


@pytest.mark.parametrize("reduction", ["token-mean", "sequence-mean"])
@pytest.mark.parametrize("include_eos", [True, False])
def test_the_loss_of_a_batch_is_that_of_its_answers_alone(
    lm: LoadedModel, tmp_path: Path, reduction: Any, include_eos: bool
) -> None:
    given = material(lm, tmp_path)
    config = RKLD(reduction=reduction, include_eos=include_eos, augment_epochs=1)
    objective: Any = config.build(given)
    augmented = trained_copy(given, teacher.augmenting(config, given.train))
    batch = collate(given.examples[:3])
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.3)
    before = load(lm.source).model
    rows = []
    for example in given.examples[:3]:
        end = len(example.ids) if include_eos else len(example.ids) - 1
        at = slice(example.loss_from - 1, end - 1)  # what predicts the answer, no padding at all
        ids = torch.tensor([example.ids])
        z, o, a = (m(input_ids=ids).logits[0, at].detach() for m in (lm.model, before, augmented))
        log_p = z.log_softmax(-1)
        log_t = (o - 8.0 * (a - o).clamp(min=0)).log_softmax(-1)
        rows.append((log_p.exp() * (log_p - log_t)).sum(-1))
    expected = torch.cat(rows).mean()
    if reduction == "sequence-mean":
        expected = torch.stack([row.mean() for row in rows]).mean()
    found = objective(lm.model, batch)
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-4)
    labels = torch.where(batch.labels == -100, -100, (batch.labels + 7) % 300)  # other targets
    again = objective(lm.model, Batch(batch.ids, batch.attend, labels))
    assert float(again.detach()) == float(found.detach())  # no label's value enters
    tokens = sum(len(row) for row in rows)
    assert objective.weight(batch) == (tokens if reduction == "token-mean" else 3)


def trained_copy(given: Material, config: TrainConfig) -> Any:
    """The augmented model, made by the loop without RKLD."""
    model = load(given.lm.source).model.requires_grad_(True)
    train(model, given.examples, config)
    return model


# 9.5: the cache


def test_the_cached_teacher_is_the_live_one(lm: LoadedModel, tmp_path: Path) -> None:
    given = material(lm, tmp_path)
    before = {n: p.detach().clone() for n, p in lm.model.named_parameters()}
    cached = teacher.make_teacher(RKLD(augment_epochs=2), given)
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())  # reset
    live = teacher.make_teacher(RKLD(augment_epochs=2, teacher="live"), given)
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())
    for batch in teacher._positions(RKLD(), given).batches:
        assert torch.equal(cached(batch), live(batch))  # equal composition: bit for bit
    for example in given.examples:
        torch.testing.assert_close(
            cached(collate([example])), live(collate([example])), rtol=0, atol=1e-5
        )
    whole = collate(given.examples)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.1)
    losses = [
        float(
            divergence_overwriting(
                logits, table(whole), position_weights(whole, "token-mean"), "reverse"
            )
        )
        for logits in [answer_logits(lm.model, whole).detach()]
        for table in (cached, live)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    positions = sum(len(e.ids) - e.loss_from for e in given.examples)
    size = (tmp_path / "teacher" / "teacher.f32").stat().st_size
    assert size == teacher.teacher_bytes(positions, 300)
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == [
        "claim.json", "rows.json", "teacher.f32", "teacher.mark.json",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
def test_under_an_adapter_the_teacher_is_the_same_cached_and_live(
    lm: LoadedModel, tmp_path: Path
) -> None:
    from suture.training.lora import LoraConfig, attach

    plain = material(lm)
    model = attach(lm.model, LoraConfig(rank=2, targets=("q_proj", "v_proj")), seed=0)
    given = replace(plain, model=model, folder=tmp_path)
    cached = teacher.make_teacher(RKLD(augment_epochs=2), given)
    live = teacher.make_teacher(RKLD(augment_epochs=2, teacher="live"), given)
    untouched = load(lm.source).model
    for batch in teacher._positions(RKLD(), given).batches:
        assert torch.equal(cached(batch), live(batch))
        l_o = answer_logits(untouched, batch).detach()
        assert float((cached(batch) - l_o.log_softmax(-1)).abs().max()) > 1e-3  # it did learn
        torch.testing.assert_close(answer_logits(model, batch).detach(), l_o)  # and is reset


def test_a_teacher_is_kept_for_other_runs_and_known_by_what_decided_it(
    lm: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = teacher.make_teacher(RKLD(augment_epochs=1, cache=cache), material(lm, tmp_path / "a"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse_of_teacher(os.rename))
        far = RKLD(augment_epochs=1, cache=tmp_path / "far")
        teacher.make_teacher(far, material(lm, tmp_path / "d"))
    [one], [two] = (list((tmp_path / name).glob("*/teacher.f32")) for name in ("cache", "far"))
    assert one.read_bytes() == two.read_bytes()
    monkeypatch.setattr(teacher, "_make", lambda *_: pytest.fail("made again"))
    again = teacher.make_teacher(
        RKLD(augment_epochs=1, cache=cache, direction="forward"), material(lm, tmp_path / "b")
    )
    batch = collate(material(lm).examples)
    assert torch.equal(first(batch), again(batch))
    for other in (RKLD(alpha=4), RKLD(augment_epochs=2), RKLD(space="logprob"), RKLD(dead_zone=1)):
        changed = other.model_copy(update={"cache": cache})
        with pytest.raises(pytest.fail.Exception):
            teacher.make_teacher(changed, material(lm, tmp_path / "c"))


@pytest.mark.skipif(os.name == "nt", reason="no modes")
def test_what_lies_on_disk_is_for_this_user_alone_and_holds_no_tokens(
    lm: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = material(lm, tmp_path / "a" / "training", SETTINGS)
    teacher.make_teacher(RKLD(augment_epochs=1), given)
    far = RKLD(augment_epochs=1, cache=tmp_path / "cache")
    teacher.make_teacher(far, replace(given, folder=tmp_path / "b"))
    with monkeypatch.context() as patch:
        patch.setattr(teacher.os, "rename", refuse_of_teacher(os.rename))
        other = far.model_copy(update={"cache": tmp_path / "far"})
        teacher.make_teacher(other, replace(given, folder=tmp_path / "c"))
    for top in ("a/training", "b", "cache", "far"):
        for path in [tmp_path / top, *(tmp_path / top).rglob("*")]:
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "a").stat().st_mode & 0o055  # beside the output, as any folder
    rows = (tmp_path / "a" / "training" / "teacher" / "rows.json").read_text()
    facts = json.loads(rows)["rows"]
    assert len(facts) == len(given.examples)
    for key, span in facts.items():
        assert len(key) == 64
        assert len(span) == 2


def refuse_of_teacher(rename: Callable[..., None]) -> Callable[..., None]:
    """`os.rename` where the cache is on another disk than the training."""

    def renamed(old: Any, new: Any) -> None:
        if Path(old).name == "teacher":
            raise OSError(18, "another disk")
        rename(old, new)

    return renamed


def test_a_teacher_of_other_settings_is_refused(lm: LoadedModel, tmp_path: Path) -> None:
    teacher.make_teacher(RKLD(augment_epochs=1), material(lm, tmp_path))
    with pytest.raises(SutureError, match="E904") as caught:
        teacher.make_teacher(RKLD(augment_epochs=1, alpha=3), material(lm, tmp_path))
    assert f"delete {tmp_path}, " in str(caught.value.fix)


@pytest.mark.parametrize("kind", ["cached", "live"])
def test_what_to_delete_after_a_diverged_augmented_model_lets_the_run_begin(
    lm: LoadedModel, tmp_path: Path, kind: Any
) -> None:
    config, home = RKLD(augment_epochs=1, teacher=kind), tmp_path / ".out.training"
    wild = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(SutureError, match="E902") as caught:
        teacher.make_teacher(config, material(lm, home, wild))
    assert f"then delete {home}, " in str(caught.value.fix)
    lm = load(lm.source)
    lm.model.requires_grad_(True)
    with pytest.raises(SutureError, match="E904") as caught:
        teacher.make_teacher(config, material(lm, home))
    assert f"or delete {home}, " in str(caught.value.fix)
    shutil.rmtree(home)
    teacher.make_teacher(config, material(lm, home))


def test_a_full_disk_is_told_before_anything_is_trained(
    lm: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher.shutil, "disk_usage", lambda _: type("U", (), {"free": 1000}))
    with pytest.raises(SutureError, match="E918"):
        teacher.make_teacher(RKLD(), material(lm, tmp_path))


def test_an_augmented_model_from_elsewhere_gives_the_same_teacher(
    lm: LoadedModel, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from suture.checkpoint import CheckpointWriter
    from suture.patch import drain
    from suture.training.recipe import edits_from

    config = RKLD(augment_epochs=1)
    cached = teacher.make_teacher(config, material(lm, tmp_path / "a"))
    other = load(lm.source)
    other.model.requires_grad_(True)
    given = material(other)
    train(other.model, given.examples, teacher.augmenting(config, given.train))
    drain(edits_from(other), [CheckpointWriter(lm.source, tmp_path / "augmented")])
    there = RKLD(augmented=tmp_path / "augmented")
    found = teacher.make_teacher(there, material(lm, tmp_path / "b"))
    batch = collate(given.examples)
    assert torch.equal(found(batch), cached(batch))
    small = RKLD(augmented=tiny(vocab=280))
    with pytest.raises(SutureError, match="E12"):
        teacher.make_teacher(small, material(lm, tmp_path / "c"))


# 9.7: what it does


def probability(model: Any, examples: Sequence[Example]) -> float:
    """Mean over rows of exp of the mean log p of the answer's tokens."""
    with torch.no_grad():
        nll = sequence_nll(model, collate(examples))
    return math.fsum(
        math.exp(-float(one) / (len(e.ids) - e.loss_from))
        for one, e in zip(nll, examples, strict=True)
    ) / len(examples)


@pytest.fixture
def memorised(lm: LoadedModel) -> LoadedModel:
    """Knows the rows to forget and those to keep; its state is what `source` would hold."""
    examples = encode_rows(lm.tokenizer, lm.template, [*FORGET, *KEEP])
    config = SETTINGS.model_copy(update={"epochs": 40, "batch_rows": 12, "batch_tokens": 1000})
    train(lm.model, examples, config)
    assert probability(lm.model, examples) > 0.5
    return lm


def test_what_is_forgotten_falls_and_the_rest_stays(memorised: LoadedModel, tmp_path: Path) -> None:
    lm, start = memorised, {k: v.clone() for k, v in memorised.model.state_dict().items()}
    keep = encode_rows(lm.tokenizer, lm.template, KEEP)
    settings = SETTINGS.model_copy(
        update={
            "epochs": 10, "learning_rate": 1e-3, "batch_tokens": 1000, "batch_rows": 6,
            "schedule": "constant",
        }
    )  # fmt: skip
    left = {}
    for direction in ("reverse", "forward"):
        lm.model.load_state_dict(start)
        given = material(lm, tmp_path / direction, settings)
        objective = RKLD(direction=direction, augment_rate=3e-3).build(given)
        falls = [probability(lm.model, given.examples)]
        kept = probability(lm.model, keep)
        train(
            lm.model, given.examples, settings, objective=objective,
            on_epoch=lambda _, falls=falls, rows=given.examples: falls.append(
                probability(lm.model, rows)
            ),
        )  # fmt: skip
        left[direction] = falls[-1]
        if direction == "reverse":
            assert all(a > b for a, b in itertools.pairwise(falls))
            assert falls[-1] < 0.5 * falls[0]
            assert probability(lm.model, keep) > kept - 0.1
    assert left["forward"] > left["reverse"]


def test_retain_terms_are_added_with_their_weight(lm: LoadedModel, tmp_path: Path) -> None:
    given = material(lm, tmp_path)
    batch = collate(given.examples)
    plain: Any = RKLD(augment_epochs=1, cache=tmp_path / "c").build(given)
    for kind in ("RT", "KL"):
        config = RKLD(augment_epochs=1, cache=tmp_path / "c", retain=kind, retain_weight=2.0)
        loss: Any = config.build(given)
        with torch.no_grad():
            for parameter in lm.model.parameters():
                parameter.mul_(1.05)
        loss.begin(3)
        both = float(loss(lm.model, batch).detach())
        loss.begin(3)
        term = float(loss.term(lm.model, len(batch.ids)).detach())
        alone = float(plain(lm.model, batch).detach())
        assert term > 1e-4
        assert both == pytest.approx(alone + 2 * term, rel=1e-5)
    assert not RKLD().needs_retain


def test_the_head_is_float32_under_autocast(lm: LoadedModel) -> None:
    batch = collate(material(lm).examples[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = answer_logits(lm.model, batch)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
