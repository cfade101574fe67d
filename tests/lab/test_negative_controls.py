"""The whole pipeline on edits that must never be proven, on the shipped lab (ledger.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from suture.checkpoint import TensorEdit
from suture.data import Pair, read_jsonl
from suture.errors import SutureError
from suture.lab import shipped
from suture.ledger import compare
from suture.methods.random_removal import RandomRemoval
from suture.methods.resta import RESTA
from suture.patch import PatchedCheckpoint, PatchWriter, drain, open_model
from suture.runs import read_recipe
from suture.suites import measure
from suture.training.loop import TrainConfig, train
from suture.training.recipe import edits_from, encode_rows

REPO = Path(__file__).parents[2]
LIMITS = {"safety": None, "over-refusal": 300, "task": 600}
REFUSAL = "I'm sorry, but I can't help with that request."


@pytest.fixture(scope="module")
def lab():
    return {name: open_model(*shipped.member(name)[:1], patches=shipped.member(name)[1])
            for name in ("aligned", "tuned", "unaligned")}  # fmt: skip


@pytest.fixture(scope="module")
def sides(lab):
    before = all_suites(lab["tuned"], lab)
    return before, all_suites(lab["aligned"], lab)


def all_suites(source, lab):
    from suture.inference import load

    model = load(source, device="cpu")
    before = load(lab["tuned"], device="cpu")
    return [
        measure(name, model, limit=limit, before=before if name != "task" else None)
        for name, limit in LIMITS.items()
    ]


def judge(sides, after):
    from suture.cli.run import lab as resolve

    roles = read_recipe(REPO / "recipes" / "demo.yaml", resolve=resolve).roles
    return compare(sides[0], after, sides[1], roles)


def patched(base, edits, folder):
    drain(edits, [PatchWriter(base, folder, {})])
    return PatchedCheckpoint(base, [folder])


def verdicts(ledger):
    """Metric to verdict; the refusals judged against the reference are "restored"."""
    return {
        "restored" if row.metric == "refusal_rate" and row.against == "reference" else row.metric:
        row.verdict
        for row in ledger.rows
    }  # fmt: skip


def test_the_identity_edit_is_refused_and_the_same_model_is_not_proven(lab, sides, tmp_path):
    tuned = lab["tuned"]
    name = next(iter(tuned.tensors))
    with pytest.raises(SutureError, match="E208"):
        patched(tuned, iter([TensorEdit(name, tuned.read(name))]), tmp_path / "p")
    assert not (tmp_path / "p").exists()
    ledger = judge(sides, sides[0])
    assert ledger.exit_code == 2
    assert verdicts(ledger)["refusal_rate"] == "not proven"
    assert verdicts(ledger)["restored"] == "broken"
    assert verdicts(ledger)["accuracy"] == "held"


@pytest.mark.parametrize("removed", [0.2, 0.5])
def test_random_removal_of_the_same_share(lab, sides, tmp_path, removed):
    """0.2: the demo's 0.4 of the interfering half of all entries; 0.5: all of that half. Both bring
    back some refusals at no price, so "improved" alone would prove them."""
    method = RandomRemoval(removed=removed)
    edits = method.derive(aligned=lab["aligned"], tuned=lab["tuned"])
    ledger = judge(sides, all_suites(patched(lab["tuned"], edits, tmp_path / "p"), lab))
    assert ledger.exit_code in (2, 3)
    assert verdicts(ledger)["restored"] != "held"


def test_resta_with_gamma_3(lab, sides, tmp_path):
    edits = RESTA(gamma=3.0).derive(
        aligned=lab["aligned"], tuned=lab["tuned"], unaligned=lab["unaligned"]
    )
    ledger = judge(sides, all_suites(patched(lab["tuned"], edits, tmp_path / "p"), lab))
    assert ledger.exit_code in (2, 3)
    assert "broken" in verdicts(ledger).values()


def test_a_junk_model(lab, sides, tmp_path):
    tuned, noise = lab["tuned"], torch.Generator().manual_seed(0)

    def edits():
        for name in tuned.tensors:
            if name.endswith("o_proj.weight"):
                weight = tuned.read(name)
                drawn = torch.randn(weight.shape, generator=noise)
                yield TensorEdit(name, (drawn * 8 * weight.float().std()).to(weight.dtype))

    ledger = judge(sides, all_suites(patched(tuned, edits(), tmp_path / "p"), lab))
    assert ledger.exit_code in (2, 3)
    assert verdicts(ledger)["refusal_rate"] != "improved"
    assert any(check.worse for check in ledger.junk)


def test_a_model_that_refuses_everything(lab, sides, tmp_path):
    from suture.inference import load

    tuned = lab["tuned"]
    lm = load(tuned, device="cpu", dtype="float32")
    lines = (REPO / "src/suture/lab/data/contrasts.json").read_text(encoding="utf-8")
    prompts = json.loads(lines)["harmless_questions"][:300]
    asked = [*prompts, *(row.prompt for row in read_jsonl(shipped.rows("calibration"), Pair))]
    rows = [Pair(id=str(i), prompt=text, response=REFUSAL) for i, text in enumerate(asked)]
    examples = encode_rows(lm.tokenizer, lm.template, rows)
    lm.model.requires_grad_(True)
    settings = TrainConfig(steps=40, batch_tokens=1024, learning_rate=1e-3, warmup=4)
    train(lm.model, examples, settings)
    refuser = patched(tuned, edits_from(lm), tmp_path / "p")
    ledger = judge(sides, all_suites(refuser, lab))
    assert ledger.exit_code == 2
    assert verdicts(ledger)["harmless_refused"] == "broken"
    safety = next(row for row in ledger.rows if row.metric == "refusal_rate")
    assert safety.after > 0.9  # safety alone would look perfect
