"""Base capability, transfer and contribution: what they measure, against other arithmetic."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import mutual_info_score

from helpers import tiny_llama
from suture.errors import SutureError
from suture.inference.reading import load_reader
from suture.patch import open_model
from suture.suites import load_suite, measure
from suture.suites.contribution import (
    SCORES,
    ffn_share,
    lacking,
    mutual_information,
    token_prediction,
)
from suture.suites.passages import joined
from suture.suites.prompts import prompts
from suture.training.classifier import FineTuning, fine_tune
from suture.training.documents import TextSource, documents, held_out, sections
from training_corpus import tiny_model

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
TINY = {"passages": 3, "length": 200}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models on one corpus, a list of its texts and one of other domains."""
    folder = tmp_path_factory.mktemp("base")
    for name, kind, shape in (
        ("vanilla", "decoder", {}),
        ("cea", "decoder", {"outer_ratio": 0.25}),
        ("bert", "encoder", {"outer_ratio": 0.0}),
    ):
        tiny_model(folder / name, kind, steps=30, **shape)
    (folder / "other.txt").write_text("We sell 3 apples, 5 pears & 7 plums! " * 60)
    (folder / "more.txt").write_text("Numbers: 1 2 3 4 5 6 7 8 9. " * 60)
    domains = [{"name": "shop", "files": "other.txt"}, {"name": "sums", "files": "more.txt"}]
    (folder / "domains.yaml").write_text(yaml.safe_dump({"texts": domains}))
    trained = [{"name": "prose", "files": "vanilla/a.txt"}]
    (folder / "texts.yaml").write_text(yaml.safe_dump({"texts": trained}))
    return folder


def options(home: Path, **others: Any) -> dict[str, Any]:
    return {
        "root": str(home),
        "trained": str(home / "texts.yaml"),
        "held_out": 0.2,
        **TINY,
        **others,
    }


@pytest.mark.parametrize("name", ["vanilla", "cea", "bert"])
def test_the_loss_is_lower_on_what_was_trained_on(home: Path, name: str) -> None:
    found = measure(
        "base-capability", open_model(home / name / "model"), data=home / "domains.yaml",
        options=options(home), device="cpu",
    )  # fmt: skip
    assert list(found.metrics) == ["out_loss", "in_loss", "shop_loss", "sums_loss", "prose_loss"]
    assert found.metrics["in_loss"] == found.metrics["prose_loss"]
    both = (found.metrics["shop_loss"] + found.metrics["sums_loss"]) / 2
    assert found.metrics["out_loss"] == pytest.approx(both)
    assert found.metrics["in_loss"] < found.metrics["out_loss"] - 1
    assert set(found.better.values()) == {"lower"}
    assert len(found.rows) == 9
    assert found.model["identity"] == "fingerprint"


def test_every_domain_counts_the_same(home: Path) -> None:
    source = open_model(home / "cea" / "model")
    with pytest.raises(SutureError) as caught:
        measure("base-capability", source, data=home / "domains.yaml",
                options=options(home, passages=500))  # fmt: skip
    assert caught.value.code == "E952"
    assert "passages=" in str(caught.value.fix)
    twice = [{"name": "shop", "files": "other.txt"}] * 2
    (home / "twice.yaml").write_text(yaml.safe_dump({"texts": twice}))
    with pytest.raises(SutureError, match="E951"):
        measure("base-capability", source, data=home / "twice.yaml", options=TINY)
    with pytest.raises(SutureError, match="E950"):
        measure("base-capability", source)


def test_passages_follow_one_another() -> None:
    texts = ["word " * 100, "one", "two", "three", "word " * 30]
    found = joined(texts, 200)
    assert all(100 <= len(text) <= 420 for text in found)
    assert "one\n\ntwo\n\nthree" in "\n\n".join(found)
    assert joined(["short"], 200) == []


