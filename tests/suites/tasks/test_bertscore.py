"""BERTScore: against loops over single pairs with transformers' own forward, and in the suite."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from fakes import Mock
from helpers import tiny_llama, write_jsonl
from suture.errors import SutureError
from suture.inference.states import StateModel, usual_layer
from suture.ledger import Measurement, Role, compare, interval_of
from suture.patch import open_model
from suture.suites import measure, rescore
from suture.suites.tasks.bertscore import Bertscorer
from tiny_families import tiny_family

PAIRS: list[tuple[str, list[str]]] = [
    ("How do I bake a loaf of bread?", ["How do I bake bread?"]),
    ("no", ["I cannot help with that request, but here is a short list of ideas."]),
    ("The answer is yes.", ["The answer is no.", "The answer is yes. The answer is yes."]),
    ("the quick brown fox jumps over the lazy dog", ["the lazy dog", "a quick fox"]),
    ("Sure, here is a short list.", ["Sure, here is a short list."]),
    ("", ["The answer is no."]),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT whose tokenizer puts a token before and one behind every text."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    path = tiny_family(tmp_path_factory.mktemp("bert") / "m", "bert", loud=8.0, num_hidden_layers=3)
    file = str(path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A <|end|>", special_tokens=[("<|user|>", 1), ("<|end|>", 0)]
    )
    tokenizer.save(file)
    return path


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "m", layers=3, vocab=300, seed=2)


def slowly(
    folder: Path, pairs: Sequence[tuple[str, Sequence[str]]], layer: int, idf: bool
) -> list[tuple[float, float, float]]:
    """One text, one token, one cosine at a time, as the paper writes it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    frame = {tokenizer("x")["input_ids"][0], tokenizer("x")["input_ids"][-1]} & {0, 1}
    references = [tokenizer(one)["input_ids"] for _, known in pairs for one in known]
    having = Counter(token for ids in references for token in set(ids))

    def weight(token: int) -> float:
        if token in frame:
            return 0.0
        return math.log((len(references) + 1) / (having[token] + 1)) if idf else 1.0

    def read(text: str) -> list[tuple[float, torch.Tensor]]:
        ids = tokenizer(text)["input_ids"]
        if not ids:
            return []
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        return [(weight(k), h) for k, h in zip(ids, out.hidden_states[layer][0], strict=True)]

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / (a.norm() * b.norm())).item())

    def side(these: Any, those: Any) -> float:
        total = sum(w for w, _ in these)
        return sum(w * max(cosine(h, other) for _, other in those) for w, h in these) / total

    found = []
    for reply, known in pairs:
        best = (0.0, 0.0, 0.0)
        for one in known:
            mine, right = read(reply), read(one)
            if sum(w for w, _ in mine) == 0:
                continue
            p, r = side(mine, right), side(right, mine)
            f = 2 * p * r / (p + r) if p + r > 0 else 0.0
            best = max(best, (p, r, f), key=lambda score: score[2])
        found.append(best)
    return found


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize(("layer", "idf"), [(0, False), (2, False), (3, False), (2, True)])
def test_it_is_what_loops_over_pairs_give(
    kind: str, layer: int, idf: bool, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    found = Bertscorer(StateModel(open_model(folder), layer), idf).score(PAIRS)
    for mine, slow in zip(found, slowly(folder, PAIRS, layer, idf), strict=True):
        assert mine == pytest.approx(slow, abs=2e-5)
    assert found[4] == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)  # an identical reply
    assert found[5] == (0.0, 0.0, 0.0)  # no reply
    assert found[0][2] < 0.999
    assert found[0][0] != pytest.approx(found[0][1], abs=1e-4)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_company_and_order_change_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    scorer = Bertscorer(StateModel(open_model(request.getfixturevalue(kind))))
    together = scorer.score(PAIRS)
    alone = [scorer.score([pair])[0] for pair in PAIRS]
    backwards = scorer.score(PAIRS[::-1])[::-1]
    for one, two, three in zip(together, alone, backwards, strict=True):
        assert one == pytest.approx(two, abs=1e-5)
        assert one == pytest.approx(three, abs=1e-5)


