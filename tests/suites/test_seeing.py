"""A task whose rows have pictures, on a checkpoint that takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from helpers import write_jsonl
from looking import tiny_llava
from suture.inference import pictures
from suture.patch import open_model
from suture.suites import measure

COLOURS = {"night": (0, 0, 0), "snow": (255, 255, 255), "poppy": (255, 0, 0), "sea": (0, 60, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("looking"))


@pytest.fixture
def rows(tmp_path) -> Path:
    found = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
        image = str(tmp_path / f"{name}.png")
        found.append({"id": name, "text": "look at this", "image": image, "gold": "positive"})
    return write_jsonl(tmp_path / "rows.jsonl", found)


def replies(folder: Path, rows: Path, **options: str) -> list[str]:
    found = measure(
        "emotion", open_model(folder), data=rows, device="cpu", max_new_tokens=6,
        options={"task": "sst2", **options},
    )  # fmt: skip
    assert found.model["fingerprint"] == open_model(folder).fingerprint()
    assert found.model["identity"] == "fingerprint"
    assert len(found.template["fingerprint"]) == 64
    return [reply.reply for reply in found.replies]


def test_pictures_are_shown_and_can_be_left_out(folder, rows, monkeypatch):
    opened: list[str] = []
    original = pictures._picture

    def noting(file: Path):
        opened.append(Path(file).stem)
        return original(file)

    monkeypatch.setattr(pictures, "_picture", noting)
    replies(folder, rows)
    assert opened == list(COLOURS)
    blind = replies(folder, rows, images="none")
    assert opened == list(COLOURS)
    assert len(set(blind)) == 1  # the texts are all the same
