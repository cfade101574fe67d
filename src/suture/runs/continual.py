"""Continual post safety alignment: harm categories arrive one after the other.

    model ─► category 1 ─► patch ─► measured ─► category 2 ─► patch on top ─► measured ─► …

Every approach (SafePatching, or one objective such as gradient ascent or NPO) starts from the same
model and, at every step, works on the model it made so far with that category's rows alone. All
suites are measured after each step, so that means over the steps and the forgetting of earlier
categories can be told. The base is never written: a step's model is the base with its patches.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data import AnsweredPair, read_jsonl, sha256_file
from suture.errors import SutureError, some
from suture.methods.safe_patching import SafePatching
from suture.runs.continual_recipe import (
    Approach,
    ContinualRecipe,
    by_category,
    is_continual,
    read_continual,
)
from suture.runs.folder import RunFolder
from suture.runs.measuring import beside, decides, take
from suture.runs.progress_table import category_scores, facts_of, markdown
from suture.runs.recipe import SuiteSpec
from suture.training.loop import TrainConfig
from suture.training.objectives import NextToken, ObjectiveConfig
from suture.training.recipe import DataFile, TrainRecipe, run_recipe
from suture.versions import versions

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource


def run_continual(recipe: ContinualRecipe, folder: str | Path) -> dict[str, Any]:
    """Run every approach through every category in `folder`, or go on with it.

    Leaves `continual.json` and `continual.md` there, and returns what they hold. Errors: E724,
    E726 for the folder, E732 for categories, and those of training, methods and suites.
    """
    from suture.checkpoint import write_json
    from suture.checkpoint.staging import refuse_inside
    from suture.patch import open_model

    refuse_inside(folder, recipe.model.path)
    home = RunFolder.open(folder)
    with home.lock():
        home.claim(recipe.model_dump(mode="json"), "")
        source = open_model(recipe.model.path, patches=recipe.model.patches)
        steps = _Steps(recipe, home, source)
        facts = steps.everything()
        write_json(home.path / "continual.json", facts)
        (home.path / "continual.md").write_text(markdown(facts), encoding="utf-8")
    return facts


class _Steps:
    """One recipe in one folder."""

    def __init__(self, recipe: ContinualRecipe, home: RunFolder, source: TensorSource) -> None:
        self.recipe, self.home, self.source = recipe, home, source
        self.libraries = versions()
        rows = read_jsonl(recipe.rows.file, AnsweredPair, limit=recipe.rows.limit)
        self.rows = by_category(rows, recipe.order, recipe.rows.file)

    def everything(self) -> dict[str, Any]:
        categories = list(self.rows)
        base = self.measure("base", self.source)
        found: dict[str, list[dict[str, Any]]] = {}
        for name, approach in self.recipe.approaches.items():
            model, patches = self.source, list[Path]()
            found[name] = []
            for number, category in enumerate(categories, 1):
                place = f"{name}/{number}"
                patch = self.step(place, approach, category, model)
                if changed := is_patch(patch):
                    patches.append(patch)
                    model = self.patched(self.source, patches)
                found[name].append({**self.measure(place, model), "changed": changed})
        facts = facts_of(self.recipe.name, categories, base, found)
        return {**facts, "notes": [] if base["categories"] else [self._unmatched()]}

    def _unmatched(self) -> str:
        """Why nothing is told by category."""
        there = {
            label: sorted({c for i in spec.items(label) if (c := getattr(i, "category", None))})
            for label, spec in self.recipe.suites.items()
        }
        named = [f"{label} has {some(found)}" for label, found in there.items() if found]
        return (
            "No item of a suite is of a category of the rows, so nothing is told by category. The "
            f"rows have {some(list(self.rows))}; {'; '.join(named) or 'no suite has categories'}."
        )

    def step(self, place: str, approach: Approach, category: str, source: TensorSource) -> Path:
        """The patch of one step on `source`, the model so far."""
        rows = self._file(category)
        patch = self.home.path / place / "patch"
        settings = approach.train or self.recipe.train
        if approach.safe_patching is None:
            assert approach.objective is not None
            self.train(place, "patch", approach.objective, settings, rows, source)
            return patch
        descent = approach.descent or settings
        self.train(place, "ascended", approach.ascent, settings, rows, source)
        self.train(place, "descended", NextToken(), descent, rows, source)
        self.merge(place, approach.safe_patching, rows, source)
        return patch

    def train(
        self,
        place: str,
        name: str,
        objective: ObjectiveConfig,
        settings: TrainConfig,
        rows: Path,
        source: TensorSource,
    ) -> None:
        out = self.home.path / place / name
        retain = self.recipe.retain
        parts = () if retain is None else (DataFile(file=retain.file, limit=retain.limit),)
        training = TrainRecipe(
            model=self.recipe.model.path,
            data=(DataFile(file=rows),),
            patch=out,
            objective=objective,
            retain=parts if objective.needs_retain else (),
            response_tokens=self.recipe.response_tokens,
            scope=self.recipe.scope,
            train=settings,
            chat_template=self.recipe.chat_template,
            device=self.recipe.device,
        )
        self.home.stage(
            f"{place}/{name}".replace("/", "-"),
            inputs={
                "model": source.fingerprint(),
                "objective": objective.model_dump(mode="json"),
                "train": settings.model_dump(mode="json"),
                "scope": self.recipe.scope,
                "response_tokens": self.recipe.response_tokens,
                "rows": sha256_file(rows),
                "retain": [sha256_file(p.file) for p in training.retain],
                "device": self.recipe.device,
                "libraries": self.libraries,
            },
            outputs=(f"{place}/{name}",),
            work=lambda: _or_unchanged(out, lambda: run_recipe(training, source).as_dict()),
        )

    def merge(self, place: str, method: SafePatching, rows: Path, source: TensorSource) -> None:
        from suture.patch import PatchWriter, drain

        out = self.home.path / place
        trained = {"safety": out / "ascended", "over-safety": out / "descended"}
        there = [part for part, folder in trained.items() if is_patch(folder)]
        models = {
            folder.name: self.patched(source, [folder]) if is_patch(folder) else source
            for folder in trained.values()
        }
        if len(there) == 1:  # the other patch is zero, which `derive` takes for a mistake
            method = method.model_copy(update={"patches": there[0]})
        provenance = {
            "method": "safe-patching",
            "config": method.model_dump(mode="json"),
            "seeds": [method.seed],
            "models": {name: model.fingerprint() for name, model in models.items()},
            "data": {"harmful": sha256_file(rows)},
        }

        def derived() -> dict[str, Any]:
            edits = (
                method.derive(
                    base=source,
                    ascended=models["ascended"],
                    descended=models["descended"],
                    harmful=read_jsonl(rows, AnsweredPair),
                    device=self.recipe.device,
                    chat_template=self.recipe.chat_template,
                )
                if there
                else ()
            )
            drain(edits, [PatchWriter(source, out / "patch", provenance)])
            return {}

        self.home.stage(
            f"{place}/merge".replace("/", "-"),
            inputs={
                **provenance,
                "base": source.fingerprint(),
                "device": self.recipe.device,
                "libraries": self.libraries,
            },
            outputs=(f"{place}/patch",),
            work=lambda: _or_unchanged(out / "patch", derived),
        )

    def measure(self, place: str, source: TensorSource) -> dict[str, Any]:
        """Every suite on one model: metrics, those by category, the first of each with interval."""
        from suture.inference import load
        from suture.ledger import Measurement, interval_of, stands_on

        lm: list[Any] = []
        found: dict[str, Any] = {"metrics": {}, "categories": {}, "better": {}, "main": {}}
        for label, spec in self.recipe.suites.items():
            file = f"{place}/{label}.json"
            out = self.home.path / file

            def work(label: str = label, spec: SuiteSpec = spec, out: Path = out) -> None:
                if not lm:
                    given = self.recipe.chat_template
                    lm.append(load(source, device=self.recipe.device, chat_template=given))
                out.parent.mkdir(parents=True, exist_ok=True)
                take(label, spec, lm[0], cache=self.recipe.cache).save(out)

            self.home.stage(
                f"measure-{place}-{label}".replace("/", "-"),
                inputs={
                    "model": source.fingerprint(),
                    **decides(label, spec),
                    "device": self.recipe.device,
                    "libraries": self.libraries,
                },
                outputs=(file, *beside(file)),
                work=work,
            )
            measured = Measurement.load(out)
            items = spec.items(label)
            found["metrics"] |= {f"{label}.{k}": v for k, v in measured.metrics.items()}
            found["better"] |= {f"{label}.{k}": v for k, v in measured.better.items()}
            found["categories"] |= category_scores(label, measured, items, list(self.rows))
            if main := next(iter(measured.metrics), None):
                ends = interval_of(measured, main)
                found["main"][f"{label}.{main}"] = {
                    "value": measured.metrics[main],
                    "ci95": None if ends is None else list(ends),
                    "n": stands_on(measured, main),
                }
        return found

    def patched(self, source: TensorSource, patches: Sequence[Path]) -> TensorSource:
        from suture.patch import PatchedCheckpoint

        return PatchedCheckpoint(source, list(patches))

    def _file(self, category: str) -> Path:
        """The category's rows as a file of the run, readable by the owner only."""
        number = list(self.rows).index(category) + 1
        path = self.home.path / "rows" / f"{number}.jsonl"
        path.parent.mkdir(exist_ok=True)
        text = "".join(
            json.dumps({"prompt": row.prompt, "response": row.response}, ensure_ascii=False) + "\n"
            for row in self.rows[category]
        )
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as handle:
                handle.write(text)
        return path


def is_patch(folder: Path) -> bool:
    """Whether a step left a patch: one that changed nothing leaves an empty folder."""
    return (folder / "patch.json").is_file()


def _or_unchanged(out: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`work`, or an empty folder where it changed nothing.

    That is no mistake here: once every token of a category's rows is above the cap of ascent, there
    is nothing left to do for it.
    """
    try:
        return work()
    except SutureError as error:
        if error.code != "E208":
            raise
    shutil.rmtree(out.parent / f".{out.name}.training", ignore_errors=True)
    out.mkdir(parents=True)
    return {"unchanged": True}


__all__ = ["ContinualRecipe", "is_continual", "read_continual", "run_continual"]
