"""The table of data sets: names, files, views; and the counts of every set that is here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from suture.data.tasks.datasets import dataset, datasets, on_disk, read_split
from suture.errors import SutureError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the public data sets are not here")


def test_a_folder_of_data_sets_a_data_set_and_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "sst2"
    folder.mkdir()
    (folder / "test.tsv").write_text("dull\t0\n")
    by_root = read_split("sst2", tmp_path)
    assert by_root == read_split("sst2", folder) == read_split("sst2", folder / "test.tsv")
    assert by_root[0].gold == "negative"
    assert on_disk(tmp_path) == {"sst2": {"test": [folder / "test.tsv"]}}
    assert on_disk(folder) == {}  # a train.tsv by itself may be anyone's


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SutureError) as caught:
        read_split("goemotions", tmp_path)
    assert caught.value.code == "E351"
    assert "test.tsv" in caught.value.what
    (tmp_path / "test.tsv").write_text("Oh\t0\tid\n")
    with pytest.raises(SutureError) as caught:
        read_split("goemotions", tmp_path)
    assert (caught.value.code, "labels.txt" in caught.value.what) == ("E351", True)
    (tmp_path / "labels.txt").write_text("joy\n")
    assert read_split("goemotions", tmp_path)[0].gold == ["joy"]


@pytest.mark.parametrize(
    ("name", "split", "code", "words"),
    [
        ("sst3", "test", "E350", "'sst2'"),
        ("meld:emotions", "test", "E362", "none"),
        ("ecf:utterances", "test", "E362", "'ecf:utterance'"),
        ("eq-bench", "train", "E361", "test"),
    ],
)
def test_names_that_are_none(name: str, split: str, code: str, words: str) -> None:
    with pytest.raises(SutureError) as caught:
        read_split(name, Path(__file__).parent, split)
    assert caught.value.code == code
    assert words in str(caught.value.fix)


def test_options_of_a_split_do_not_hold_for_a_file_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("video_id,clip_id,text,label,mode\nv,1,fine,1.0,train\nv,2,bad,-1,test\n")
    assert len(read_split("mosi", file)) == 2


def test_every_view_and_side_of_the_table_is_an_option_of_its_reader() -> None:
    import importlib
    import inspect

    for name, one in datasets().items():
        reader = importlib.import_module(f"suture.data.tasks.formats.{one.format}")
        known = set(inspect.signature(reader.read).parameters)
        views = [one.view(view) for view in one.views]
        for form in (one, *views):
            used = {*form.options, *form.sides, *form.needs}
            used |= {key for split in form.splits.values() for key in split.options}
            assert used <= known, name


def _present() -> list[tuple[str, str]]:
    if not SHARED.is_dir():
        return []
    named = [
        (name if view is None else f"{name}:{view}")
        for name, one in datasets().items()
        for view in (None, *one.views)
    ]
    return [(name, split) for name in named for split in dataset(name).on_disk(SHARED)]


@needs_data
@pytest.mark.parametrize(("name", "split"), _present())
def test_counts_are_those_of_the_literature(name: str, split: str) -> None:
    assert len(read_split(name, SHARED, split)) == dataset(name).splits[split].records


@needs_data
def test_classes_and_conversations() -> None:
    def classes(name: str, split: str) -> tuple[int, ...]:
        found = Counter(one.gold for one in read_split(name, SHARED, split))
        return tuple(found[label] for label in ("negative", "neutral", "positive"))

    assert classes("twitter2015", "train") == (368, 1883, 928)
    assert classes("twitter2015", "dev") == (149, 670, 303)
    assert classes("twitter2015", "test") == (113, 607, 317)
    assert classes("twitter2017", "train") == (416, 1638, 1508)
    assert classes("twitter2017", "dev") == (144, 517, 515)
    assert classes("twitter2017", "test") == (168, 573, 493)
    mustard = Counter(one.gold for one in read_split("mustard", SHARED, "all"))
    assert set(mustard.values()) == {345}
    meld = [
        len({one.cluster for one in read_split("meld", SHARED, s)})
        for s in ("train", "dev", "test")
    ]
    assert meld == [1038, 114, 280]
    talks = [one for split in ("train", "dev", "test") for one in read_split("ecf", SHARED, split)]
    pairs = sum(len(one.gold["pairs"]) for one in talks)
    said = sum(len(one.text.split("\n")) for one in talks)
    assert (len(talks), said, pairs) == (1374, 13619, 9794)


@needs_data
def test_every_image_of_the_tweets_has_words() -> None:
    for name in ("twitter2015", "twitter2017", "twitter2017:described", "twitter2015-spans"):
        for split in ("train", "dev", "test"):
            assert all(one.caption for one in read_split(name, SHARED, split)), (name, split)
