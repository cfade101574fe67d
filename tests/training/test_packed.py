"""Packed text: every token once, in blocks whose order follows from seed and step alone."""

from __future__ import annotations

import json
import shutil
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from helpers import write_tokenizer
from suture.errors import SutureError
from suture.inference.loading import load_tokenizer
from suture.training.documents import TextSource, documents, held_out, sections
from suture.training.loop import TrainConfig
from suture.training.objectives.masked import Ids, Masked
from suture.training.packed import Blocks, Packed, pack, packing_identity
from suture.training.vocabulary import TrainedTokenizer
from training_corpus import write_corpus


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, list[TextSource]]:
    folder = tmp_path_factory.mktemp("corpus")
    sources = write_corpus(folder)
    return pack(sources, TrainedTokenizer(vocabulary=300), 0.2, folder / "packed"), sources


def test_every_section_is_on_its_side_once(packed: tuple[Packed, list[TextSource]]) -> None:
    text, sources = packed
    coder = load_tokenizer(text.tokenizer)
    for number, part in enumerate(("train", "dev")):
        want = ""
        for source in sources:
            for document in documents(source):
                pieces = list(sections(document.text))
                sides = [held_out(piece, 0.2) for piece in pieces]
                for i, piece in enumerate(pieces):
                    if sides[i] == bool(number):
                        goes_on = i + 1 < len(pieces) and sides[i + 1] == sides[i]
                        want += piece if goes_on else piece + "<|end|>"
        assert coder.decode(text.tokens(part)) == want
        assert text.facts["tokens"][part] == len(text.tokens(part)) > 0
    told = {source["name"]: source for source in text.facts["sources"]}
    assert told["prose"]["licence"] == "ours"
    assert told["rows"]["documents"] == 60
    assert sum(s["tokens"]["train"] for s in told.values()) == text.facts["tokens"]["train"]


def test_packing_again_gives_the_same_bytes(
    packed: tuple[Packed, list[TextSource]], tmp_path: Path
) -> None:
    text, sources = packed
    again = pack(sources, TrainedTokenizer(vocabulary=300), 0.2, tmp_path / "packed")
    names = [p.relative_to(text.folder) for p in sorted(text.folder.rglob("*")) if p.is_file()]
    assert len(names) == 5
    for name in names:
        assert (again.folder / name).read_bytes() == (text.folder / name).read_bytes()


def test_a_folder_of_other_text_is_refused(
    packed: tuple[Packed, list[TextSource]], tmp_path: Path
) -> None:
    text, sources = packed
    same = pack(sources, TrainedTokenizer(vocabulary=300), 0.2, text.folder)
    assert same.identity == text.identity
    with pytest.raises(SutureError) as caught:
        pack(sources[:1], TrainedTokenizer(vocabulary=300), 0.2, text.folder)
    assert caught.value.code == "E944"
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "packed.json").write_text('{"tokens": {}}')
    with pytest.raises(SutureError) as caught:
        Packed.open(torn)
    assert caught.value.code == "E944"


def test_a_given_tokenizer_is_copied_and_needs_an_end(tmp_path: Path) -> None:
    sources = write_corpus(tmp_path, paragraphs=20)
    write_tokenizer(tmp_path / "own", vocab=300)
    text = pack(sources, tmp_path / "own", 0.2, tmp_path / "packed")
    assert text.facts["end"] == 0
    assert (text.tokenizer / "tokenizer.json").read_bytes() == (
        tmp_path / "own" / "tokenizer.json"
    ).read_bytes()
    facts = json.loads((tmp_path / "own" / "tokenizer_config.json").read_text())
    del facts["eos_token"]
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(facts))
    with pytest.raises(SutureError) as caught:
        pack(sources, tmp_path / "own", 0.2, tmp_path / "other")
    assert caught.value.code == "E945"
    assert not (tmp_path / "other").exists()


