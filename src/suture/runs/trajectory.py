"""A training that is measured after each pass over its rows: how forgetting goes, and when to stop.

    OUT.epochs/epoch-03/tofu.json     one measurement per suite, with its replies
    OUT.epochs/epoch-03/patch         that epoch's patch, where it is kept
    OUT.epochs/trajectory.json        every epoch's metrics, and the epochs that are reported
    OUT.epochs/trajectory.svg         the same as curves

What is measured are the weights as they would be written, rounded to the checkpoint's types: the
training goes on with its own. Two epochs are reported: a fixed one, said before the training, and
the one where a metric first peaks, which is chosen on the numbers it then reports (the rule of
RKLD's paper) and so looks better than it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from suture.checkpoint import write_json
from suture.checkpoint.dtypes import to_bytes, torch_dtype
from suture.checkpoint.jsonfile import read_json, write_atomic
from suture.checkpoint.source import content_hash, fingerprint_of
from suture.config import FrozenConfig
from suture.data import sha256_file
from suture.errors import SutureError, nearest
from suture.lazy import torch
from suture.ledger import Measurement
from suture.patch import PatchWriter, drain, open_model
from suture.progress import note
from suture.report.curves import curves
from suture.report.svg import standalone
from suture.runs.measuring import decides, take
from suture.runs.named import rooted_option
from suture.runs.recipe import SuiteSpec
from suture.suites import load_suite
from suture.suites.forgetting.trajectory import first_peak
from suture.training.lora import save_adapter
from suture.training.recipe import (
    TrainRecipe,
    TrainReport,
    edits_from,
    run_recipe,
    training_values,
)

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.inference import LoadedModel

METRIC = r"^[^.]+\.[^.]+$"
_MOST_CURVES = 10


class MeasureSpec(FrozenConfig):
    """The section `measure` of a training recipe."""

    suites: dict[str, SuiteSpec] = Field(min_length=1)
    every: int = Field(1, ge=1, description="epochs from one measuring to the next")
    fixed: int | None = Field(None, ge=1, description="the epoch to report; default: the last one")
    peak: str | None = Field(
        None, pattern=METRIC, description="SUITE.METRIC: its first peak is reported as well"
    )
    curves: tuple[str, ...] = Field(
        (), description="SUITE.METRIC of the picture; default: what the suite shows first"
    )
    keep: Literal["none", "reported", "all"] = Field(
        "reported", description="of which epochs the patch is kept"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="what the measured model computes in"
    )


class MeasuredTraining(TrainRecipe):
    """A training recipe with, or without, a section `measure`."""

    measure: MeasureSpec | None = None

    @model_validator(mode="after")
    def _epochs(self) -> MeasuredTraining:
        if self.measure is not None and self.train.epochs is None:
            raise ValueError("measure counts epochs: give train.epochs instead of train.steps")
        return self


@dataclass(frozen=True)
class Epoch:
    """What every suite of the recipe found after `epoch` passes."""

    epoch: int
    measured: dict[str, Measurement]

    @property
    def fingerprint(self) -> str | None:
        """Of the weights that were measured."""
        found: str | None = next(iter(self.measured.values())).model["fingerprint"]
        return found

    @property
    def metrics(self) -> dict[str, float]:
        """SUITE.METRIC to its value."""
        return {
            f"{label}.{name}": value
            for label, found in self.measured.items()
            for name, value in found.metrics.items()
        }


@dataclass(frozen=True)
class Trajectory:
    """All measured epochs in order, and the two that are reported; `folder`: where they lie."""

    folder: Path
    epochs: tuple[Epoch, ...]
    fixed: int
    peak: int | None

    @property
    def reported(self) -> dict[int, str]:
        """The epochs that are reported, each with why."""
        if self.peak is None:
            return {self.fixed: "fixed"}
        if self.peak == self.fixed:
            return {self.fixed: "fixed, first peak"}
        return {self.fixed: "fixed", self.peak: "first peak"}

    def patch(self, epoch: int) -> Path | None:
        """The patch of an epoch, or its adapter, where it was kept."""
        found = self.folder / f"epoch-{epoch:03d}" / "patch"
        return found if found.exists() else None

    def as_dict(self) -> dict[str, Any]:
        found = [{"epoch": one.epoch, "metrics": one.metrics} for one in self.epochs]
        return {
            "folder": str(self.folder),
            "fixed": self.fixed,
            "first_peak": self.peak,
            "epochs": found,
        }


def read_training(path: str | Path, overrides: Sequence[str] = ()) -> MeasuredTraining:
    """The training recipe in a YAML file, as `suture.training.recipe.read_recipe` reads it.

    Files that `measure` names are relative to the recipe as well.
    """
    values = training_values(path, overrides)
    folder = Path(path).parent
    section = values.get("measure")
    suites = section.get("suites") if isinstance(section, dict) else None
    for spec in suites.values() if isinstance(suites, dict) else ():
        if not isinstance(spec, dict):
            continue
        if spec.get("data"):
            files = spec["data"] if isinstance(spec["data"], list) else [spec["data"]]
            spec["data"] = [str(folder / str(file)) for file in files]
        if isinstance(spec.get("options"), dict):
            options = spec["options"].items()
            spec["options"] = {key: rooted_option(key, value, folder) for key, value in options}
    return MeasuredTraining.load(values, where=path)


def run_training(
    recipe: MeasuredTraining, source: TensorSource | None = None
) -> tuple[TrainReport, Trajectory | None]:
    """Train, and measure where the recipe asks for it; the same call resumes.

    Errors: those of `run_recipe` and of the suites, E744 the folder of epochs is another recipe's,
    E745 no epoch was measured, or no suite has the metric that is to peak, E557 an epoch lacks it.
    """
    if recipe.measure is None:
        return run_recipe(recipe, source), None
    source = open_model(recipe.model) if source is None else source
    epochs = _Epochs(recipe, recipe.measure, source)
    report = run_recipe(recipe, source, on_epoch=epochs.measure)
    return report, epochs.end()


class _Epochs:
    """The folder `OUT.epochs`, and what is done when an epoch ends."""

    def __init__(self, recipe: MeasuredTraining, spec: MeasureSpec, source: TensorSource) -> None:
        out = recipe.output or recipe.patch
        assert out is not None, "the recipe writes nothing"
        assert recipe.train.epochs is not None, "a measured training counts epochs"
        self.recipe, self.spec, self.last = recipe, spec, recipe.train.epochs
        self.fixed = min(spec.fixed or self.last, self.last)
        self.folder = out.with_name(f"{out.name}.epochs")
        known: list[str] = []
        self.shown = list(spec.curves)
        for label, asked in spec.suites.items():
            asked.items(label)  # what is wrong with a file is said before the training
            suite = load_suite(asked.suite or label, asked.options)
            known += [f"{label}.{name}" for name in suite.metrics]
            if not spec.curves:
                self.shown += [f"{label}.{name}" for name in getattr(suite, "headline", ())]
        for name in (*spec.curves, *([spec.peak] if spec.peak else [])):
            if name not in known:
                raise _unknown(name, known)
        self._claim(source)
        self.epochs = {epoch: one for epoch in self._there() if (one := self._load(epoch))}

    def measure(self, epoch: int, lm: LoadedModel, model: Any) -> None:
        """Measure `model` (`lm` inside an adapter, if there is one) and keep its patch."""
        if epoch % self.spec.every and epoch not in (self.fixed, self.last):
            return
        home = self._home(epoch)
        with as_written(lm, model, self.spec.dtype) as live:
            former = self.epochs.get(epoch)
            if former is not None and former.fingerprint == live.fingerprint:
                return  # told again after a kill
            for label, spec in self.spec.suites.items():
                take(label, spec, live).save(home / f"{label}.json")
        if self.spec.keep != "none":
            shutil.rmtree(home / "patch", ignore_errors=True)
            self._write_patch(home / "patch", lm, model)
        found = self._load(epoch)
        assert found is not None, "an epoch was measured and is not there"
        self.epochs[epoch] = found
        self._prune()
        told = f", {self.spec.peak} {found.metrics[self.spec.peak]:.4g}" if self.spec.peak else ""
        note(f"epoch {epoch} measured{told}")

    def _there(self) -> list[int]:
        return sorted(int(home.name.rpartition("-")[2]) for home in self.folder.glob("epoch-*"))

    def _load(self, epoch: int) -> Epoch | None:
        """What was measured after `epoch` passes; None where a suite is missing."""
        files = {label: self._home(epoch) / f"{label}.json" for label in self.spec.suites}
        if not all(file.exists() for file in files.values()):
            return None
        return Epoch(epoch, {label: Measurement.load(file) for label, file in files.items()})

    def end(self) -> Trajectory:
        """Write trajectory.json and trajectory.svg."""
        epochs = [self.epochs[epoch] for epoch in sorted(self.epochs)]
        if not epochs:
            raise SutureError(
                "E745",
                "the training ended before an epoch was measured",
                where=str(self.folder),
                fix="train longer, or measure every epoch",
            )
        fixed = min((one.epoch for one in epochs), key=lambda epoch: abs(epoch - self.fixed))
        found = Trajectory(self.folder, tuple(epochs), fixed, self._peak(epochs))
        write_json(self.folder / "trajectory.json", found.as_dict())
        chart = standalone(_chart(found, self.shown))
        write_atomic(self.folder / "trajectory.svg", chart.encode("utf-8"))
        return found

    def _peak(self, epochs: Sequence[Epoch]) -> int | None:
        name = self.spec.peak
        if name is None:
            return None
        label, _, metric = name.partition(".")
        measured = [one.measured[label] for one in epochs]
        return epochs[first_peak(measured, metric, within=len(epochs)).epoch - 1].epoch

    def _prune(self) -> None:
        """Drop patches of epochs that will not be reported, whatever comes."""
        if self.spec.keep != "reported":
            return
        wanted = {self.fixed, self._peak([self.epochs[epoch] for epoch in sorted(self.epochs)])}
        for epoch in self.epochs.keys() - wanted:
            shutil.rmtree(self._home(epoch) / "patch", ignore_errors=True)

    def _write_patch(self, out: Path, lm: LoadedModel, model: Any) -> None:
        if self.recipe.lora:
            save_adapter(model, out, base=str(self.recipe.model))
        else:
            facts = {"method": "train", "config": self.recipe.model_dump(mode="json")}
            drain(edits_from(lm), [PatchWriter(lm.source, out, provenance=facts)])

    def _home(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:03d}"

    def _claim(self, source: TensorSource) -> None:
        """Note whose epochs these are: everything that decides them, contents of files included.

        A folder in which nothing was measured yet is taken over. Error E744: it is another
        training's.
        """
        recipe, mark = self.recipe, self.folder / "recipe.json"
        files = [part.file for part in (*recipe.data, *recipe.retain, *recipe.dev)]
        facts = {
            "recipe": recipe.fingerprint(),
            "model": source.fingerprint(),
            "rows": [sha256_file(file) for file in files],
            "suites": {label: decides(label, spec) for label, spec in self.spec.suites.items()},
        }
        if self._there() and (
            not mark.exists() or read_json(mark) != json.loads(json.dumps(facts))
        ):
            raise SutureError(
                "E744",
                "this folder holds the epochs of another training",
                where=str(self.folder),
                why="the recipe, the model, the rows or what is measured was another",
                fix="remove it, or choose another output",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(mark, facts)


def _unknown(name: str, known: Iterable[str]) -> SutureError:
    close = nearest(name, known := sorted(known))
    return SutureError(
        "E745",
        f"no metric is called '{name}'",
        where="measure",
        fix=f"did you mean '{close}'?" if close else f"there are: {', '.join(known)}",
    )


@contextmanager
def as_written(
    lm: LoadedModel, model: Any, dtype: Literal["float32", "bfloat16"] = "float32"
) -> Iterator[LoadedModel]:
    """The model that would be written now: weights rounded to the source's types meanwhile.

    `model`: what is trained, `lm.model` or an adapter around it. An adapter's weights stay as they
    are, as its folder holds them in float32. `dtype`: what it computes in.
    """
    masters = {name: one.data for name, one in model.named_parameters()}
    training = {name for name, one in model.named_parameters() if one.requires_grad}
    if model is not lm.model:
        hashes = [content_hash(to_bytes(masters[name])) for name in sorted(training)]
        own = content_hash(" ".join([lm.fingerprint, *hashes]).encode())
        rounded = dict(masters)
    else:
        rounded = {
            name: data.clone() if name in training else data for name, data in masters.items()
        }
        own = fingerprint_of(_rounded_entries(lm, masters, rounded, training))
    live = replace(lm, dtype=getattr(torch, dtype))
    live.__dict__["fingerprint"] = own  # instead of the source's
    try:
        for name, one in model.named_parameters():
            one.data = rounded.pop(name).to(live.dtype)
        yield live
    finally:
        for name, one in model.named_parameters():
            one.data = masters[name]


def _rounded_entries(
    lm: LoadedModel,
    masters: Mapping[str, torch.Tensor],
    rounded: Mapping[str, torch.Tensor],
    training: Collection[str],
) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    """(name, dtype, shape, hash) of every tensor that would be written, which `rounded` takes."""
    for name, info in lm.source.tensors.items():
        spot = lm.places.get(name)
        if spot is None or spot.slot not in training:
            yield name, info.dtype, info.shape, lm.source.tensor_hash(name)
            continue
        value = spot.region(masters[spot.slot]).to(torch_dtype(info.dtype))
        spot.region(rounded[spot.slot]).copy_(value)
        yield name, info.dtype, info.shape, content_hash(to_bytes(value.cpu().contiguous()))


def _chart(found: Trajectory, names: Sequence[str]) -> str:
    """The metrics `names` over the epochs; those that are shares where there are none."""
    shares = [
        name
        for name in found.epochs[0].metrics
        if all(0 <= one.metrics.get(name, -1.0) <= 1 for one in found.epochs)
    ]
    lines = {
        name: [(one.epoch, one.metrics[name]) for one in found.epochs if name in one.metrics]
        for name in list(names)[:_MOST_CURVES] or shares[:_MOST_CURVES]
    }
    posts = {name: float(epoch) for epoch, name in found.reported.items()}
    return curves(
        lines,
        title="Training, epoch by epoch",
        x_label="epoch",
        y_label="value",
        as_percent=set(lines) <= set(shares),
        posts=posts,
    )
