"""A recipe: which models, which method, which suites, and what each metric is for.

Everything that decides a run's result is in this one YAML file (`--set K=V` changes a value of
it). Roles and margins are hashed before anything is measured, so nobody tunes them to a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from suture.config import FrozenConfig, key_lines, override, read_yaml
from suture.errors import SutureError, nearest, spelt
from suture.ledger import Role, roles_hash
from suture.runs.binding import inputs_of, missing
from suture.runs.named import Named, named_paths, rooted, rooted_option

Share = Annotated[float, Field(ge=0, le=1)]
Part = tuple[Share, Share]
Lines = Mapping[tuple[str | int, ...], int]
Resolver = Callable[[str, str], Any]  # (section, NAME) of "lab:NAME" to a path or {path, patches}


class ModelSpec(FrozenConfig):
    """A checkpoint folder (or PEFT adapter on `aligned`), with patches put on while reading."""

    path: Path = Field(description="checkpoint folder, or a PEFT LoRA folder")
    patches: tuple[Path, ...] = Field((), description="patches on it, in order")


class DataSpec(FrozenConfig):
    """JSONL rows for a method."""

    file: Path = Field(description="JSONL file")
    limit: int | None = Field(None, ge=1, description="only the first rows")


class SuiteSpec(FrozenConfig):
    """One suite of the run. Its key in the recipe names it in roles and in the report."""

    suite: str | None = Field(None, description="which suite; default: the key itself")
    data: tuple[Path, ...] | None = Field(
        None, description="JSONL rows, or a folder of data sets; default: the suite's own"
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="at most so many items, spread evenly; over-refusal: of each kind, safety: "
        "requests, whatever the templates, open-ended: questions",
    )
    max_new_tokens: int | None = Field(None, ge=1, description="default: the suite's own")
    options: dict[str, Any] | None = Field(None, description="of the suite, such as shots: 5")
    judge: Named | None = Field(None, description="{name: chat, model: DIR}, or as for --judge")
    decoding: Named | None = Field(None, description="{name: rose}, or as for --decoding")
    part: Part | None = Field(None, description="only these rows: [0, 0.5] and [0.5, 1] share none")

    def asked(self) -> dict[str, Any]:
        """What decides a measurement besides model and data."""
        optional = ("options", "judge", "decoding", "part")
        later = {name for name in optional if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude={"data", *later})

    def items(self, label: str) -> list[Any]:
        """The rows that are measured; `label`: the suite's key in the recipe."""
        from suture.suites import load_suite
        from suture.suites.common import part_of

        suite = load_suite(self.suite or label, self.options)
        return part_of(suite.read(list(self.data or suite.default_data), self.limit), self.part)

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value


def check_suite_keys(suites: Mapping[Any, Any]) -> None:
    """ValueError for a key that SuiteSpec does not know and the suite does, as an option."""
    from suture.suites import available, load_suite

    for label, spec in suites.items():
        if not isinstance(spec, Mapping):
            continue
        name = str(spec.get("suite") or label)
        for key in spec.keys() - SuiteSpec.model_fields.keys():
            if name.replace("_", "-") not in available():
                continue
            try:
                load_suite(name, {key: spec[key]})
            except SutureError as error:
                if error.code in ("E701", "E529"):
                    continue
            raise ValueError(
                f"'{key}' is an option of the suite {name}: "
                f"write it under `options:`, as suites.{label}.options.{key}"
            )


class MethodSpec(FrozenConfig, extra="allow"):
    """The method's name; every other key belongs to the method's own config."""

    name: str

    @field_validator("name")
    @classmethod
    def _as_we_spell_it(cls, value: str) -> str:
        from suture.methods import METHODS

        return spelt(value, METHODS)

    @property
    def config(self) -> dict[str, Any]:
        """The method's own keys."""
        return dict(self.model_extra or {})


