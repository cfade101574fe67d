"""Unlearning objectives against losses written out row by row: value, direction, mask, limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import suture.training.loop as loop
from helpers import tiny_llama, write_jsonl
from suture.checkpoint import Checkpoint
from suture.data import Pair
from suture.data.records import Passage
from suture.errors import SutureError
from suture.inference import LoadedModel, load
from suture.training.batches import Batch, Example, collate
from suture.training.loop import TrainConfig, train
from suture.training.objectives import (
    CEU,
    DPO,
    IDK,
    NPO,
    RMU,
    UNDIAL,
    WGA,
    GradientAscent,
    GradientDifference,
    KLMinimisation,
    Material,
    SatImp,
    SimNPO,
)
from suture.training.objectives.refusals import published
from suture.training.objectives.retain import RetainRows, RetainTerm, Unlearning
from suture.training.objectives.rmu import direction
from suture.training.recipe import TrainRecipe, encode_rows, run_recipe
from suture.training.texts import pieces

FORGET = [
    Pair(id=str(i), prompt=f"Who is the fox {i}?", response="The lazy dog" + ", no" * i)
    for i in range(5)
]
RETAIN = [
    Pair(id=str(i), prompt=f"bake a loaf {i}", response="Sure: " + "yes " * (i + 1))
    for i in range(4)
]
REFUSALS = ("I cannot help with that.", "no")
SETTINGS = TrainConfig(steps=1, batch_tokens=4096, learning_rate=1e-3, warmup=0, compute="float32")
ALL: list[Any] = [
    GradientAscent(cap=None),
    GradientDifference(gamma=0.7, alpha=1.3),
    KLMinimisation(gamma=0.7, alpha=1.3),
    IDK(refusals=REFUSALS),
    DPO(refusals=REFUSALS, beta=0.3),
    NPO(beta=0.3),
    SimNPO(beta=0.5, delta=0.5),
    RMU(layer=0, alpha=2.0, gamma=0.5, steering=3.0),
    UNDIAL(beta=2.0),
    CEU(),
    WGA(beta=0.5),
    SatImp(beta1=0.5, beta2=2.0),
]
NAMES = [one.name for one in ALL]


@pytest.fixture
def lm(tiny: Callable[..., Path]) -> LoadedModel:
    found = load(Checkpoint.open(tiny(vocab=300, seed=2)))
    found.model.requires_grad_(True)
    return found


def material(lm: LoadedModel, model: Any = None, retain: Any = RETAIN) -> Material:
    examples = encode_rows(lm.tokenizer, lm.template, FORGET)
    return Material(lm, model or lm.model, FORGET, examples, retain, SETTINGS)


def shaken(lm: LoadedModel, scale: float = 0.3) -> None:
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=noise) * scale * weight.std())


def rows_of(batch: Batch) -> list[Example]:
    """The batch's rows, one by one and without padding."""
    found = []
    for ids, attend, labels in zip(batch.ids, batch.attend, batch.labels, strict=True):
        length = int(attend.sum())
        start = int((labels != -100).nonzero()[0])
        found.append(Example(tuple(ids[:length].tolist()), start))
    return found


def table(model: Any, example: Example) -> tuple[torch.Tensor, list[int]]:
    """Logits that predict each answer token, in float64, and the tokens; the row alone."""
    logits = model(input_ids=torch.tensor([example.ids])).logits[0].double()
    at = range(example.loss_from, len(example.ids))
    return torch.stack([logits[i - 1] for i in at]), [example.ids[i] for i in at]


def nll(model: Any, example: Example) -> torch.Tensor:
    logits, tokens = table(model, example)
    return torch.stack(
        [row.logsumexp(0) - row[token] for row, token in zip(logits, tokens, strict=True)]
    )