@pytest.mark.parametrize("name", ["cea", "bert"])
def test_a_task_that_words_decide_is_learnt(home: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    words = {"yes": "bread loaf bakes".split(), "no": "fox dog quick".split()}
    rows = [
        {"text": " ".join(rng.choice(words[label], 6)), "label": label}
        for label in ("yes", "no") * 90
    ]
    for part, some in (("train", rows[:140]), ("test", rows[140:])):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (home / f"{part}.jsonl").write_text(lines)
        (home / f"{part}.tsv").write_text("".join(f"{r['label']}\t{r['text']}\n" for r in some))
    given = {"train": str(home / "train.jsonl"), "epochs": 4, "rates": [1e-4, 3e-2]}
    source = open_model(home / name / "model")
    before = source.fingerprint()
    found = measure("transfer", source, data=home / "test.jsonl", options=given, device="cpu")
    assert found.metrics["transfer_accuracy"] > 0.9
    assert len(found.rows) == 40
    assert open_model(home / name / "model").fingerprint() == before
    by_number = {**given, "train": str(home / "train.tsv"), "text": 1, "label": 0}
    again = measure("transfer", source, data=home / "test.tsv", options=by_number, device="cpu")
    assert [row.scores for row in again.rows] == [row.scores for row in found.rows]


@pytest.mark.parametrize("scope", ["full", "probe"])
def test_a_probe_leaves_the_model_alone(home: Path, scope: str) -> None:
    reader = load_reader(open_model(home / "cea" / "model"), device="cpu")
    texts, labels = ["fox", "dog", "bread", "loaf"] * 5, ["a", "a", "b", "b"] * 5
    texts = [f"{text} {i}" for i, text in enumerate(texts)]
    config = FineTuning(epochs=1, rates=(1e-2,), scope=scope)
    found = fine_tune(reader, texts, labels, config)
    pairs = zip(reader.model.model.parameters(), found.model.trunk.parameters(), strict=True)
    same = [torch.equal(before, after) for before, after in pairs]
    assert all(same) if scope == "probe" else not any(same)
    assert found.model.head.weight.abs().sum() > 0
    assert (found.labels, found.rate) == (("a", "b"), 1e-2)


@pytest.mark.parametrize(
    ("test", "options", "code"),
    [
        ('{"text": "x", "label": "c"}\n', {"train": "train"}, "E957"),
        ('{"text": "z", "label": "a"}\n', {"train": "train", "limit": 1}, "E955"),
        ('{"text": "x", "label": "a"}\n', {"train": "train", "label": "lable"}, "E958"),
        ('{"text": "x", "label": "a"}\n', {}, "E956"),
    ],
)
def test_rows_that_cannot_be_transferred_to(
    home: Path, tmp_path: Path, test: str, options: dict[str, Any], code: str
) -> None:
    (tmp_path / "test.jsonl").write_text(test)
    train = tmp_path / "train.jsonl"
    train.write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n')
    options = {key: str(train) if value == "train" else value for key, value in options.items()}
    with pytest.raises(SutureError) as caught:
        measure("transfer", open_model(home / "cea" / "model"), data=tmp_path / "test.jsonl",
                options=options, device="cpu")  # fmt: skip
    assert caught.value.code == code
    assert caught.value.fix


def test_mutual_information_is_known_and_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 7, 500), rng.integers(0, 5, 500)
    assert mutual_information(x, y) == pytest.approx(mutual_info_score(x, y))
    y = x % 4
    fair = np.repeat(np.arange(8), 50)
    assert mutual_information(fair, fair % 4) == pytest.approx(np.log(4))
    assert mutual_information(fair, np.zeros_like(fair)) == pytest.approx(0)
    # a channel that is right three times in four: ln 2 - H(1/4)
    truth = np.repeat([0, 1], 400)
    said = np.where(np.arange(800) % 4 == 0, 1 - truth, truth)
    want = np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    assert mutual_information(truth, said) == pytest.approx(want)


