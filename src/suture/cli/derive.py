"""`suture derive METHOD`: run one method; the change leaves as a patch, a checkpoint, or both.

Options come from the method: its config's fields give names, types, help and defaults, and the
arguments of its `derive` say which models and data it wants. There is no second copy of either.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from suture.cli.terminal import emit, emit_json, size
from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.methods import METHODS

# argument of `derive` -> (type, help); anything else a method takes is for Python callers
MODELS = {
    "aligned": "folder of the aligned model, before fine-tuning",
    "tuned": "folder of the fine-tuned model: checkpoint, or LoRA adapter of --aligned",
    "unaligned": "folder of the unaligned model, the aligned one made compliant",
}
DATA = {
    "safety": 'harmful prompts, JSONL rows of "prompt" and, if known, the refusal as "response"',
    "calibration": 'rows of the fine-tuning task, JSONL of "prompt" and "response"',
}
RUNTIME = {
    "chat_template": (Path, "jinja file to use instead of the tokenizer's own template"),
    "device": (str, "auto, cpu, cuda:N or mps"),
    "dtype": (str, "of the forward passes: float32, bfloat16 or auto"),
}
OUTPUT: dict[str, tuple[Any, Any]] = {
    "output": (Path, typer.Option("-o", "--output", help="folder of the patch to write")),
    "write": (
        Path,
        typer.Option("--write", help="write the edited checkpoint too, to this folder"),
    ),
    "config": (Path, typer.Option("--config", help="YAML file of the method's options; flags win")),
}
PRECISIONS = ("auto", "float32", "bfloat16")


def derive(
    method: str,
    values: Mapping[str, Any],
    *,
    aligned: Path | None = None,
    tuned: Path | None = None,
    unaligned: Path | None = None,
    safety: Path | None = None,
    calibration: Path | None = None,
    output: Path | None = None,
    write: Path | None = None,
    config: Path | None = None,
    **runtime: Any,
) -> dict[str, Any]:
    """Run `method` with the options `values` and write what was asked for; returns the facts.

    Everything that can be wrong is refused before torch is imported: options, devices, data files,
    model headers, chat template. Errors E7xx, E3xx, E1xx, and those of the method.
    """
    from suture.data import read_jsonl
    from suture.methods.common import row_kind
    from suture.patch import open_model

    began = time.monotonic()
    kind = METHODS[method]
    settings = _settings(kind, values, config)
    models = {"aligned": aligned, "tuned": tuned, "unaligned": unaligned}
    data = {"safety": safety, "calibration": calibration}
    _check_runtime(runtime)
    _check_arguments(kind, {**models, **data}, output, write)
    _check_outputs(models.values(), output, write)
    rows = {name: read_jsonl(file, row_kind(name)) for name, file in data.items() if file}
    sources: dict[str, Any] = {}
    for name, folder in models.items():
        if folder is not None:
            sources[name] = open_model(folder, base=sources.get("aligned"))
    arguments: dict[str, Any] = {**sources, **rows, **_given(runtime)}
    wanted = inspect.signature(kind.derive).parameters  # type: ignore[attr-defined]
    if "chat_template" in wanted and rows:
        _check_template(sources, runtime.get("chat_template"))
    if "is_refusal" in wanted:
        from suture.suites.scorers.refusal import refuses

        arguments["is_refusal"] = refuses
    matrices: list[Any] = []
    if "report" in wanted:
        arguments["report"] = matrices
    for source in sources.values():
        if hasattr(source, "check_finite"):
            source.check_finite()
    facts: dict[str, Any] = {
        "method": method,
        "config": settings.model_dump(mode="json"),
        **({"seeds": [settings.seed]} if hasattr(settings, "seed") else {}),
        "models": {name: source.fingerprint() for name, source in sources.items()},
        "data": {name: _sha256(file) for name, file in data.items() if file is not None},
    }
    edits = settings.derive(**arguments)  # type: ignore[attr-defined]
    patch = _write(sources["tuned"], edits, output, write, facts)
    facts["patch"] = patch
    facts["checkpoint"] = None if write is None else str(write)
    if matrices:
        facts["matrices"] = [row.as_dict() for row in matrices]
    facts["seconds"] = round(time.monotonic() - began, 2)
    return facts


def _write(
    base: Any, edits: Any, output: Path | None, write: Path | None, provenance: dict[str, Any]
) -> dict[str, Any] | None:
    """Drain the edits into a patch, a checkpoint, or both in one pass."""
    from suture.checkpoint import CheckpointWriter
    from suture.patch import Patch, PatchWriter, drain

    sinks: list[Any] = []
    if output is not None:
        sinks.append(PatchWriter(base, output, provenance))
    try:
        if write is not None:
            card = _card(base, provenance)
            sinks.append(CheckpointWriter(base, write, card=card, provenance=provenance))
    except BaseException:
        for sink in sinks:
            sink.abort()
        raise
    drain(edits, sinks)
    return None if output is None else dict(Patch.open(output).info.as_dict())


def _card(base: Any, provenance: Mapping[str, Any]) -> str:
    """A model card that names base, method and config, and says that nothing was measured."""
    from suture.report import Provenance, ReportFacts, model_card

    method = provenance["method"]
    facts = ReportFacts(
        title=f"{base.path.name}, edited with {method}",
        verdict="not measured",
        before={"fingerprint": base.fingerprint(), "name": base.path.name},
        after={"name": f"{base.path.name} ({method})"},
        provenance=Provenance(method=method, config=provenance["config"]),
    )
    return model_card(facts, base=base.path)


def _settings(
    kind: type[FrozenConfig], flags: Mapping[str, Any], file: Path | None
) -> FrozenConfig:
    """The method's config from file and flags (E701 unknown key, E702 value, E715 file)."""
    values: dict[str, Any] = {}
    if file is not None:
        import yaml

        try:
            loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise SutureError(
                "E715", f"cannot read the config file: {reason}", where=str(file)
            ) from (None)
        if not isinstance(loaded, dict):
            raise SutureError(
                "E715",
                "a config file is a mapping of option to value",
                where=str(file),
                fix=f"write lines such as: {next(iter(kind.model_fields))}: ...",
            )
        values = {str(key): value for key, value in loaded.items()}
        kind.load(values, where=file)  # so that a mistake in the file is reported as the file's
    return kind.load({**values, **_given(flags)}, where="command line")