def states(model: Any, example: Example, layer: int) -> torch.Tensor:
    out = model(input_ids=torch.tensor([example.ids]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0, example.loss_from :].double()


def expected(config: Any, model: Any, before: Any, batch: Batch, kept: Batch, refused: Any) -> Any:
    """The loss as its formula says, row by row."""
    rows, others = rows_of(batch), rows_of(kept)
    tokens = torch.cat([nll(model, row) for row in rows])
    sums = torch.stack([nll(model, row).sum() for row in rows])
    gained = torch.stack([nll(before, row).sum() for row in rows]) - sums
    sigmoid = torch.sigmoid
    match config:
        case GradientAscent():
            return -tokens.mean()
        case GradientDifference():
            right = torch.cat([nll(model, row) for row in others]).mean()
            return -config.gamma * tokens.mean() + config.alpha * right
        case KLMinimisation():
            pieces = []
            for row in others:
                p, q = table(before, row)[0].softmax(-1), table(model, row)[0].softmax(-1)
                pieces.append((p * (p / q).log()).sum(-1))
            return -config.gamma * tokens.mean() + config.alpha * torch.cat(pieces).mean()
        case IDK():
            return torch.cat([nll(model, refused[row.ids]) for row in rows]).mean()
        case DPO():
            wins = torch.stack(
                [
                    nll(before, refused[row.ids]).sum() - nll(model, refused[row.ids]).sum()
                    for row in rows
                ]
            )
            return -2 / config.beta * sigmoid(config.beta * (wins - gained)).log().mean()
        case NPO():
            return -2 / config.beta * sigmoid(-config.beta * gained).log().mean()
        case SimNPO():
            each = torch.stack([nll(model, row).mean() for row in rows])
            inner = config.beta * each - config.beta * config.delta
            return -config.gamma * 2 / config.beta * sigmoid(inner).log().mean()
        case RMU():
            u = direction(0, 32).double()
            steer = torch.cat([states(model, row, config.layer) for row in rows])
            held = [
                (states(model, row, config.layer) - states(before, row, config.layer)) ** 2
                for row in others
            ]
            first = ((steer - config.steering * u) ** 2).mean()
            return config.gamma * first + config.alpha * torch.cat(held).mean()
        case UNDIAL():
            pieces = []
            for row in rows:
                logits, labels = table(before, row)
                for at, label in enumerate(labels):
                    logits[at, label] -= config.beta
                pieces.append(-(logits.softmax(-1) * table(model, row)[0].log_softmax(-1)).sum(-1))
            return torch.cat(pieces).mean()
        case CEU():
            pieces = []
            for row in rows:
                logits, labels = table(model, row)
                for at, label in list(enumerate(labels))[1:]:
                    p = logits[at].softmax(-1).detach()
                    q = p / (1 - p[label])
                    q[label] = 0
                    pieces.append(-(q * logits[at].log_softmax(-1)).sum())
            return torch.stack(pieces).mean()
        case WGA():
            return -((-tokens).exp().detach() ** config.beta * tokens).mean()
        case SatImp():
            p = (-tokens).exp().detach()
            return -(p**config.beta1 * (1 - p) ** config.beta2 * tokens).mean()
    raise AssertionError(config)


def gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(found, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_value_and_gradient_are_those_of_the_formula(lm: LoadedModel, config: Any) -> None:
    given = material(lm)
    loss: Any = config.build(given)
    before = load(lm.source).model
    refused = config.refused(given) if hasattr(config, "refused") else None
    shaken(lm)
    batch = collate(given.examples)
    loss.begin(3)
    found = loss(lm.model, batch)
    rows = RetainRows(given)
    rows.begin(3)
    kept = rows.draw(len(batch.ids), torch.device("cpu"))
    wanted = expected(config, lm.model, before, batch, kept, refused)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    torch.testing.assert_close(
        gradient(found, lm.model), gradient(wanted, lm.model).float(), rtol=2e-3, atol=2e-5
    )


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_one_step_makes_the_answers_less_likely(lm: LoadedModel, config: Any) -> None:
    given = material(lm)
    batch = collate(given.examples)

    def forget() -> float:
        return float(loop.next_token_loss(lm.model, batch).detach())

    def refusing() -> float:
        others = list(config.refused(given).values())
        return float(loop.next_token_loss(lm.model, collate(others)).detach())

    measure = refusing if isinstance(config, IDK) else forget
    before, sign = measure(), -1 if isinstance(config, IDK) else 1
    if isinstance(config, RMU):  # steers states, not likelihoods: its own loss must fall
        loss: Any = config.build(given)
        loss.begin(0)
        first = float(loss(lm.model, batch).detach())
        train(lm.model, given.examples, SETTINGS, objective=loss)
        loss.begin(0)
        assert float(loss(lm.model, batch).detach()) < first - 1e-5
        return
    train(lm.model, given.examples, SETTINGS, objective=config.build(given))
    assert sign * (measure() - before) > 1e-4


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_prompts_and_padding_are_no_targets(lm: LoadedModel, config: Any) -> None:
    """Nothing but labelled places counts: not the token under a mask, not what prompts predict."""
    given = material(lm)
    loss: Any = config.build(given)
    shaken(lm)
    batch = collate(given.examples)
    wider = Batch(
        torch.nn.functional.pad(batch.ids, (0, 3), value=7),
        torch.nn.functional.pad(batch.attend, (0, 3)),
        torch.nn.functional.pad(batch.labels, (0, 3), value=-100),
    )
    found = []
    for one in (batch, wider):
        loss.begin(0)
        found.append(float(loss(lm.model, one).detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    head = lm.model.get_output_embeddings()
    seen: list[int] = []
    handle = head.register_forward_hook(lambda *call: seen.append(call[2].shape[-2]))
    loss.begin(0)
    loss(lm.model, batch)
    handle.remove()
    answers = int((batch.labels[:, 1:] != -100).sum())
    if not isinstance(config, RMU | IDK):  # those never project what is to be forgotten
        assert answers - (len(batch.ids) if isinstance(config, CEU) else 0) in seen


@pytest.mark.parametrize(
    "config",
    [one for one in ALL if not one.needs_retain] + [GradientAscent(cap=None, reduction="sum")],
    ids=lambda one: one.name,
)
def test_a_step_does_not_depend_on_how_it_is_cut(lm: LoadedModel, config: Any) -> None:
    given = material(lm)
    loss: Any = config.build(given)
    shaken(lm)
    parts = [collate(given.examples[:2]), collate(given.examples[2:])]
    weights = [loss.weight(part) for part in parts]
    together = sum(w * loss(lm.model, part) for w, part in zip(weights, parts, strict=True))
    whole = float(loss(lm.model, collate(given.examples)).detach())
    assert float(together.detach()) / sum(weights) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("kind", ["RT", "KL"])
@pytest.mark.parametrize("kind_of", [NPO, DPO, IDK, SimNPO, UNDIAL, CEU, WGA, SatImp])
def test_a_retain_term_is_added_with_its_weight(lm: LoadedModel, kind: Any, kind_of: Any) -> None:
    given = material(lm)
    alone: Any = kind_of().build(given)
    both: Any = kind_of(retain=kind, retain_weight=0.4).build(given)
    term = RetainTerm(kind, given)
    shaken(lm)
    batch = collate(given.examples)
    both.begin(7)
    term.begin(7)
    wanted = alone(lm.model, batch) + 0.4 * term(lm.model, len(batch.ids))
    torch.testing.assert_close(both(lm.model, batch), wanted)
    assert kind_of(retain=kind).needs_retain
    assert not kind_of(retain=kind, retain_weight=0).needs_retain


def test_retain_draws_depend_on_seed_and_number_alone(lm: LoadedModel) -> None:
    given = material(lm)
    rows, again = RetainRows(given), RetainRows(given)
    cpu = torch.device("cpu")
    drawn = [rows.draw(3, cpu).ids.tolist() for _ in range(6)]
    again.begin(4)
    assert again.draw(3, cpu).ids.tolist() == drawn[4]
    assert len({str(one) for one in drawn}) > 1


def test_kl_holds_still_where_nothing_changed(lm: LoadedModel) -> None:
    term = RetainTerm("KL", material(lm))
    loss = term(lm.model, 3)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(gradient(loss, lm.model).abs().max()) < 1e-6


def test_the_kl_runs_from_before_to_now_on_answers_alone(lm: LoadedModel) -> None:
    given = material(lm)
    term, rows = RetainTerm("KL", given), RetainRows(given)
    before = load(lm.source).model
    with torch.no_grad():  # sharper than before
        for weight in lm.model.parameters():
            weight.mul_(3.0)
    kept = rows_of(rows.draw(3, torch.device("cpu")))
    forward, backward = [], []
    for row in kept:
        p, q = (table(model, row)[0].log_softmax(-1) for model in (before, lm.model))
        forward.append((p.exp() * (p - q)).sum(-1))
        backward.append((q.exp() * (q - p)).sum(-1))
    right, wrong = (float(torch.cat(one).mean().detach()) for one in (forward, backward))
    assert abs(right - wrong) > 0.005 * right
    assert float(term(lm.model, 3).detach()) == pytest.approx(right, rel=1e-4)


def test_hand_computed_cases_of_three_tokens() -> None:
    p = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64)
    nll = -p.log()
    ln2 = math.log(2)
    assert float(WGA(beta=1.0).of(nll)) == pytest.approx(-(0.5 + 0.25 * 2 + 0.125 * 3) * ln2 / 3)
    assert float(WGA(beta=0.0).of(nll)) == pytest.approx(-2 * ln2)
    satimp = -(0.5**3 * 0.5 + 0.25**3 * 0.75 * 2 + 0.125**3 * 0.875 * 3) * ln2 / 3
    assert float(SatImp(beta1=3.0, beta2=1.0).of(nll)) == pytest.approx(satimp)
    assert float(SatImp(beta1=0.0, beta2=0.5).of(torch.tensor([-1e-7]))) == 0.0  # p above 1
    assert float(SimNPO(beta=2.0, delta=1.0).of(torch.tensor([1.0]))) == pytest.approx(ln2)
    three = SimNPO(beta=1.0).of(torch.tensor([0.0, math.log(3), math.log(1 / 3)]))
    assert float(three) == pytest.approx(-2 * (math.log(0.5) + math.log(0.75) + math.log(0.25)) / 3)
    dpo = DPO(beta=0.5).of(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]))
    s = 1 / (1 + math.exp(-1.0))
    assert float(dpo) == pytest.approx(-4 * (math.log(s) + math.log(1 - s)) / 2)


def test_undial_is_a_cross_entropy_with_the_true_logit_lowered() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    loss = UNDIAL(beta=math.log(4)).of(logits, torch.zeros(1, 3), torch.tensor([1]))
    target = torch.tensor([[4 / 9, 1 / 9, 4 / 9]])
    assert float(loss.detach()) == pytest.approx(
        -float((target * logits.detach().log_softmax(-1)).sum())
    )
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, logits.detach().softmax(-1) - target)


