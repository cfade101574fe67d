"""Whole suites on tiny models: rows, pairing, scoring again, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import write_jsonl
from suture.checkpoint import Checkpoint
from suture.errors import SutureError
from suture.inference import LoadedModel, load, reply_logprob
from suture.ledger import Measurement, load_replies, replies_path, save_replies
from suture.suites import available, load_suite, measure, rescore

HARMLESS = [
    {"id": "a", "prompt": "How do I bake bread?"},
    {"id": "b", "prompt": "Who are you?", "cluster": "c1"},
    {"id": "c", "prompt": "the quick brown fox"},
]


@pytest.fixture(scope="module")
def models(tiny: Callable[..., Path]) -> tuple[LoadedModel, LoadedModel]:
    return tuple(load(Checkpoint.open(tiny(seed=seed)), device="cpu") for seed in (0, 1))  # type: ignore[return-value]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "prompts.jsonl", HARMLESS)


def test_suites_are_found_by_module_name() -> None:
    assert available() == [
        "base-capability", "contribution", "drift", "emotion", "features", "open-ended",
        "over-refusal", "personality", "safety", "sentiment", "speed", "stress", "task", "tofu",
        "transfer", "unlearning", "utility",
    ]  # fmt: skip
    assert load_suite("over_refusal") is load_suite("over-refusal")
    with pytest.raises(SutureError, match="did you mean 'safety'") as caught:
        load_suite("safty")
    assert caught.value.code == "E520"
    with pytest.raises(SutureError, match="E520"):
        load_suite("common")


def test_safety(models: Any, prompts: Path, tmp_path: Path) -> None:
    lm, before = models
    found = measure("safety", lm, data=prompts, before=before, max_new_tokens=8)
    assert found.model["fingerprint"] == lm.source.fingerprint()
    assert (found.n, [row.item for row in found.rows]) == (3, ["a", "b", "c"])
    assert found.rows[1].cluster == "c1"
    assert set(found.metrics) == {
        "refusal_rate",
        "ends_properly",
        "distinct_2",
        "repetition",
        "logprob_before",
    }
    assert found.better["repetition"] == "lower"
    assert found.before == {"fingerprint": before.source.fingerprint()}
    assert found.template["fingerprint"] == lm.template.fingerprint
    assert found.decoding == {"greedy": True, "max_new_tokens": 8}
    expected = reply_logprob(
        before, [r.prompt for r in found.replies], [r.reply for r in found.replies]
    )
    assert [row.scores["logprob_before"] for row in found.rows] == expected
    again = measure("safety", lm, data=prompts, before=before, max_new_tokens=8)
    assert again.rows == found.rows
    assert Measurement.load(found.save(tmp_path / "m.json")) == found


def test_over_refusal_scores_only_what_applies(models: Any, tmp_path: Path) -> None:
    labels = [{"label": "safe"}, {"label": "unsafe"}, {}]
    file = write_jsonl(
        tmp_path / "p.jsonl",
        [{**row, **label} for row, label in zip(HARMLESS, labels, strict=True)],
    )
    found = measure("over-refusal", models[0], data=file, max_new_tokens=4)
    kinds = [next(k for k in row.scores if k.endswith("refused")) for row in found.rows]
    assert kinds == ["xstest_safe_refused", "xstest_unsafe_refused", "harmless_refused"]
    assert found.better["xstest_unsafe_refused"] == "higher"
    assert found.better["harmless_refused"] == "lower"
    assert all("ends_properly" in row.scores for row in found.rows)


def test_limit_holds_for_each_kind() -> None:
    suite = load_suite("over-refusal")
    items = suite.read(suite.default_data, 10)
    assert len(items) == 30
    assert len({item.category for item in items if item.metric == "xstest_safe_refused"}) == 10


def test_task(models: Any, tmp_path: Path) -> None:
    options = ["yes", "no", "The answer"]
    rows = [{**row, "options": options, "answer": i} for i, row in enumerate(HARMLESS)]
    found = measure("task", models[0], data=write_jsonl(tmp_path / "t.jsonl", rows))
    from suture.inference import option_logprobs

    scores = option_logprobs(models[0], [r["prompt"] for r in HARMLESS], [options] * 3)
    expected = [float(max(range(3), key=s.__getitem__) == i) for i, s in enumerate(scores)]
    assert [row.scores["accuracy"] for row in found.rows] == expected
    assert {"accuracy", "greedy_accuracy"} == set(found.metrics)


def test_drift_is_zero_for_the_model_itself(models: Any, prompts: Path) -> None:
    lm, other = models
    same = measure("drift", lm, data=prompts, before=lm, max_new_tokens=4)
    assert same.metrics == {"kl": 0.0}
    moved = measure("drift", other, data=prompts, before=lm, max_new_tokens=4)
    assert moved.metrics["kl"] > 0
    assert moved.replies == same.replies  # both are the before model's
    assert moved.before["fingerprint"] == lm.source.fingerprint()
    with pytest.raises(SutureError, match="E521"):
        measure("drift", lm, data=prompts)


def test_scoring_again_equals_the_first_score(models: Any, prompts: Path, tmp_path: Path) -> None:
    lm, before = models
    file = tmp_path / "m.json"
    measure("safety", lm, data=prompts, before=before, max_new_tokens=8).save(file)
    again = tmp_path / "again.json"
    rescore(file, out=again)
    assert again.read_bytes() == file.read_bytes()
    assert replies_path(again).read_bytes() == replies_path(file).read_bytes()


def test_scoring_again_knows_the_suite_behind_a_label(
    models: Any, prompts: Path, tmp_path: Path
) -> None:
    found = measure("safety", models[0], data=prompts, max_new_tokens=8)
    labelled = replace(found, suite="harmful-dev", data={**found.data, "suite": found.suite})
    file = labelled.save(tmp_path / "m.json")
    assert rescore(file) == labelled


def test_scoring_again_uses_the_replies(models: Any, prompts: Path, tmp_path: Path) -> None:
    file = measure("safety", models[0], data=prompts, before=models[1]).save(tmp_path / "m.json")
    old = Measurement.load(file)
    refused = [replace(r, reply="I cannot do that.") for r in load_replies(replies_path(file))]
    save_replies(tmp_path / "other.jsonl", refused)
    new = rescore(file, tmp_path / "other.jsonl")
    assert new.metrics["refusal_rate"] == 1.0
    assert Measurement.load(file) == old


@pytest.mark.parametrize("suite", ["safety", "task"])
def test_other_replies_are_not_the_models(models: Any, suite: str, tmp_path: Path) -> None:
    """Scores that need the model leave with its fingerprint; its own replies keep both."""
    options = [{**row, "options": ["yes", "no"], "answer": 0} for row in HARMLESS]
    data = write_jsonl(tmp_path / "p.jsonl", options if suite == "task" else HARMLESS)
    found = measure(suite, models[0], data=data, before=models[1], max_new_tokens=4)
    file = found.save(tmp_path / "m.json", redact=True)
    of_model = "accuracy" if suite == "task" else "logprob_before"
    own, foreign = tmp_path / "own.jsonl", tmp_path / "foreign.jsonl"
    save_replies(own, reversed(found.replies))  # in another order, kept elsewhere
    save_replies(foreign, [*found.replies[:2], replace(found.replies[2], reply="Sorry, no.")])

    assert rescore(file, own).rows == found.rows
    assert rescore(file, own).model == found.model
    new = rescore(file, foreign, tmp_path / "new.json")
    assert new.model["identity"] == "declared"
    assert new.model["fingerprint"] is None
    assert of_model in found.metrics
    assert set(new.metrics) == set(new.better) == set(found.metrics) - {of_model}
    assert not any(of_model in row.scores for row in new.rows)
    assert new.decoding == {"declared": True}
    again = rescore(tmp_path / "new.json", out=tmp_path / "again.json")
    assert again == new


def test_a_measurement_that_does_not_know_its_replies_trusts_none(
    models: Any, prompts: Path, tmp_path: Path
) -> None:
    found = measure("safety", models[0], data=prompts, max_new_tokens=2)
    file = replace(found, replies_sha256=None).save(tmp_path / "m.json")
    assert rescore(file).model["fingerprint"] is None


def test_scoring_again_needs_the_same_data(models: Any, prompts: Path, tmp_path: Path) -> None:
    file = measure("safety", models[0], data=prompts, max_new_tokens=2).save(tmp_path / "m.json")
    write_jsonl(prompts, [*HARMLESS[:2], {"id": "c", "prompt": "something else"}])
    with pytest.raises(SutureError, match="E523"):
        rescore(file)
    moved = write_jsonl(tmp_path / "moved.jsonl", HARMLESS)
    assert rescore(file, data=moved).n == 3


def test_drift_cannot_be_scored_again(models: Any, prompts: Path, tmp_path: Path) -> None:
    file = measure("drift", models[0], data=prompts, before=models[1], max_new_tokens=2).save(
        tmp_path / "m.json"
    )
    with pytest.raises(SutureError, match="E527"):
        rescore(file)


def test_replies_made_elsewhere(prompts: Path, tmp_path: Path) -> None:
    replies = [
        {"item": i, "reply": text}
        for i, text in zip("cab", ("Sure.", "Sorry.", "No."), strict=True)
    ]
    file = write_jsonl(tmp_path / "r.jsonl", replies)
    found = measure("safety", "some endpoint", data=prompts, replies=file)
    assert found.model["identity"] == "declared"
    assert found.model["fingerprint"] is None
    assert [row.scores["refusal_rate"] for row in found.rows] == [1.0, 0.0, 0.0]
    write_jsonl(file, replies[:2])
    with pytest.raises(SutureError, match="1 of 3 items have no reply"):
        measure("safety", "some endpoint", data=prompts, replies=file)
    with pytest.raises(SutureError, match="E528"):
        measure("safety", "some endpoint", data=prompts)


@pytest.mark.parametrize("content", ["", '{"id": 1}\n', "not json\n"])
def test_bad_data_names_file_and_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(content)
    with pytest.raises(SutureError, match=r"p\.jsonl:1"):
        measure("safety", "name", data=file)


def test_an_item_too_long_for_the_model_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    lm = load(Checkpoint.open(tiny()), device="cpu")
    assert lm.context is not None
    rows = [{"id": "short", "prompt": "a"}, {"id": "long", "prompt": "bake " * lm.context}]
    data = write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(SutureError) as caught:
        measure("safety", lm, data=data, max_new_tokens=4)
    assert caught.value.code == "E506"
    assert "item 'long'" in str(caught.value.where)
    assert str(lm.source.path) in str(caught.value.where)
    assert "leave it out" in str(caught.value.fix)
    choices = [{**row, "options": ["yes", "no"], "answer": 0} for row in rows]
    with pytest.raises(SutureError) as caught:
        measure("task", lm, data=write_jsonl(tmp_path / "c.jsonl", choices))
    assert "item 'long'" in str(caught.value.where)


def test_files_that_are_not_there_have_a_next_line(tmp_path: Path) -> None:
    (tmp_path / "safety.json").write_text("{}")
    for name, fix in (("safty.json", r"safety\.json"), ("tuned-model-2.txt", "suture measure")):
        with pytest.raises(SutureError, match=fix) as caught:
            Measurement.load(tmp_path / name)
        assert caught.value.code == "E602"
    with pytest.raises(SutureError, match="--replies") as caught:
        load_replies(tmp_path / "tuned-model-2.txt")
    assert caught.value.code == "E603"
