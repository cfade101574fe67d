"""The recipe of a continual run: approaches that go through harm categories one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from suture.config import FrozenConfig, override, read_yaml
from suture.data import AnsweredPair
from suture.errors import SutureError, nearest
from suture.methods.safe_patching import SafePatching
from suture.runs.named import named_paths, rooted, rooted_option
from suture.runs.recipe import (
    DataSpec,
    ModelSpec,
    Resolver,
    SuiteSpec,
    check_judges,
    check_suite_keys,
    limited,
)
from suture.training.loop import TrainConfig
from suture.training.objectives import GradientAscent, ObjectiveConfig


class Approach(FrozenConfig):
    """What is done at every step: one training, or SafePatching's two and its merge."""

    objective: ObjectiveConfig | None = Field(None, description="one training with this objective")
    safe_patching: SafePatching | None = Field(None, description="two trainings and the merge")
    ascent: GradientAscent = Field(
        GradientAscent(), description="the objective of SafePatching's safety patch"
    )
    train: TrainConfig | None = Field(None, description="instead of the recipe's own")
    descent: TrainConfig | None = Field(
        None, description="of SafePatching's over-safety patch; default: as train"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.objective is None) == (self.safe_patching is None):
            raise ValueError("give either objective or safe_patching")
        return self


class ContinualRecipe(FrozenConfig):
    """Everything that decides a continual run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    description: str = ""
    model: ModelSpec = Field(description="the aligned model that every approach starts from")
    rows: DataSpec = Field(description='{"prompt", "response", "category"}: harmful rows')
    retain: DataSpec | None = Field(None, description="harmless rows, for objectives with KL")
    order: tuple[str, ...] = Field((), description="categories, in order; default: as in the rows")
    approaches: dict[str, Approach] = Field(min_length=1, description="what is compared, by name")
    train: TrainConfig = Field(description="of every training that says nothing else")
    scope: Literal["model", "all", "qv"] = Field("all", description="what is trained")
    response_tokens: int | None = Field(
        None, ge=1, description="only the first so many tokens of a response are trained on"
    )
    suites: dict[str, SuiteSpec] = Field(min_length=1, description="measured after every step")
    chat_template: Path | None = None
    cache: Path | None = Field(None, description="folder of answers to keep and look up")
    device: str = "auto"

    @field_validator("model", "rows", "retain", "suites", mode="before")
    @classmethod
    def _short_forms(cls, value: Any, info: Any) -> Any:
        key = {"model": "path", "suites": "data"}.get(info.field_name, "file")
        if info.field_name != "suites":
            return {key: value} if isinstance(value, str | Path) else value
        if not isinstance(value, Mapping):
            return value
        check_suite_keys(value)
        return {
            name: {key: spec} if isinstance(spec, str) else ({} if spec is None else spec)
            for name, spec in value.items()
        }

    @field_validator("approaches")
    @classmethod
    def _folders(cls, value: dict[str, Approach]) -> dict[str, Approach]:
        for name in value:
            if name in ("base", "rows", "stages") or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
                raise ValueError(f"'{name}' cannot be the name of an approach's folder")
        return value


def is_continual(path: str | Path) -> bool:
    """Whether a recipe file is one of these: it has `approaches`."""
    return "approaches" in read_yaml(path)


def read_continual(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    resolve: Resolver | None = None,
    limit: int | None = None,
) -> ContinualRecipe:
    """Read and check a recipe; its paths are relative to the file, those of `--set` to where you
    stand. `limit`: of every suite, for a trial. Errors: E701-E705 as for every recipe, E721 for
    what is not there."""
    path = Path(path)
    values = _rooted(read_yaml(path), path.resolve().parent, resolve)
    values = _rooted(override(values, overrides), Path.cwd(), resolve)
    recipe = ContinualRecipe.load(values, where=path)
    files = [recipe.rows.file, *([recipe.retain.file] if recipe.retain else [])]
    files += [file for spec in recipe.suites.values() for file in spec.data or ()]
    for spec in recipe.suites.values():
        files += named_paths(spec.judge, spec.decoding, spec.options)
    for place in [recipe.model.path, *recipe.model.patches, *files]:
        if not place.exists():
            raise SutureError(
                "E721", f"there is no {place}", where=str(path), fix="correct the path, or --set it"
            )
    check_judges(recipe.suites, path, {})
    return recipe.model_copy(update={"suites": limited(recipe.suites, limit)})


def by_category(
    rows: Sequence[AnsweredPair], order: Sequence[str], where: Path
) -> dict[str, list[AnsweredPair]]:
    """The rows of every category, in `order` (default: of first appearance).

    Error E732: a row without a category, a category without rows, or fewer than two of them.
    """
    groups: dict[str, list[AnsweredPair]] = {}
    for row in rows:
        if row.category is None:
            raise SutureError(
                "E732", "a row has no category", where=f"{where}: id {row.id}", fix='add "category"'
            )
        groups.setdefault(row.category, []).append(row)
    for name in order:
        if name not in groups:
            close = nearest(name, groups)
            raise SutureError(
                "E732",
                f"no row has the category '{name}'",
                where=str(where),
                fix=f"did you mean '{close}'?" if close else f"there are: {', '.join(groups)}",
            )
    chosen = {name: groups[name] for name in order or groups}
    if len(chosen) < 2:
        raise SutureError(
            "E732",
            "there is one category only",
            where=str(where),
            why="nothing can arrive after it",
            fix="give rows of two categories or more",
        )
    return chosen


def _rooted(values: dict[str, Any], root: Path, resolve: Resolver | None) -> dict[str, Any]:
    """The recipe's values with `lab:` names resolved and paths made absolute below `root`.

    Absolute ones stay, so that it can be done again after `--set`, with another root.
    """

    def at(value: Any, section: str) -> Any:
        if isinstance(value, dict):
            return {
                key: at(part, section) if key in ("path", "patches", "file", "data") else part
                for key, part in value.items()
            }
        if isinstance(value, list):
            return [at(part, section) for part in value]
        if isinstance(value, str) and value.startswith("lab:") and resolve is not None:
            return at(resolve(section, value.removeprefix("lab:")), section)
        return str(root / Path(value).expanduser()) if isinstance(value, str | Path) else value

    found = dict(values)
    for key, section in (("model", "models"), ("rows", "data"), ("retain", "data")):
        if found.get(key) is not None:
            found[key] = at(found[key], section)
    if isinstance(found.get("suites"), dict):
        found["suites"] = {
            name: _suite(at(spec, "suites"), root) for name, spec in found["suites"].items()
        }
    for key in ("cache", "chat_template"):
        if isinstance(found.get(key), str):
            found[key] = str(root / Path(found[key]).expanduser())
    return found


def _suite(spec: Any, root: Path) -> Any:
    """The judge, the decoding and the options of a suite, below `root`."""
    from suture.inference.decoding import decoding_kind
    from suture.suites.judges import judge_kind

    if not isinstance(spec, dict):
        return spec
    found = dict(spec)
    for key, kind_of in (("judge", judge_kind), ("decoding", decoding_kind)):
        if found.get(key) is not None:
            found[key] = rooted(found[key], kind_of, root)
    if isinstance(found.get("options"), dict):
        found["options"] = {k: rooted_option(k, v, root) for k, v in found["options"].items()}
    return found
