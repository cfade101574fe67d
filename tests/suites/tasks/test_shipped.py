"""Every task that comes with the package: it loads, its words are complete, its data fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from suture.data.tasks.datasets import dataset, read_split
from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.suites.answerers import Baseline
from suture.suites.common import thin
from suture.suites.measuring import measure
from suture.suites.tasks.metrics import metric
from suture.suites.tasks.parsing import parse
from suture.suites.tasks.rendering import canonical, render, shown_labels
from suture.suites.tasks.spec import load_task, shipped
from suture.suites.tasks.suite import gold_of

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
FULL = Record(
    id="1", text="the text", context=[{"speaker": "B", "text": "before"}], speaker="A",
    aspect="a thing", caption="a picture", audio_desc="a tone", video_desc="a face",
)  # fmt: skip


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_task_is_whole(name: str) -> None:
    spec = load_task(name)
    assert spec.name == name
    assert dataset(spec.dataset or "").name == spec.dataset
    for one in spec.metrics:
        metric(spec, one)
    assert all(len(paraphrases) >= 3 for paraphrases in spec.prompts.values())
    assert (spec.suite == "emotion") == (spec.aspect is not None)
    said: list[str] = []
    for paraphrases in spec.prompts.values():
        for turns in paraphrases:
            filled = render(spec, FULL, turns, shown_labels(spec.answer))
            assert not [turn for turn in filled if "{" in turn or "}" in turn]
            assert FULL.text in "\n".join(filled)
            said.append("\n".join(filled))
    assert len(set(said)) == len(said)


def test_every_aspect_holds_a_whole_task_out() -> None:
    specs = [load_task(name) for name in shipped()]
    for aspect in ("perception", "cognition", "expression"):
        own = [spec for spec in specs if spec.aspect == aspect]
        assert any(spec.held_out for spec in own)
        assert any(not spec.held_out for spec in own)


def _on_disk() -> list[str]:
    if not SHARED.is_dir():
        return []
    return [n for n in shipped() if "test" in dataset(load_task(n).dataset or "").on_disk(SHARED)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data sets are not here")
@pytest.mark.parametrize("name", _on_disk())
def test_right_answers_are_read_as_themselves(name: str) -> None:
    spec = load_task(name)
    records = thin(read_split(spec.dataset or "", SHARED, "test"), 200)
    for record in records:
        gold = gold_of(spec, record)
        assert gold is not None
        right = gold[0] if spec.answer.kind == "text" and isinstance(gold, list) else gold
        found = parse(spec.answer, canonical(spec.answer, gold), record)
        assert found.how == "strict", record.id
        if spec.answer.kind in ("labels", "spans", "pairs"):
            assert sorted(map(str, found.value)) == sorted({str(one): 0 for one in right})
        elif spec.answer.kind == "text":
            assert found.value == right.strip()
        else:
            assert found.value == right


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data sets are not here")
@pytest.mark.parametrize(("year", "percent"), [(2015, 58.53), (2017, 46.43)])
def test_the_majority_of_masc(year: int, percent: float) -> None:
    task = f"masc-twitter{year}"
    found = measure("sentiment", Baseline("majority"), data=SHARED, options={"task": [task]})
    assert round(100 * found.metrics[f"{task}.accuracy"], 2) == percent
    assert found.metrics[f"{task}.parsed_strict"] == 1


def test_a_task_like_another_on_other_data(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("like: sst2\nname: mine\ntitle: polarity of my reviews\ndataset: null\n")
    spec, base = load_task(str(mine)), load_task("sst2")
    assert (spec.name, spec.dataset) == ("mine", None)
    assert (spec.prompts, spec.answer, spec.metrics) == (base.prompts, base.answer, base.metrics)
    mine.write_text("like: sst3\nname: mine\n")
    with pytest.raises(SutureError) as caught:
        load_task(str(mine))
    assert (caught.value.code, "sst2" in str(caught.value.fix)) == ("E574", True)
    mine.write_text("like: sst2\nname: mine\nheadlin: accuracy\n")
    with pytest.raises(SutureError) as caught:
        load_task(str(mine))
    assert (caught.value.code, caught.value.where) == ("E701", f"{mine}:3")
