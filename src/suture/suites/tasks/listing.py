"""The survey's map: every task with its modalities, data set, metric and licence, and what of it is
on a disk (text-centric multimodal sentiment survey, arXiv 2406.08068; EiBench's three aspects).

A modality says in which form a model gets it here: the text itself; a caption, description or list
of attributes in its place; or the file, for a model that takes images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from suture.data.tasks.datasets import MODALITIES, Dataset, dataset, datasets
from suture.suites.tasks.spec import load_task, shipped


@dataclass(frozen=True)
class Listed:
    """One row of the map. `name` is empty for a data set that no shipped task asks about; `there`
    is empty where nothing is on disk, None where nobody looked; `notes`: a trap of the data."""

    name: str
    about: str
    suite: str
    dataset: str
    modalities: dict[str, str]
    metrics: tuple[str, ...]
    licence: str
    source: str
    there: tuple[str, ...] | None
    notes: str | None
    held_out: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def modality(self) -> str:
        """In one cell: text, image (caption or file), audio (description)."""
        return ", ".join(
            name if how == name else f"{name} ({how})" for name, how in self.modalities.items()
        )


def listing(data: Path | None = None) -> list[Listed]:
    """All shipped tasks by suite and name, then the data sets without one. `data`: a folder of data
    sets to look into."""
    found = []
    asked = set()
    for name in shipped():
        spec = load_task(name)
        own = dataset(spec.dataset or "")
        asked.add(own.name.partition(":")[0])
        found.append(
            Listed(
                name=name,
                suite=spec.suite if spec.aspect is None else f"{spec.suite}, {spec.aspect}",
                about=spec.title,
                dataset=own.name,
                modalities=_modalities(own),
                # the headline first: it is the one that stands for the task
                metrics=tuple(
                    dict.fromkeys((spec.headline, *(metric.name for metric in spec.metrics)))
                ),
                licence=own.licence,
                source=own.source,
                there=None if data is None else tuple(own.on_disk(data)),
                notes=own.notes,
                held_out=spec.held_out,
            )
        )
    found.sort(key=lambda row: (row.suite, row.name))
    return found + [
        Listed(
            name="",
            suite="",
            about=own.title,
            dataset=name,
            modalities=_modalities(own),
            metrics=(),
            licence=own.licence,
            source=own.source,
            there=None if data is None else tuple(own.on_disk(data)),
            notes=own.notes,
        )
        for name, own in datasets().items()
        if name not in asked
    ]


def _modalities(own: Dataset) -> dict[str, str]:
    return {name: own.modalities[name] for name in MODALITIES if name in own.modalities}


def page(rows: list[Listed]) -> str:
    """The map as a Markdown table; docs/generated/tasks.md holds it."""
    lines = [
        "| task | what is asked | aspect | modality | data set | metrics | licence of the data |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        aspect = row.suite.removeprefix("emotion, ") + (", held out" if row.held_out else "")
        cells = [
            f"`{row.name}`" if row.name else "–", row.about, aspect or "–", row.modality,
            f"`{row.dataset}`", ", ".join(row.metrics) or "–", row.licence,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":  # python -m suture.suites.tasks.listing > docs/generated/tasks.md
    print(page(listing()), end="")