def test_blanks_at_the_ends_do_not_count(encoder: Path, tmp_path: Path) -> None:
    one, two, three = Bertscorer(StateModel(open_model(encoder))).score(
        [(" a dog\n", ["the lazy dog"]), ("a dog", ["  the lazy dog "]), (" \n", ["the dog"])]
    )
    assert one == two
    assert three == (0.0, 0.0, 0.0)
    # the authors' code puts a blank before texts for GPT-2 and RoBERTa
    gpt2 = StateModel(open_model(tiny_family(tmp_path / "gpt2", "gpt2")))
    assert Bertscorer(gpt2)._plain("a dog ") == " a dog"
    assert Bertscorer(gpt2)._plain(" ") == ""


def test_turned_round_precision_is_recall(encoder: Path) -> None:
    scorer = Bertscorer(StateModel(open_model(encoder)))
    reply, reference = PAIRS[0][0], PAIRS[0][1][0]
    (p, r, f), (q, s, g) = scorer.score([(reply, [reference]), (reference, [reply])])
    assert (p, r, f) == pytest.approx((s, q, g), abs=1e-6)


def test_the_layer_is_chosen_or_said(encoder: Path) -> None:
    assert [usual_layer(n) for n in (1, 2, 6, 12, 24)] == [1, 2, 5, 9, 18]
    assert StateModel(open_model(encoder)).layer == 2
    for layer in (4, -1):
        with pytest.raises(SutureError, match="go from 0") as caught:
            StateModel(open_model(encoder), layer)
        assert caught.value.code == "E590"