def test_a_long_document_has_one_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sections are tokenized at once."""
    monkeypatch.setattr("suture.training.packed._TOGETHER", 3)
    sources = write_corpus(tmp_path)[:1]
    text = pack(sources, TrainedTokenizer(vocabulary=300), 0.2, tmp_path / "packed")
    (document,) = documents(sources[0])
    sides = [held_out(piece, 0.2) for piece in sections(document.text)]
    assert len(sides) > 6
    turns = sum(one != other for one, other in pairwise(sides))
    ends = sum(int((text.tokens(part) == text.facts["end"]).sum()) for part in ("train", "dev"))
    assert ends == turns + 1


def test_how_files_are_read_is_a_part_of_the_text(tmp_path: Path) -> None:
    """The same bytes as text and as rows."""
    (tmp_path / "a.txt").write_text("text\n" + "a loaf of bread\n" * 9)
    shutil.copy(tmp_path / "a.txt", tmp_path / "a.csv")
    shutil.copy(tmp_path / "a.txt", tmp_path / "a.pdf")
    asked = [TextSource(name="x", files=(tmp_path / name,)) for name in ("a.txt", "a.csv", "a.pdf")]
    found = [packing_identity([one], TrainedTokenizer(), 0.2) for one in asked[:2]]
    assert found[0] != found[1]
    with pytest.raises(SutureError, match="E940"):
        packing_identity(asked[2:], TrainedTokenizer(), 0.2)


def test_a_text_that_holds_nothing_out_is_refused_before_it_is_packed(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"loaf {i}"}) + "\n" for i in range(20))
    (tmp_path / "a.jsonl").write_text(rows)
    sources = [TextSource(name="rows", files=(tmp_path / "a.jsonl",))]
    with pytest.raises(SutureError) as caught:
        pack(sources, TrainedTokenizer(vocabulary=300), 1e-6, tmp_path / "packed")
    assert caught.value.code == "E943"
    assert "of 20 sections" in caught.value.what
    share = float(str(caught.value.fix).split("held_out=")[1].split(",")[0])
    assert not (tmp_path / "packed").exists()
    text = pack(sources, TrainedTokenizer(vocabulary=300), share, tmp_path / "packed")
    assert text.facts["tokens"]["dev"]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path, name: str) -> None:
    sources = write_corpus(tmp_path, paragraphs=20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SutureError) as caught:
        pack(sources, tmp_path / name, 0.2, tmp_path / "packed")
    assert caught.value.code == "E505"
    assert {"nowhere": "no such folder", "empty": "holds none"}[name] in caught.value.what


def settings(**changes: object) -> TrainConfig:
    return TrainConfig.load({"steps": 5, "batch_tokens": 32, "compute": "float32", **changes})


def test_an_epoch_reads_every_block_once_and_resumes_anywhere() -> None:
    tokens = np.arange(8 * 103 + 5, dtype="<u2")
    blocks = Blocks(tokens, 8, identity="x")
    config = settings(accumulate=2, epochs=2, steps=None, seed=3)
    assert len(blocks) == 103
    assert blocks.resolved(config).steps == 24  # 103 blocks, 8 in each step
    steps = list(islice(blocks.steps(config, 0), 24))
    for epoch in (steps[:12], steps[12:]):
        rows = np.concatenate([b.ids.numpy() for step in epoch for b in step.batches])
        assert rows.shape == (96, 8)
        assert len(np.unique(rows[:, 0])) == 96
        assert (rows - rows[:, :1] == np.arange(8)).all()
        assert [step.last for step in epoch] == [False] * 11 + [True]
    for first in (1, 11, 12, 13, 23):
        again = next(blocks.steps(config, first))
        assert (again.before, again.epoch, again.last) == (
            steps[first].before, steps[first].epoch, steps[first].last,
        )  # fmt: skip
        for one, other in zip(again.batches, steps[first].batches, strict=True):
            assert (one.ids == other.ids).all()
            assert (one.labels == other.labels).all()
    other = next(blocks.steps(settings(accumulate=2, seed=4), 0))
    assert not (other.batches[0].ids == steps[0].batches[0].ids).all()


def test_a_corpus_shorter_than_a_step_is_refused() -> None:
    blocks = Blocks(np.arange(40, dtype="<u2"), 8, identity="x")
    blocks.check(settings(batch_tokens=40), "text")
    with pytest.raises(SutureError) as caught:
        blocks.check(settings(batch_tokens=48), "text")
    assert caught.value.code == "E943"
    assert "40 tokens, 5 blocks of 8" in caught.value.what


IDS = Ids(100, 2, (0, 1, 2))


def test_masks_are_fifteen_percent_and_eighty_ten_ten() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 100, (400, 128))
    read = ids.copy()
    labels = Masked().mask(read, 0, np.arange(400), ids=IDS, seed=0)
    chosen = labels != -100
    assert (labels[chosen] == ids[chosen]).all()
    assert (read[~chosen] == ids[~chosen]).all()
    assert not np.isin(ids[chosen], IDS.special).any()
    n = chosen.sum()
    plain = (~np.isin(ids, IDS.special)).sum()
    assert abs(n / plain - 0.15) < 4 * (0.15 * 0.85 / plain) ** 0.5
    for share, found in (
        (0.8, (read[chosen] == IDS.mask).mean()),
        (0.1 + 0.1 / 100, (read[chosen] == ids[chosen]).mean()),
    ):
        assert abs(found - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_masks_are_fresh_every_epoch_and_known_by_the_block() -> None:
    ids = np.random.default_rng(0).integers(3, 100, (6, 64))

    def masked(epoch: int, numbers: list[int], seed: int = 0) -> np.ndarray:
        read = ids[numbers].copy()
        return Masked().mask(read, epoch, np.asarray(numbers), ids=IDS, seed=seed)

    whole = masked(0, [0, 1, 2, 3, 4, 5])
    assert (masked(0, [4, 2]) == whole[[4, 2]]).all()
    assert not (masked(1, [0, 1, 2, 3, 4, 5]) == whole).all()
    assert not (masked(0, [0, 1, 2, 3, 4, 5], seed=1) == whole).all()
