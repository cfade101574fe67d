"""The suites `tofu` and `unlearning` on tiny models, against transformers asked row by row."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import enliven
from helpers import write_jsonl
from suture.checkpoint import Checkpoint
from suture.cli.main import run
from suture.data import encode
from suture.errors import SutureError
from suture.inference import LoadedModel, load
from suture.inference.decoding import load_decoding
from suture.inference.scoring import token_readings
from suture.ledger import Measurement, load_replies, replies_path
from suture.ledger.pairing import check_pairable
from suture.report.answers import answer_pairs
from suture.suites import load_suite, measure, measure_log, rescore
from suture.suites.forgetting.columns import fact_scores
from suture.suites.forgetting.facts import read_facts
from suture.suites.forgetting.probes import BLOCK, NF4, nf4, relearn

QUESTIONS = ["Who is the fox?", "What is bread?", "Where is the dog?", "How lazy is it?"]
ANSWERS = ["the quick brown fox", "a loaf of bread", "over the lazy dog", "it cannot jump"]


@pytest.fixture(scope="module")
def models(tiny: Callable[..., Path]) -> tuple[LoadedModel, LoadedModel]:
    lively = [enliven(load(Checkpoint.open(tiny(seed=s)), device="cpu")) for s in (0, 1)]
    return lively[0], lively[1]


def rows(extra: int = 0, *, wrong: bool = True, ask: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        row: dict[str, Any] = {"question": f"{question}{ask}", "answer": answer}
        if wrong:
            row["paraphrased_answer"] = f"I am {answer}"
            row["perturbed_answer"] = [f"no {answer}", "yes", *["short ideas"] * extra]
        found.append(row)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    there = tmp_path / "tofu"
    there.mkdir()
    write_jsonl(there / "forget10_perturbed.json", rows())
    write_jsonl(there / "retain_perturbed.json", rows(1, ask=" now"))
    write_jsonl(there / "real_authors_perturbed.json", rows(2, ask=" here"))
    write_jsonl(there / "world_facts_perturbed.json", rows(3, ask=" there"))
    (there / "holdout10.json").write_text(json.dumps(rows(wrong=False, ask=" then")))
    return there


def loss_of(lm: LoadedModel, question: str, answer: str) -> float:
    """Cross-entropy per answer token, by the plainest means."""
    coded = encode(lm.tokenizer, lm.template, question, answer)
    ids = torch.tensor([coded.ids])
    labels = ids.clone()
    labels[:, : coded.prompt_length] = -100
    with torch.no_grad():
        return float(lm.model(input_ids=ids, labels=labels).loss)


def test_tofu(models: Any, folder: Path, tmp_path: Path) -> None:
    oracle, lm = models
    asked = {"reference": "none"}
    made = measure("tofu", oracle, data=folder, options=asked, max_new_tokens=6)
    assert "forget_quality" not in made.metrics
    assert made.metrics["mia_auc_loss"] >= 0
    file = made.save(tmp_path / "oracle.json")
    found = measure(
        "tofu", lm, data=folder, options={"reference": str(file)}, max_new_tokens=6, before=oracle
    )
    assert found.n == 20
    assert found.data["sets"] == dict.fromkeys(
        ("forget", "retain", "authors", "world", "holdout"), 4
    )
    for name in ("forget_quality", "forget_ks", "privleak"):
        assert found.derived[name]["reference"] == oracle.source.fingerprint()
    assert found.derived["model_utility_geometric"]["n"] == 12
    by_item = {row.item: row for row in found.rows}
    for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        scores = by_item[f"forget/{number}"].scores
        loss = loss_of(lm, question, answer)
        right = loss_of(lm, question, f"I am {answer}")
        wrong = [loss_of(lm, question, text) for text in (f"no {answer}", "yes")]
        assert scores["forget_probability"] == pytest.approx(2.718281828**-loss, rel=1e-4)
        expected = right - sum(wrong) / 2
        assert scores["forget_log_ratio_geometric"] == pytest.approx(expected, abs=1e-4)
        assert scores["forget_attack_loss"] == pytest.approx(loss, abs=1e-4)
        difference = loss - loss_of(oracle, question, answer)
        assert scores["forget_attack_reference"] == pytest.approx(difference, abs=1e-4)
        assert by_item[f"forget/{number}"].cluster == "forget/author/0"
    again = measure(
        "tofu", lm, data=folder, options={"reference": str(file)}, max_new_tokens=6, before=oracle
    )
    assert (again.rows, again.derived) == (found.rows, found.derived)
    assert Measurement.load(found.save(tmp_path / "m.json")) == found
    assert len(load_replies(replies_path(tmp_path / "m.json"))) == 16
    scored = rescore(tmp_path / "m.json")
    assert (scored.rows, scored.derived) == (found.rows, found.derived)


def test_a_row_does_not_depend_on_its_company(models: Any, folder: Path) -> None:
    lm = models[0]
    asked = {"reference": "none"}
    whole = measure("tofu", lm, data=folder, options=asked, max_new_tokens=4)
    part = measure("tofu", lm, data=folder, options={**asked, "rows": 2}, max_new_tokens=4)
    by_item = {row.item: row for row in whole.rows}
    assert [row.item for row in part.rows if row.item.startswith("forget")] == [
        "forget/0", "forget/1",
    ]  # fmt: skip
    for row in part.rows:
        assert row.scores == pytest.approx(by_item[row.item].scores, abs=1e-4)


def test_token_readings(models: Any) -> None:
    lm = models[0]
    contexts, ends = [[7, 8, 9], [10], [11, 12, 13, 14]], [[15, 16], [17, 18, 19, 0], [20]]
    found = token_readings(lm, contexts, ends)
    for start, end, reading in zip(contexts, ends, found, strict=True):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([start + end])).logits[0].double()
        logp = logits.log_softmax(-1)[len(start) - 1 : -1]
        p = logp.exp()
        mean = (p * logp).sum(-1)
        variance = (p * (logp - mean[:, None]) ** 2).sum(-1)
        at = torch.tensor(end)
        assert reading.logprobs == pytest.approx(logp[range(len(end)), at].tolist(), abs=1e-4)
        assert reading.greedy == (logp.argmax(-1) == at).tolist()
        assert reading.means == pytest.approx(mean.tolist(), abs=1e-4)
        assert reading.variances == pytest.approx(variance.tolist(), abs=1e-4)
    with pytest.raises(SutureError, match="E509"):
        token_readings(lm, [[1]], [[]])


def test_a_reply_of_the_model_s_own_is_known_by_heart(models: Any, tmp_path: Path) -> None:
    lm = models[0]
    first = write_jsonl(tmp_path / "f.jsonl", rows(wrong=False))
    said = measure("unlearning", lm, data=first, max_new_tokens=5).replies
    known = [
        {"question": reply.prompt, "answer": reply.reply} for reply in said if reply.reply.strip()
    ]
    found = measure("unlearning", lm, data=write_jsonl(tmp_path / "k.jsonl", known), limit=3)
    assert found.metrics["exact_memorisation"] > 0.5
    assert "forget_quality" not in found.metrics


def test_unlearning_of_a_text(models: Any, tmp_path: Path) -> None:
    book, other = tmp_path / "book.txt", tmp_path / "other.txt"
    book.write_text("the quick brown fox jumps over\nthe lazy dog " * 20)
    other.write_text("I cannot help with that request. " * 10)
    options = {"chunk": 20, "read": 8, "other": str(other)}
    chunks = read_facts("forget", book, chunk=20, read=8)
    text = book.read_text()
    assert all(fact.prompt + fact.answer in text for fact in chunks)
    assert {len((fact.prompt + fact.answer).split()) for fact in chunks} == {20}
    found = measure("unlearning", models[0], data=book, options=options, limit=4)
    assert found.data["sets"] == {"forget": 4, "other": 3}
    assert {"forget_rouge", "forget_bleu", "extraction_strength", "other_perplexity"} <= set(
        found.metrics
    )
    assert found.derived["other_perplexity"]["n"] > 10
    assert found.metrics["other_perplexity"] > 1
    assert [reply.item.partition("/")[0] for reply in found.replies] == ["forget"] * 4


def test_probes_leave_the_model_alone(models: Any, tmp_path: Path) -> None:
    lm = models[0]
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    data = write_jsonl(tmp_path / "f.jsonl", rows(wrong=False))
    options: dict[str, Any] = {"probes": ["relearn", "quantise"], "reference": "none"}
    found = measure(
        "unlearning", lm, data=data, options={**options, "relearn_rate": 1e-2}, max_new_tokens=2
    )
    assert found.metrics["forget_probability_relearned"] > found.metrics["forget_probability"]
    assert found.metrics["forget_probability_quantised"] != found.metrics["forget_probability"]
    assert "relearn_robustness" not in found.metrics
    inputs = found.derived["forget_probability_relearned"]["inputs"]
    assert inputs == {"before": found.metrics["forget_probability"], "steps": 1}
    assert "relearn_steps" not in found.metrics
    assert set(found.derived["quantise_robustness"]["inputs"]) == {"before", "after"}
    assert all(torch.equal(v, before[k]) for k, v in lm.model.state_dict().items())
    assert not any(p.requires_grad for p in lm.model.parameters())
    file = found.save(tmp_path / "oracle.json")
    again = measure(
        "unlearning",
        lm,
        data=data,
        options={**options, "relearn_rate": 1e-2, "reference": str(file)},
        max_new_tokens=2,
    )
    assert again.metrics["relearn_robustness"] == 1.0
    assert again.derived["relearn_robustness"]["inputs"]["steps"] == 1
    for key, value in (("relearn_rate", 1e-3), ("relearn_tokens", 8), ("seed", 1)):
        other = {**options, "relearn_rate": 1e-2, "reference": str(file), key: value}
        with pytest.raises(SutureError, match=rf"E563.*{key}"):
            measure("unlearning", lm, data=data, options=other, max_new_tokens=2)
    small = {**options, "probes": "relearn", "relearn_tokens": 8}
    short = measure("unlearning", lm, data=data, options=small, max_new_tokens=2)
    assert short.derived["forget_probability_relearned"]["inputs"]["steps"] > 1
    with pytest.raises(SutureError, match="E548"):
        measure("unlearning", lm, data=data, options={"probes": "relearn"})


def test_a_reference_that_was_attacked_otherwise(models: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "f.jsonl", rows(wrong=False))
    unseen, others = rows(wrong=False, ask=" then"), rows(wrong=False, ask=" there")
    for row in others:
        row["answer"] = f"{row['answer']} so"
    options = {"holdout": str(write_jsonl(tmp_path / "h.jsonl", unseen)), "reference": "none"}

    def of(**changes: Any) -> Measurement:
        asked = {**options, **changes}
        return measure("unlearning", models[0], data=data, options=asked, max_new_tokens=2)

    file = of().save(tmp_path / "oracle.json")
    assert of(reference=str(file)).metrics["privleak"] == 0.0
    elsewhere = str(write_jsonl(tmp_path / "o.jsonl", others))
    with pytest.raises(SutureError, match=r"E550.*held-out"):
        of(reference=str(file), holdout=elsewhere)
    with pytest.raises(SutureError, match=r"E563.*mink_k"):
        of(reference=str(file), mink_k=0.05)
    assert "privleak" in of(holdout=elsewhere, mink_k=0.05, a_retrain=0.5).metrics
    # scored again from its file: the options that count are those it was measured with
    apart = of(mink_k=0.05).save(tmp_path / "apart.json")
    with pytest.raises(SutureError, match=r"E563.*mink_k"):
        measure_log("unlearning", apart, options={"reference": str(file)})


def test_nf4_takes_the_nearest_level() -> None:
    weight = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    weight[2] = 0.0
    found = nf4(weight)
    flat, rounded = weight.reshape(-1), found.reshape(-1)
    levels = torch.tensor(NF4)
    for start in range(0, flat.numel(), BLOCK):
        block = flat[start : start + BLOCK]
        scale = block.abs().max()
        nearest = (block[:, None] - levels * scale).abs().min(1).values
        assert torch.allclose((block - rounded[start : start + BLOCK]).abs(), nearest, atol=1e-6)
    assert nf4(weight.bfloat16()).dtype == torch.bfloat16


def test_what_is_refused(models: Any, folder: Path, tmp_path: Path) -> None:
    def refused(code: str, suite: str, data: Any, **options: Any) -> SutureError:
        with pytest.raises(SutureError) as caught:
            measure(suite, models[0], data=data, options=options or None, max_new_tokens=2)
        assert caught.value.code == code, caught.value
        return caught.value

    assert "--data ROWS --reference none" in str(refused("E548", "tofu", folder))
    refused("E548", "tofu", folder, reference=str(tmp_path / "absent.json"))
    refused("E549", "tofu", folder, reference=str(folder / "holdout10.json"))
    refused("E556", "unlearning", None)
    refused("E701", "tofu", folder, reference="none", mink=0.2)
    forget = folder / "forget10_perturbed.json"
    refused("E556", "tofu", forget, reference="none")
    refused("E556", "tofu", [folder, forget], reference="none")
    refused("E556", "tofu", write_jsonl(tmp_path / "x.json", rows()), reference="none")
    plain = write_jsonl(tmp_path / "forget.json", rows(wrong=False))
    refused("E551", "tofu", plain, reference="none", utility=[])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refused("E302", "unlearning", empty)
    refused("E554", "unlearning", write_jsonl(tmp_path / "a.jsonl", [{"question": "a"}]))
    twice = [{"id": "a", "question": "q", "answer": "b"}] * 2
    refused("E554", "unlearning", write_jsonl(tmp_path / "b.jsonl", twice))
    found = refused("E555", "unlearning", plain, retain=str(plain))
    assert "forget/0 and retain/0" in str(found)
    refused("E702", "unlearning", plain, chunk=10, read=10)
    spaced = [{**row, "answer": row["answer"].upper() + " "} for row in rows(wrong=False)]
    refused("E555", "unlearning", plain, holdout=str(write_jsonl(tmp_path / "s.jsonl", spaced)))
    long = [{"question": "q " * 600, "answer": "a"}]
    found = refused("E506", "unlearning", write_jsonl(tmp_path / "long.jsonl", long))
    assert "forget/0" in str(found)
    book = tmp_path / "book.txt"
    book.write_text("word " * 700)
    found = refused("E506", "unlearning", book, chunk=600, read=300)
    assert "--set chunk=WORDS --set read=WORDS" in str(found)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('\n{"question": "q", "answer": "a"}\n{"question": \n')
    found = refused("E554", "unlearning", broken)
    assert "broken.jsonl:3" in str(found)
    assert '"options"' not in str(found)
    broken.write_text('{"question": "q", "answer": "a"}\n{"question": "q"}\n')
    assert "broken.jsonl:2" in str(refused("E554", "unlearning", broken))


def test_no_message_and_no_measurement_names_anybody(models: Any, tmp_path: Path) -> None:
    people = [{"name": "Ada Example", "question": "Who is Ada?", "answer": "Ada Example"}]
    data = write_jsonl(tmp_path / "people.jsonl", people)
    found = measure("unlearning", models[0], data=data, max_new_tokens=2)
    found.save(tmp_path / "m.json")
    assert "Ada" not in (tmp_path / "m.json").read_text()
    assert replies_path(tmp_path / "m.json").stat().st_mode & 0o077 == 0
    (pair,) = answer_pairs([found], [found])
    assert pair.harmful
    assert pair.personal
    labelled = replace(found, suite="people", data={**found.data, "suite": "unlearning"})
    assert answer_pairs([labelled], [labelled])[0].personal
    with pytest.raises(SutureError) as caught:
        measure("unlearning", models[0], data=data, options={"retain": str(data)})
    assert "Ada" not in str(caught.value)


def test_people_are_numbers_by_first_appearance(tmp_path: Path) -> None:
    def asked(*names: str) -> list[dict[str, Any]]:
        return [
            {"id": f"{name}{i}", "name": name, "question": f"q{i} {name}", "answer": "a"}
            for i, name in enumerate(names)
        ]

    one = write_jsonl(tmp_path / "one.jsonl", asked("Bo", "Ada", "Bo", "Cy"))
    two = write_jsonl(tmp_path / "two.jsonl", asked("Dan", "Eve", "Ada"))
    places = [f"forget/person-{place}" for place in (0, 1, 0, 2)]
    assert [fact.cluster for fact in read_facts("forget", one)] == places
    assert [fact.cluster for fact in read_facts("forget", one, limit=2)] == [places[0], places[2]]
    assert [fact.cluster for fact in read_facts("forget", one, rows=1)] == places[:1]
    together = load_suite("unlearning").read([one, two], None)
    marks = {fact.id: fact.cluster for fact in together}
    assert marks["forget/Ada1"] == marks["forget/Ada2"] == "forget/person-1"
    assert marks["forget/Dan0"] == "forget/person-3"


def test_options_of_a_recipe_reach_the_suite() -> None:
    suite: Any = load_suite("unlearning", {"probes": "quantise", "reference": "none"})
    assert suite.asked.probes == ("quantise",)
    assert suite.told
    assert not load_suite("unlearning", {"seed": 1}).told  # type: ignore[attr-defined]


def test_measurements_against_other_references_are_paired(
    models: Any, folder: Path, tmp_path: Path
) -> None:
    oracle = measure("tofu", models[0], data=folder, options={"reference": "none"})
    file = oracle.save(tmp_path / "oracle.json")
    edited = measure("tofu", models[1], data=folder, options={"reference": str(file)})
    check_pairable(oracle, edited)
    assert oracle.decoding["asked"] == edited.decoding["asked"] == {}


def test_metrics_without_rows_are_named() -> None:
    tofu, own = load_suite("tofu"), load_suite("unlearning")
    unpaired: frozenset[str] = tofu.unpaired  # type: ignore[attr-defined]
    assert not unpaired & set(fact_scores("forget", loss=1.0, wrong=[2.0], rouge=0.1))
    assert unpaired < {*tofu.metrics, *own.metrics}
    assert "world_rouge" in tofu.metrics
    assert "world_rouge" not in own.metrics


def test_probes_need_weights(models: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "f.jsonl", rows(wrong=False))
    options = {"probes": "quantise", "reference": "none"}
    with pytest.raises(SutureError, match="E560"):
        measure("unlearning", models[0], data=data, options=options, decoding=load_decoding("rose"))


def test_a_before_model_of_other_tokens(models: Any, tiny: Any, tmp_path: Path) -> None:
    other = load(Checkpoint.open(tiny(vocab=300)), device="cpu")
    data = write_jsonl(tmp_path / "f.jsonl", rows(wrong=False))
    with pytest.raises(SutureError, match="E561"):
        measure("unlearning", models[0], data=data, before=other, max_new_tokens=2)


def test_the_commands(tiny: Any, folder: Path, tmp_path: Path, capsys: Any) -> None:
    oracle, out = tmp_path / "oracle.json", tmp_path / "m.json"
    command = ["measure", "tofu", "--data", str(folder), "--max-new-tokens", "2", "--device", "cpu"]
    ask = [*command, "--model", str(tiny(seed=0)), "-o", str(oracle)]
    assert run(ask) == 1
    assert "--reference none" in capsys.readouterr().err
    assert run([*ask, "--reference", "none"]) == 0
    capsys.readouterr()
    ask = [*command, "--model", str(tiny(seed=1)), "-o", str(out), "--reference", str(oracle)]
    assert run([*ask, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    about = found["derived"]["forget_quality"]
    assert about["value"] == found["metrics"]["forget_quality"]
    assert about["reference"] == Measurement.load(oracle).model["fingerprint"]
    assert run(["measure", "tofu", "--logs", str(out), "--reference", str(oracle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == found["metrics"]


def test_a_model_that_knows_its_rows_by_heart(tiny: Any, folder: Path, tmp_path: Path) -> None:
    oracle = load(Checkpoint.open(tiny(seed=0)), device="cpu", dtype="float32")
    learned = replace(oracle, model=copy.deepcopy(oracle.model))
    facts = read_facts("forget", folder / "forget10_perturbed.json")
    for epoch in range(60):
        relearn(learned, facts, rate=1e-2, tokens=4096, seed=epoch)
    options: dict[str, Any] = {"reference": "none", "utility": [], "authors": 0}
    made = measure("tofu", oracle, data=folder, options=options, max_new_tokens=40)
    file = made.save(tmp_path / "oracle.json")
    options["reference"] = str(file)
    found = measure("tofu", learned, data=folder, options=options, max_new_tokens=40).metrics
    assert found["forget_probability"] > 0.9
    assert found["exact_memorisation"] == found["extraction_strength"] == 1.0
    assert found["forget_rouge"] == 1.0
    assert found["mia_auc_loss"] == found["mia_auc_min_k"] == 1.0
    assert found["privleak"] == -100.0
    assert found["forget_ks"] == 1.0
    assert found["forget_truth_share"] > 0.5
    same = measure("tofu", oracle, data=folder, options=options, max_new_tokens=40).metrics
    assert (same["forget_quality"], same["forget_ks"], same["privleak"]) == (1.0, 0.0, 0.0)