class Recipe(FrozenConfig):
    """A whole run: models, method, suites, roles. The method edits `before`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    description: str = ""
    models: dict[str, ModelSpec] = Field(
        description="aligned, tuned, unaligned; for a merge base, donor-1, donor-2 and so on"
    )
    before: str = Field("tuned", description="the model to be edited; the patch's base")
    reference: str | None = Field("aligned", description="sets the level of roles `against` it")
    method: MethodSpec
    data: dict[str, DataSpec] = Field(default_factory=dict, description="safety, calibration")
    suites: dict[str, SuiteSpec] = Field(min_length=1)
    roles: tuple[Role, ...] = Field(min_length=1)
    write: bool = Field(False, description="also write the edited checkpoint into the run folder")
    chat_template: Path | None = Field(None, description="jinja file, for folders without one")
    device: str = Field("auto", description="auto, cpu, cuda:N, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the measured models; methods run in float32"
    )
    cache: Path | None = Field(None, description="folder of answers to keep and look up")
    seed: int = Field(0, ge=0, description="of the ledger's resampling")

    @field_validator("models", "data", "suites", mode="before")
    @classmethod
    def _short_forms(cls, value: Any, info: Any) -> Any:
        """`tuned: DIR` for `tuned: {path: DIR}`, `safety: FILE` for `{file: FILE}`, `safety:`."""
        if not isinstance(value, Mapping):
            return value
        if info.field_name == "suites":
            check_suite_keys(value)
        key = {"models": "path", "data": "file", "suites": "data"}[info.field_name]
        return {
            name: {key: spec} if isinstance(spec, str | Path) else ({} if spec is None else spec)
            for name, spec in value.items()
        }

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        wanted = [("before", self.before)]
        if self.reference is not None:
            wanted.append(("reference", self.reference))
        for key, name in wanted:
            if name not in self.models:
                raise ValueError(_unknown(f"{key} is '{name}', which models", name, self.models))
        for role in self.roles:
            if role.suite not in self.suites:
                raise ValueError(
                    _unknown(
                        f"role '{role.metric}' needs a suite that suites", role.suite, self.suites
                    )
                )
            if role.against == "reference" and self.reference is None:
                raise ValueError(f"role '{role.metric}' is against a reference, but there is none")
        return self

    @property
    def roles_sha256(self) -> str:
        """Hash of roles and margins, fixed in the run folder before anything is measured."""
        return roles_hash(self.roles)

    def method_config(self, *, where: str | Path = "method") -> FrozenConfig:
        """The method with its config checked. Raises SutureError E720 for an unknown method."""
        return _method(self.method, where, None)


def limited(suites: Mapping[str, SuiteSpec], limit: int | None) -> dict[str, SuiteSpec]:
    """The suites with at most `limit` items each: a trial. E702 for less than 1."""
    if limit is None:
        return dict(suites)
    if limit < 1:
        raise SutureError("E702", f"limit is {limit}", where="--limit", fix="give at least 1")
    return {
        label: spec.model_copy(update={"limit": min(limit, spec.limit or limit)})
        for label, spec in suites.items()
    }


def read_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    resolve: Resolver | None = None,
    limit: int | None = None,
) -> Recipe:
    """Read and check a recipe file; paths in it are relative to the file.

    `limit`: of every suite, for a trial.
    `overrides`: `method.removed=0.5` and the like; paths in them are relative to where you stand.
    `resolve`: turns `lab:NAME` into what it stands for. Raises SutureError E701/E702 (key or value,
    with file:line), E703-E705 (YAML), E720 (method), E721 (a file or folder that is not there),
    E722 (metric), E520 (suite), E728 (a model or rows that the method needs).
    """
    values, lines = read_values(path, overrides)
    if "sweep" in values:
        raise SutureError(
            "E734",
            "this recipe is a sweep over several settings",
            where=_line(path, lines, "sweep"),
            fix=f"suture sweep {path}, or take the section `sweep` out",
        )
    found = checked(values, Path(path), lines, resolve)
    return found.model_copy(update={"suites": limited(found.suites, limit)})


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Lines]:
    """What a recipe file says with its `overrides`, and the line of every key."""
    values, lines = override(read_yaml(path), overrides), key_lines(path)
    for change in overrides:
        at = tuple(change.partition("=")[0].strip().split("."))
        lines.pop(at, None)
        _from_here(values, at)
    return values, lines


def checked(
    values: dict[str, Any], path: Path, lines: Lines, resolve: Resolver | None = None
) -> Recipe:
    """The recipe that `values` say, with everything `read_recipe` promises."""
    if resolve is not None:
        values = {key: _resolved(value, key, resolve) for key, value in values.items()}
    recipe = Recipe.load(values, where=path, lines=lines)
    with_method(recipe, recipe.method, path, lines)
    _check_suites(recipe, path, lines)
    recipe = _absolute(recipe, path.resolve().parent)
    _check_files(recipe, path, lines)
    check_judges(recipe.suites, path, lines)
    return recipe


def with_method(
    recipe: Recipe, spec: MethodSpec, where: Path, lines: Lines, *at: str | int
) -> Recipe:
    """The recipe with another method, which stands at the key path `at` of the file.

    Raises SutureError E701, E702, E720, E728.
    """
    at = at or ("method",)
    below = {("method", *key[len(at) :]): n for key, n in lines.items() if key[: len(at)] == at}
    method = _method(spec, where, below)
    changed = recipe.model_copy(update={"method": spec})
    _check_arguments(changed, method, where, below)
    return changed


def _method(spec: MethodSpec, where: str | Path, lines: Any) -> FrozenConfig:
    from suture.methods import METHODS

    if spec.name not in METHODS:
        close = nearest(spec.name, METHODS)
        raise SutureError(
            "E720",
            f"unknown method '{spec.name}'",
            where=_line(where, lines, "method", "name"),
            fix=f"did you mean '{close}'?" if close else f"one of: {', '.join(METHODS)}",
        )
    below = {at[1:]: n for at, n in (lines or {}).items() if len(at) > 1 and at[0] == "method"}
    found: FrozenConfig = METHODS[spec.name].load(spec.config, where=where, lines=below)
    return found


def _check_arguments(recipe: Recipe, method: Any, where: Path, lines: Any) -> None:
    """E728 when `derive` asks for a model or rows that the recipe does not give."""
    models = inputs_of(recipe.models)
    models |= {"base"} if "donors" in models else {"tuned"}  # what `before` is taken for
    if lacking := missing(method, {*models, *recipe.data}):
        add = "donor-1" if lacking[0] == "donors" else lacking[0]
        raise SutureError(
            "E728",
            f"method '{recipe.method.name}' needs {', '.join(lacking)}",
            where=_line(where, lines, "method"),
            fix=f"add `{add}:` under models or data",
        )


def _check_suites(recipe: Recipe, where: Path, lines: Any) -> None:
    from suture.suites import load_suite

    metrics: dict[str, Mapping[str, Any]] = {}
    unpaired: dict[str, frozenset[str]] = {}
    for label, spec in recipe.suites.items():
        options = {k: rooted_option(k, v, where.parent) for k, v in (spec.options or {}).items()}
        try:
            suite = load_suite(spec.suite or label, options)
            metrics[label] = suite.metrics
            unpaired[label] = getattr(suite, "unpaired", frozenset())
        except SutureError as error:
            error.where = _line(where, lines, "suites", label)
            written = [name for name in recipe.suites if ("suites", name) in lines]
            if error.code == "E520" and written and label not in written:
                error.where = f"--set suites.{label}"
                if close := nearest(label, written):
                    error.fix = f"did you mean 'suites.{close}'?"
            raise
    for index, role in enumerate(recipe.roles):
        known = metrics[role.suite]
        if role.column in unpaired[role.suite]:
            raise SutureError(
                "E722",
                f"'{role.metric}' is one number about all rows: there is nothing to pair",
                where=_line(where, lines, "roles", index),
                fix=f"one of: {', '.join(m for m in known if m not in unpaired[role.suite])}",
            )
        if role.column not in known:
            close = nearest(role.column, known)
            raise SutureError(
                "E722",
                f"suite '{role.suite}' has no metric '{role.column}'",
                where=_line(where, lines, "roles", index),
                fix=f"did you mean '{close}'?" if close else f"one of: {', '.join(known)}",
            )


def check_judges(suites: Mapping[str, SuiteSpec], where: Path, lines: Any) -> None:
    """Judges and decodings that can be had, and suites that they are for."""
    from suture.inference.decoding import load_decoding
    from suture.suites import load_suite
    from suture.suites.judges import load_judge
    from suture.suites.judging import asked_for, check_judge

    for label, spec in suites.items():
        suite = load_suite(spec.suite or label, spec.options)
        try:
            asks = asked_for(suite)
            check_judge(suite, None if spec.judge is None else load_judge(spec.judge, asks))
            if spec.decoding is not None:
                load_decoding(spec.decoding)
        except SutureError as error:
            error.where = _line(where, lines, "suites", label)
            raise


def _check_files(recipe: Recipe, where: Path, lines: Any) -> None:
    wanted: list[tuple[tuple[str, ...], Path, bool]]
    wanted = [(("models", k), s.path, True) for k, s in recipe.models.items()]
    wanted += [(("models", k), p, True) for k, s in recipe.models.items() for p in s.patches]
    wanted += [(("data", k), s.file, False) for k, s in recipe.data.items()]
    asked = [(k, p) for k, s in recipe.suites.items() for p in s.data or ()]
    wanted += [(("suites", k), p, False) for k, p in asked if not p.is_dir()]  # of data sets
    if recipe.chat_template:
        wanted.append((("chat_template",), recipe.chat_template, False))
    for label, spec in recipe.suites.items():
        for path in named_paths(spec.judge, spec.decoding, spec.options):
            if not path.exists():
                wanted.append((("suites", label), path, not path.suffix))
    for at, path, folder in wanted:
        if path.is_dir() if folder else path.is_file():
            continue
        above = path.parent.iterdir() if path.parent.is_dir() else ()
        beside = [p.name for p in above if p.is_dir() == folder]
        close = nearest(path.name, beside)
        raise SutureError(
            "E721",
            f"{'.'.join(at)}: there is no {'folder' if folder else 'file'} {path}",
            where=_line(where, lines, *at),
            fix=f"did you mean '{path.parent / close}'?"
            if close
            else "paths are relative to the recipe; or use --set " + ".".join(at) + "=PATH",
        )


def _absolute(recipe: Recipe, root: Path) -> Recipe:
    def at(path: Path) -> Path:
        return root / path.expanduser()

    def model(spec: ModelSpec) -> ModelSpec:
        return ModelSpec(path=at(spec.path), patches=tuple(map(at, spec.patches)))

    changes: dict[str, Any] = {
        "models": {k: model(s) for k, s in recipe.models.items()},
        "data": {k: s.model_copy(update={"file": at(s.file)}) for k, s in recipe.data.items()},
        "suites": {k: rooted_suite(s, root) for k, s in recipe.suites.items()},
    }
    if recipe.chat_template:
        changes["chat_template"] = at(recipe.chat_template)
    if recipe.cache:
        changes["cache"] = at(recipe.cache)
    return recipe.model_copy(update=changes)


def rooted_suite(spec: SuiteSpec, root: Path) -> SuiteSpec:
    """The suite with every file and folder it names below `root` (E532, E537 for what is named)."""
    from suture.inference.decoding import decoding_kind
    from suture.suites.judges import judge_kind

    changes: dict[str, Any] = {}
    if spec.data:
        changes["data"] = tuple(root / path.expanduser() for path in spec.data)
    if spec.options:
        changes["options"] = {k: rooted_option(k, v, root) for k, v in spec.options.items()}
    if spec.judge is not None:
        changes["judge"] = rooted(spec.judge, judge_kind, root)
    if spec.decoding is not None:
        changes["decoding"] = rooted(spec.decoding, decoding_kind, root)
    return spec.model_copy(update=changes)


def _resolved(value: Any, section: str, resolve: Resolver) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item, section, resolve) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, section, resolve) for item in value]
    if isinstance(value, str) and value.startswith("lab:"):
        return resolve(section, value.removeprefix("lab:"))
    return value


def _from_here(values: dict[str, Any], at: tuple[str, ...]) -> None:
    """A path given with --set is relative to the working folder: make it absolute."""
    kind = ("suites", *at[2:]) if at[:2] == ("sweep", "selection") else at
    is_path = kind[0] in ("models", "data") and kind[-1] != "limit"
    is_path = (
        is_path
        or kind[0] in ("cache", "chat_template")
        or (kind[0] == "suites" and kind[2:] in ((), ("data",)))
    )
    holder: Any = values
    for key in at[:-1]:
        holder = holder[key]
    given = holder[at[-1]]
    if is_path and isinstance(given, str) and not given.startswith("lab:"):
        holder[at[-1]] = str(Path.cwd() / Path(given).expanduser())
    if kind[0] == "suites" and kind[2:] in (("judge",), ("decoding",)) and given is not None:
        spec = SuiteSpec.model_validate({kind[-1]: given})
        holder[at[-1]] = getattr(rooted_suite(spec, Path.cwd()), kind[-1])
    if kind[0] == "suites" and kind[2:3] == ("options",) and len(kind) == 4:
        holder[at[-1]] = rooted_option(kind[3], given, Path.cwd())


def _line(where: str | Path, lines: Any, *at: str | int) -> str:
    for length in range(len(at), 0, -1):
        if lines and at[:length] in lines:
            return f"{where}:{lines[at[:length]]}"
    return str(where)


def _unknown(what: str, name: str, known: Mapping[str, Any]) -> str:
    close = nearest(name, known)
    hint = f"did you mean '{close}'?" if close else f"there are: {', '.join(known)}"
    return f"{what} does not have; {hint}"