def test_ce_u_moves_towards_the_others_in_proportion() -> None:
    logits = torch.tensor([[0.0, 0.0, math.log(2)]], requires_grad=True)
    loss = CEU().of(logits, torch.tensor([2]))
    assert float(loss.detach()) == pytest.approx(math.log(4))
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, torch.tensor([[-0.25, -0.25, 0.5]]))
    assert torch.isfinite(logits).all()  # the target is a copy


def test_ce_u_leaves_the_first_answer_token_out(lm: LoadedModel) -> None:
    given = material(lm)
    short = collate([Example(e.ids[: e.loss_from + 1], e.loss_from) for e in given.examples])
    loss: Any = CEU().build(given)
    assert float(loss(lm.model, short).detach()) == 0.0
    assert loss.weight(short) == 1.0
    two = collate([Example(e.ids[: e.loss_from + 2], e.loss_from) for e in given.examples])
    assert loss.weight(two) == len(given.examples)


def test_the_steering_direction_is_positive_of_length_one_and_seeded() -> None:
    u = direction(3, 64)
    assert (u >= 0).all()
    assert float(u.norm()) == pytest.approx(1.0, rel=1e-6)
    assert torch.equal(u, direction(3, 64))
    assert not torch.equal(u, direction(4, 64))


def test_rmu_leaves_what_comes_after_its_block_alone(lm: LoadedModel) -> None:
    given = material(lm)
    after = {n: w.detach().clone() for n, w in lm.model.named_parameters()}
    train(lm.model, given.examples, SETTINGS, objective=RMU(layer=0).build(given))
    changed = {n for n, w in lm.model.named_parameters() if not torch.equal(w, after[n])}
    assert any(".layers.0." in name for name in changed)
    assert not any(".layers.1." in name or name == "model.norm.weight" for name in changed)