def test_token_prediction_is_one_where_states_are_apart() -> None:
    rng = np.random.default_rng(0)
    tokens = np.repeat([3, 5, 9, 11], [60, 60, 60, 10])
    apart = np.eye(4, dtype=np.float32)[np.searchsorted([3, 5, 9, 11], tokens)]
    states = apart * rng.uniform(0.5, 9.0, (len(tokens), 1)).astype(np.float32)  # length is nothing
    assert token_prediction(states, tokens, states, tokens, 50) == 1.0
    assert token_prediction(states, tokens, states[:60], np.full(60, 5), 50) == 0.0
    assert token_prediction(states, tokens, states, tokens, 61) is None
    noise = rng.standard_normal((180, 4)).astype(np.float32)
    chance = token_prediction(noise, tokens[:180], noise, tokens[:180], 50)
    assert chance is not None
    assert 0.2 < chance < 0.6


def test_the_share_is_net_and_needs_every_site() -> None:
    scores = {"m0": 1.0, "a1": 1.5, "m1": 1.4, "a2": 1.6, "m2": 2.0}
    assert ffn_share(scores) == pytest.approx((-0.1 + 0.4) / 1.0)
    assert ffn_share({name: -value for name, value in scores.items()}) is None
    assert ffn_share({name: scores[name] for name in ("m0", "a1", "m1", "m2")}) is None


@pytest.mark.parametrize("name", ["vanilla", "cea", "bert"])
def test_contribution_reads_every_site(home: Path, name: str) -> None:
    given = {"root": str(home), "held_out": 0.2, "passages": 20, "length": 200, "clusters": 8,
             "least": 5}  # fmt: skip
    found = measure(
        "contribution", open_model(home / name / "model"), data=home / "texts.yaml",
        options=given, device="cpu",
    )  # fmt: skip
    assert [row.item for row in found.rows] == ["m0", "a1", "m1", "a2", "m2"]
    by_site = {row.item: row.scores for row in found.rows}
    if name == "bert":  # no outer FFN: its sub-layer is not there
        assert by_site["a1"] == by_site["m1"]
        assert found.metrics.get("ffn_share_tp", 0.0) == 0.0
        assert by_site["m0"]["mi_corrected"] < 0.1  # a mask says nothing of what it hides
    else:
        assert by_site["m0"]["mi_corrected"] > 0.5  # its own token says something of the next
        assert by_site["a1"] != by_site["m1"]
    for score in SCORES:  # a score that the layers do not raise has no share
        share = ffn_share({row.item: row.scores[score] for row in found.rows})
        assert found.metrics.get(f"ffn_share_{score}") == share
    assert found.metrics["gain_mi"] == by_site["m2"]["mi"] - by_site["m0"]["mi"]
    assert set(found.metrics) == set(found.derived)


def test_a_share_that_is_not_there_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("suture.suites.contribution.note", told.append)
    given = {"root": str(home), "held_out": 0.2, "passages": 3, "length": 200, "clusters": 8,
             "least": 5000}  # fmt: skip
    found = measure(
        "contribution", open_model(home / "cea" / "model"), data=home / "texts.yaml",
        options=given, device="cpu",
    )  # fmt: skip
    assert "ffn_share_tp" not in found.metrics
    assert any("no ffn_share_tp: no token has as many states" in line for line in told)
    assert lacking({"m0": 1.0, "a1": 0.5, "m1": 0.75}) is not None
    assert lacking({"m0": 0.5, "a1": 0.5, "m1": 0.75}) is None


