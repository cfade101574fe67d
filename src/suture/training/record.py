"""What a pre-training noted down, step by step: a file that a killed run goes on with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Record:
    """Lines of JSON, each with its `step`. The same run gives the same bytes, killed or not."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: list[dict[str, Any]] = []
        if file.is_file():
            whole = file.read_text(encoding="utf-8").rpartition("\n")[0]  # a torn line is no line
            self.lines = [json.loads(line) for line in whole.split("\n") if line]
        self._going = False

    def has(self, step: int) -> bool:
        """Whether anything is noted of `step`."""
        return any(line["step"] == step for line in self.lines)

    def go_on_at(self, step: int) -> None:
        """Before the first note of this process: forget what a killed run noted of `step` and
        later ones."""
        if not self._going:
            self._going = True
            self.lines = [line for line in self.lines if line["step"] < step]
            self.file.parent.mkdir(parents=True, exist_ok=True)
            stage = self.file.with_suffix(".tmp")
            stage.write_text("".join(_line(found) for found in self.lines), encoding="utf-8")
            os.replace(stage, self.file)

    def add(self, line: dict[str, Any]) -> None:
        """Note a line; it must have a step."""
        self.lines.append(line)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as handle:
            handle.write(_line(line))

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) wherever `name` was noted."""
        return [(int(line["step"]), float(line[name])) for line in self.lines if name in line]


def _line(line: dict[str, Any]) -> str:
    return json.dumps(line) + "\n"