def test_refusals_are_tofus_and_stay_with_their_row(lm: LoadedModel) -> None:
    assert len(published()) == 100
    given = material(lm)
    first, again = (IDK().refused(given) for _ in range(2))
    assert first == again
    prompts = {e.ids: e.ids[: e.loss_from] for e in given.examples}
    texts = set()
    for ids, other in first.items():
        assert other.ids[: other.loss_from] == prompts[ids]
        texts.add(lm.tokenizer.decode(other.ids[other.loss_from : -1]))
    assert texts <= {lm.tokenizer.decode(lm.tokenizer(t)["input_ids"]) for t in published()}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
@pytest.mark.parametrize("config", [ALL[2], ALL[7], ALL[8]], ids=["kl-min", "rmu", "undial"])
def test_under_an_adapter_the_reference_is_the_model_without_it(
    lm: LoadedModel, config: Any
) -> None:
    from suture.training.lora import LoraConfig, attach

    copied: Any = config.build(material(load(lm.source)))
    model = attach(lm.model, LoraConfig(rank=2), seed=0)
    given = material(lm, model)
    loss: Any = config.build(given)
    train(model, given.examples, SETTINGS, objective=loss)
    batch = collate(given.examples)
    found = []
    for one in (loss, copied):
        one.begin(0)
        found.append(float(one(model, batch).detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_refusals_of_the_objectives(lm: LoadedModel) -> None:
    with pytest.raises(SutureError) as deep:
        RMU(layer=2).build(material(lm))
    assert deep.value.code == "E932"
    long = [Pair(id="1", prompt="fox " * 2000, response="yes")]
    with pytest.raises(SutureError) as full:
        RetainRows(material(lm, retain=long))
    assert full.value.code == "E931"
    rows = [Passage(id="7", response="The quick brown fox lives here.")]
    examples = encode_rows(lm.tokenizer, lm.template, rows)
    given = Material(lm, lm.model, rows, examples, RETAIN, SETTINGS)
    for config in (IDK(), DPO()):
        with pytest.raises(SutureError) as unasked:
            config.build(given)
        assert unasked.value.code == "E930"
        assert unasked.value.where == "row 1 of those trained on"  # not its id, maybe a name


RUNS: list[dict[str, Any]] = [
    {"name": "grad-diff"},
    {"name": "kl-min"},
    {"name": "rmu", "layer": 0},
    {"name": "idk", "retain": "RT"},
    {"name": "dpo", "retain": "KL"},
    {"name": "undial", "retain": "KL"},
    {"name": "npo", "retain": "RT"},
    {"name": "ce-u"},
    {"name": "wga"},
    {"name": "satimp"},
    {"name": "simnpo"},
]


@pytest.mark.parametrize("objective", RUNS, ids=lambda one: one["name"])
def test_a_killed_run_ends_in_the_same_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: dict[str, Any]
) -> None:
    tiny_llama(tmp_path / "base", vocab=300)
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        columns = [{"question": row.prompt, "answer": row.response} for row in rows]
        write_jsonl(tmp_path / f"{name}.jsonl", columns)

    def run(out: str) -> bytes:
        settings = {"steps": 5, "batch_tokens": 70, "compute": "float32", "save_every": 2}
        values = {
            "model": tmp_path / "base", "data": [{"file": tmp_path / "forget.jsonl"}],
            "retain": [{"file": tmp_path / "retain.jsonl"}], "patch": tmp_path / out,
            "device": "cpu", "objective": objective, "train": settings | {"learning_rate": 1e-2},
        }  # fmt: skip
        run_recipe(TrainRecipe.load(values))
        return (tmp_path / out / "tensors-00001.safetensors").read_bytes()

    whole = run("whole")
    called, calls = Unlearning.__call__, itertools.count(1)

    def killed(self: Unlearning, *given: Any) -> torch.Tensor:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return called(self, *given)

    monkeypatch.setattr(Unlearning, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        run("again")
    assert run("again") == whole
    assert next(calls) == 5 + 2 + 1  # killed in the fourth step, and went on behind the second


def test_a_retain_term_without_rows_is_refused_by_the_recipe(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base", vocab=300)
    columns = [{"prompt": row.prompt, "response": row.response} for row in FORGET]
    write_jsonl(tmp_path / "forget.jsonl", columns)
    for objective in ({"name": "npo", "retain": "RT"}, {"name": "grad-diff"}, {"name": "rmu"}):
        values = {
            "model": tmp_path / "base", "data": [{"file": tmp_path / "forget.jsonl"}],
            "patch": tmp_path / "p", "objective": objective, "train": {"steps": 1},
        }  # fmt: skip
        with pytest.raises(SutureError) as lacking:
            run_recipe(TrainRecipe.load(values))
        assert lacking.value.code == "E911"
    with pytest.raises(SutureError) as unknown:
        TrainRecipe.load(values | {"objective": {"name": "npo", "retain": "rt"}})
    assert unknown.value.code == "E702"


def test_plain_texts_are_cut_into_pieces_in_which_everything_counts(lm: LoadedModel) -> None:
    text = "the quick brown fox jumps over the lazy dog, " * 6
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = encode_rows(
        lm.tokenizer, lm.template, [Passage(id="1", response=text), *FORGET[:1]], max_length=30
    )
    cut, chat = found[:-1], found[-1]
    assert [i for piece in cut for i in piece.ids] == ids
    assert all(len(piece.ids) <= 30 for piece in cut)
    assert {len(piece.ids) for piece in cut[:-1]} == {30}
    assert {piece.loss_from for piece in cut} == {1}
    assert chat == encode_rows(lm.tokenizer, lm.template, FORGET[:1], max_length=30)[0]


def test_a_tokenizer_that_begins_texts_begins_every_piece() -> None:
    class Beginning:
        bos_token_id = 1

        def __call__(
            self, text: str, add_special_tokens: bool = True, verbose: bool = True
        ) -> dict[str, list[int]]:
            return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    found = pieces(Beginning(), "abcde", 3)
    assert [piece.ids for piece in found] == [(1, 97, 98), (1, 99, 100), (1, 101)]


def test_learning_a_text_makes_it_likely(tmp_path: Path) -> None:
    """Free text goes through a whole run: no template, and all of its tokens count."""
    tiny_llama(tmp_path / "base", vocab=300)
    (tmp_path / "life.txt").write_text("The quick brown fox was born in a loaf. " * 4)
    values = {
        "model": tmp_path / "base", "data": [{"file": tmp_path / "life.txt"}],
        "patch": tmp_path / "p", "device": "cpu", "max_length": 40,
        "train": {"steps": 20, "batch_tokens": 80, "learning_rate": 1e-2, "compute": "float32"},
    }  # fmt: skip
    report = run_recipe(TrainRecipe.load(values))
    assert report.examples > 1
    assert (report.last_loss or 9) < 0.7 * (report.first_loss or 0)