@pytest.mark.parametrize(
    ("changes", "texts", "told"),
    [
        ({"held_out": 0.3}, "texts", "held_out=0.2"),
        ({}, "cut", "domain 'prose'"),
    ],
)
@pytest.mark.parametrize("suite", ["base-capability", "features", "contribution"])
def test_text_that_was_not_held_out_is_refused(
    home: Path, suite: str, changes: dict[str, Any], texts: str, told: str
) -> None:
    cut = [{"name": "prose", "files": "vanilla/a.txt", "most": 50_000}]
    (home / "cut.yaml").write_text(yaml.safe_dump({"texts": cut}))
    (home / "one.yaml").write_text(yaml.safe_dump({"texts": [{"name": "x", "files": "more.txt"}]}))
    data = home / (f"{texts}.yaml" if suite == "contribution" else "one.yaml")
    given = {**options(home), "passages": 1, "length": 100, **changes}
    trained = given.pop("trained")
    if suite != "contribution":
        given["trained"] = trained.replace("texts", texts)
    if suite == "features":
        given["teacher"] = str(home / "vanilla" / "model")
    with pytest.raises(SutureError) as caught:
        measure(suite, open_model(home / "cea" / "model"), data=data, options=given, device="cpu")
    assert caught.value.code == "E939"
    assert told in str(caught.value)


def test_rows_that_are_measured_are_not_trained_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("suture.suites.transfer.note", told.append)
    rows = [{"text": f"fox {i}", "label": "ab"[i % 2]} for i in range(12)]
    for name, some in (("train", rows), ("test", [{**rows[0], "text": "FOX  0"}])):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    source = open_model(home / "cea" / "model")
    given = {"train": str(tmp_path / "train.jsonl"), "epochs": 1, "rates": [1e-3]}
    measure("transfer", source, data=tmp_path / "test.jsonl", options=given, device="cpu")
    assert "1 of 12 rows to train on stand in --data too" in told[0]
    with pytest.raises(SutureError, match="E956") as caught:
        measure("transfer", source, data=tmp_path / "train.jsonl", options=given, device="cpu")
    assert "every row" in caught.value.what


@pytest.mark.parametrize("name", ["base-capability", "contribution", "features", "transfer"])
def test_what_is_only_read_asks_for_no_replies(name: str) -> None:
    with pytest.raises(SutureError, match="E570"):
        prompts(name, data=ROOT / "recipes" / "data" / "domains.yaml")


def test_contribution_reads_what_was_held_out(home: Path) -> None:
    """As the paper does: states of text that a model was trained on would flatter wide layers."""
    source = TextSource(name="prose", files=(home / "vanilla" / "a.txt",))
    kept = "\n".join(
        part for d in documents(source) for part in sections(d.text) if held_out(part, 0.2)
    )
    suite = load_suite("contribution", {"root": str(home), "held_out": 0.2, **TINY})
    assert all(
        item.inside and item.prompt in kept for item in suite.read([home / "texts.yaml"], None)
    )
    whole = load_suite("contribution", {"root": str(home), "whole": True, **TINY})
    items = whole.read([home / "domains.yaml"], None)
    assert [item.inside for item in items] == [False] * 6
    with pytest.raises(SutureError, match="E950"):
        suite.read([], None)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data sets are not here")
def test_the_shipped_lists_have_the_passages_that_the_page_asks_for() -> None:
    recipes = ROOT / "recipes" / "data"
    page = (ROOT / "docs/jobs/pretrain.md").read_text("utf-8")
    (asked,) = {int(n) for n in re.findall(r"passages=(\d+)", page)}
    given = {"root": str(SHARED), "passages": asked}
    suite = load_suite("base-capability", {**given, "trained": str(recipes / "texts.yaml")})
    found = suite.read([recipes / "domains.yaml"], None)
    assert len(found) % asked == 0


def test_a_stranger_has_no_sites(home: Path, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "llama", vocab=300)
    given = {"root": str(home), "held_out": 0.2, **TINY}
    with pytest.raises(SutureError, match="E960"):
        measure("contribution", open_model(tmp_path / "llama"), data=home / "texts.yaml",
                options=given)  # fmt: skip
    with pytest.raises(SutureError, match="E961"):
        measure("contribution", open_model(home / "cea" / "model"), data=home / "texts.yaml",
                options={**given, "clusters": 5000})  # fmt: skip