def _check_runtime(runtime: Mapping[str, Any]) -> None:
    from suture.errors import nearest
    from suture.inference.loading import check_device

    if runtime.get("device") is not None:
        check_device(runtime["device"])
    dtype = runtime.get("dtype")
    if dtype is not None and dtype not in PRECISIONS:
        close = nearest(dtype, PRECISIONS) or ", ".join(PRECISIONS)
        raise SutureError("E702", f"'dtype': {dtype!r} is none", fix=f"did you mean '{close}'?")


def _check_arguments(
    kind: type[FrozenConfig],
    inputs: Mapping[str, Path | None],
    output: Path | None,
    write: Path | None,
) -> None:
    """E712 for a model the method cannot do without, or when nothing is to be written."""
    for name, parameter in inspect.signature(kind.derive).parameters.items():  # type: ignore[attr-defined]
        if parameter.default is parameter.empty and name in inputs and inputs[name] is None:
            raise SutureError(
                "E712", f"--{name} is missing", fix=f"give --{name} DIR: {MODELS.get(name, '')}"
            )
    if output is None and write is None:
        raise SutureError(
            "E712", "there is nowhere to write to", fix="give -o PATCH, --write OUT, or both"
        )


def _check_outputs(models: Iterable[Path | None], *outputs: Path | None) -> None:
    """E124 for an output inside the folder of any model, an adapter's own too."""
    from suture.checkpoint.staging import refuse_inside

    for model in filter(None, models):
        for output in filter(None, outputs):
            refuse_inside(output, model)


def _check_template(sources: Mapping[str, Any], override: Path | None) -> None:
    from suture.data import ChatTemplate

    for name in ("aligned", "tuned"):
        if name in sources:
            ChatTemplate.from_folder(sources[name].path, override=override)


def _sha256(file: Path) -> str:
    from suture.data import sha256_file

    return sha256_file(file)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def command(method: str) -> Callable[..., None]:
    """The typer command of one method, its signature built from config and `derive`."""
    kind = METHODS[method]
    wanted = inspect.signature(kind.derive).parameters  # type: ignore[attr-defined]
    annotations: dict[str, Any] = {}
    for name, help_ in {**MODELS, **DATA}.items():
        if name in wanted:
            annotations[name] = _option(Path, f"--{name}", help_)
    for name, (annotation, option) in OUTPUT.items():
        annotations[name] = Annotated[Optional[annotation], option]  # noqa: UP045 - built at run time
    for name, field in kind.model_fields.items():
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            flag = f"{flag}/--no-{flag[2:]}"
        help_ = f"{field.description}{_default(field.get_default())}"
        annotations[name] = _option(field.annotation, flag, help_)
    for name, (annotation, help_) in RUNTIME.items():
        if name in wanted:
            help_ += _default(wanted[name].default)
            annotations[name] = _option(annotation, "--" + name.replace("_", "-"), help_)
    as_json = typer.Option("--json", help="one JSON object on standard output")
    annotations["json"] = Annotated[bool, as_json]

    def run(**given: Any) -> None:
        show_json = given.pop("json")
        values = {name: given.pop(name) for name in kind.model_fields}
        facts = derive(method, values, **given)
        if show_json:
            emit_json(facts)
        else:
            emit(summary(facts))

    keyword = inspect.Parameter.KEYWORD_ONLY
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(n, keyword, default=False if n == "json" else None, annotation=a)
            for n, a in annotations.items()
        ]
    )
    run.__annotations__ = annotations
    run.__doc__ = kind.__doc__
    return run


def summary(facts: Mapping[str, Any]) -> str:
    """What was done and what was written, for people."""
    lines = []
    if rows := facts.get("matrices"):
        interfering, removed = (sum(row[key] for row in rows) for key in ("interfering", "removed"))
        total = sum(row["entries"] for row in rows)
        lines.append(
            f"{facts['method']}: {interfering:,} of {total:,} entries in {len(rows)} matrices "
            f"fight safety, {removed:,} removed"
        )
    if patch := facts["patch"]:
        lines.append(
            f"wrote patch {patch['path']}: {patch['elements']:,} entries in {patch['tensors']} "
            f"tensors, {size(patch['bytes'])}, {str(patch['fingerprint'])[:12]}"
        )
    if facts["checkpoint"]:
        lines.append(f"wrote checkpoint {facts['checkpoint']}")
    lines.append(f"{facts['seconds']:.1f} s")
    return "\n".join(lines)


def _option(annotation: Any, flag: str, help_: str) -> Any:
    option = typer.Option(flag, help=help_, show_default=False)
    return Annotated[Optional[annotation], option]  # noqa: UP045 - built at run time


def _default(value: Any) -> str:
    if value is None:
        return ""
    shown = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return f" [default: {shown}]"


COMMANDS: dict[str, Callable[..., Any]] = {f"derive {name}": command(name) for name in METHODS}