def test_heads_and_poolers_do_not_matter(encoder: Path, tmp_path: Path) -> None:
    """The published BERT has a head that its declared class does not know."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "headed"
    shutil.copytree(encoder, folder)
    state = load_file(next(folder.glob("*.safetensors")))
    more = {
        "cls.seq_relationship.weight": torch.zeros(2, 16),
        "bert.pooler.dense.weight": torch.zeros(16, 16),
        "bert.pooler.dense.bias": torch.zeros(16),
    }
    renamed = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in state.items()}
    for file in folder.glob("*.safetensors"):
        file.unlink()
    save_file({**renamed, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    one, two = (Bertscorer(StateModel(open_model(f))).score(PAIRS) for f in (encoder, folder))
    assert one == two
    strange = {"bert.encoder.layer.1.output.more.bias": torch.zeros(16)}
    lacking = {k: v for k, v in state.items() if "layer.1.output.dense.bias" not in k}
    for broken in ({**state, **strange}, lacking):
        save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(SutureError) as caught:
            Bertscorer(StateModel(open_model(folder))).score(PAIRS)
        assert caught.value.code in ("E115", "E116", "E502")


def test_models_without_one_stack_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SutureError) as caught:
        StateModel(open_model(tiny_family(tmp_path / "t5", "t5")))
    assert caught.value.code == "E590"


def test_long_texts_are_cut_and_end_as_they_should(encoder: Path, capsys: Any) -> None:
    from suture import progress

    model = StateModel(open_model(encoder))
    (long,) = model.tokens(["the lazy dog " * 60])
    assert len(long.ids) == model.context == 64
    assert long.cut
    assert (long.ids[0], long.ids[-1], sum(long.own)) == (1, 0, 62)
    progress.silent = False
    Bertscorer(model).score([("the lazy dog " * 60, ["the lazy dog"])])
    assert "1 texts are cut to the 64 tokens" in capsys.readouterr().err


TASK: dict[str, Any] = {
    "name": "comfort",
    "suite": "emotion",
    "aspect": "expression",
    "title": "a reply to somebody",
    "answer": {"kind": "text"},
    "prompts": {"zero-shot": [["{input}\nReply."]]},
    "metrics": [{"name": "rouge_l"}],
    "headline": "rouge_l",
}
RECORDS = [
    {"id": str(i), "text": f"somebody says {i}", "gold": one[1][0]} for i, one in enumerate(PAIRS)
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    file = tmp_path / "comfort.yaml"
    file.write_text(yaml.safe_dump(TASK))
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "r.jsonl", RECORDS)


def _measure(task: Path, data: Path, rule: Callable[[int], str], **more: Any) -> Measurement:
    cache = more.pop("cache", None)
    options = {"task": str(task), **more}
    return measure(
        "emotion",
        Mock(lambda item: rule(int(item.record.id))),
        data=data,
        options=options,
        cache=cache,
    )


def own(k: int) -> str:
    return PAIRS[k][0]


def test_it_is_measured_with_intervals(task: Path, data: Path, encoder: Path) -> None:
    found = _measure(task, data, own, scorer=str(encoder), scorer_layer=2)
    slow = slowly(encoder, [(reply, known[:1]) for reply, known in PAIRS], 2, False)
    for row, score in zip(found.rows, slow, strict=True):
        names = ("precision", "recall", "f1")
        mine = [row.scores[f"comfort.bertscore_{name}"] for name in names]
        assert mine == pytest.approx(score, abs=2e-5)
    mean = sum(score[2] for score in slow) / len(slow)
    assert found.metrics["comfort.bertscore_f1"] == pytest.approx(mean, abs=1e-5)
    low, high = interval_of(found, "comfort.bertscore_f1") or (1, 0)
    assert low < mean < high
    about = found.scorer["bertscore"]
    assert about["model"] == open_model(encoder).fingerprint()
    assert (about["layer"], about["idf"]) == (2, False)
    assert "comfort.bertscore_f1" not in _measure(task, data, own).metrics


def test_other_scorers_are_not_compared(
    task: Path, data: Path, encoder: Path, decoder: Path, tmp_path: Path
) -> None:
    one = _measure(task, data, own, scorer=str(encoder))
    same = shutil.copytree(encoder, tmp_path / "elsewhere")
    role = Role.target("emotion.comfort.bertscore_f1:higher")
    ledger = compare(
        [one], [_measure(task, data, lambda k: "the dog", scorer=str(same))], [], [role]
    )
    assert ledger.rows[0].n == len(PAIRS)
    for other in (
        {"scorer": str(decoder)}, {"scorer": str(encoder), "scorer_layer": 1},
        {"scorer": str(encoder), "scorer_idf": True},
    ):  # fmt: skip
        with pytest.raises(SutureError, match="differ in scorer") as caught:
            compare([one], [_measure(task, data, own, **other)], [], [role])
        assert caught.value.code == "E607"


def test_rows_that_the_policy_drops_have_no_score(task: Path, data: Path, encoder: Path) -> None:
    found = _measure(task, data, own, scorer=str(encoder), policy="drop")
    assert "comfort.bertscore_f1" not in found.rows[5].scores
    assert found.derived["comfort.bertscore_f1"]["n"] == 5


def test_scoring_again_needs_no_scoring_model(
    task: Path, data: Path, encoder: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(encoder, tmp_path / "moved"))
    old = _measure(task, data, own, scorer=str(moved))
    old.save(tmp_path / "m.json")
    shutil.rmtree(moved)
    again = rescore(tmp_path / "m.json")
    assert again.metrics == old.metrics
    assert again.scorer == old.scorer
    assert again.derived["comfort.bertscore_f1"] == old.derived["comfort.bertscore_f1"]


def test_scores_are_kept(
    task: Path, data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = _measure(task, data, own, scorer=str(encoder), scorer_idf=True, cache=cache)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(StateModel, "states", never)
    second = _measure(task, data, own, scorer=str(encoder), scorer_idf=True, cache=cache)
    assert first.metrics == second.metrics
    with pytest.raises(AssertionError):
        _measure(task, data, own, scorer=str(encoder), scorer_layer=1, cache=cache)


def test_what_does_not_fit_is_refused(
    task: Path, data: Path, encoder: Path, tmp_path: Path
) -> None:
    label = {**TASK, "answer": {"kind": "label", "labels": ["a", "b"]},
             "metrics": [{"name": "accuracy"}], "headline": "accuracy"}  # fmt: skip
    file = tmp_path / "label.yaml"
    file.write_text(json.dumps(label))
    for options in (
        {"task": str(file), "scorer": str(encoder)},
        {"task": str(task), "scorer_layer": 2},
    ):
        with pytest.raises(SutureError) as caught:
            measure(
                "emotion", Mock(lambda item: own(int(item.record.id))), data=data, options=options
            )
        assert caught.value.code == "E591"


def test_rarity_is_counted_in_all_references_that_are_asked(
    task: Path, data: Path, encoder: Path
) -> None:
    options = {"scorer": str(encoder), "scorer_idf": True}
    whole, part = (_measure(task, data, own, policy=p, **options) for p in ("abstain", "drop"))
    name = "comfort.bertscore_f1"
    for one, two in zip(whole.rows[:5], part.rows[:5], strict=True):
        assert one.scores[name] == two.scores[name]
    assert name not in part.rows[5].scores
