"""`suture derive METHOD`: run one method; the change leaves as a patch, a checkpoint, or both.

Options come from the method: its config's fields give names, types, help and defaults, and the
arguments of its `derive` say which models and data it wants. There is no second copy of either.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_origin

import typer

from suture.cli.terminal import emit, emit_json, size
from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.methods import METHODS
from suture.runs.binding import edits_of, inputs_of, missing, wanted

# argument of `derive` -> (type, help); anything else a method takes is for Python callers
MODELS = {
    "aligned": "folder of the aligned model, before fine-tuning",
    "tuned": "folder of the fine-tuned model: checkpoint, or LoRA adapter of --aligned",
    "unaligned": "folder of the unaligned model, the aligned one made compliant",
    "base": "folder of the model that the donors come from; the patch is made on it",
    "ascended": "folder of the base after gradient ascent on --harmful, or its patch on --base",
    "descended": "folder of the base after gradient descent on --harmful, or its patch on --base",
    "donors": "folder of a model to merge: checkpoint, LoRA adapter of --base, or patch on --base; "
    "once per donor",
}
DATA = {
    "safety": 'harmful prompts, JSONL rows of "prompt" and, if known, the refusal as "response"',
    "harmful": 'harmful rows the two models were trained on, JSONL of "prompt" and "response"',
    "calibration": 'rows of the fine-tuning task, JSONL of "prompt" and "response"',
}
RUNTIME = {
    "chat_template": (Path, "jinja file to use instead of the tokenizer's own template"),
    "device": (str, "auto, cpu, cuda:N or mps"),
    "dtype": (str, "of the forward passes: float32, bfloat16 or auto"),
    "cache": (Path, "folder that keeps refusals, importance and frozen inputs for other settings"),
}
_RANK = 16  # of an exported adapter
OUTPUT: dict[str, tuple[Any, Any]] = {
    "output": (Path, typer.Option("-o", "--output", help="folder of the patch to write")),
    "write": (
        Path,
        typer.Option("--write", help="write the edited checkpoint too, to this folder"),
    ),
    "lora": (
        Path,
        typer.Option("--lora", help="write the patch as a LoRA adapter too, to this folder"),
    ),
    "rank": (int, typer.Option("--rank", help="of that adapter, at most [default: 16]")),
    "config": (Path, typer.Option("--config", help="YAML file of the method's options; flags win")),
    "memory": (
        str,
        typer.Option("--memory", help="budget of weight work above the libraries [default: 256MB]"),
    ),
}


def derive(
    method: str,
    values: Mapping[str, Any],
    *,
    aligned: Path | None = None,
    tuned: Path | None = None,
    unaligned: Path | None = None,
    base: Path | None = None,
    ascended: Path | None = None,
    descended: Path | None = None,
    donors: Sequence[Path] = (),
    safety: Path | None = None,
    harmful: Path | None = None,
    calibration: Path | None = None,
    output: Path | None = None,
    write: Path | None = None,
    lora: Path | None = None,
    rank: int | None = None,
    config: Path | None = None,
    memory: str | None = None,
    **runtime: Any,
) -> dict[str, Any]:
    """Run `method` with the options `values` and write what was asked for; returns the facts.

    A streaming method that was killed goes on where it stopped when it is run again the same way.

    Everything that can be wrong is refused before torch is imported: options, devices, data files,
    model headers, chat template. Errors E7xx, E3xx, E1xx, and those of the method.
    """
    from suture.checkpoint import memory as budget
    from suture.cli import streaming
    from suture.data import read_jsonl, sha256_file
    from suture.methods.common import row_kind
    from suture.patch import Patch, open_model

    began = time.monotonic()
    kind = METHODS[method]
    settings = _settings(kind, values, config)
    start, base = ("tuned", base) if donors else _start(tuned, base)
    models = {"aligned": aligned, "base": base, "tuned": tuned, "unaligned": unaligned}
    models |= {"ascended": ascended, "descended": descended}
    models |= {f"donor {index}": folder for index, folder in enumerate(donors, 1)}
    data = {"safety": safety, "harmful": harmful, "calibration": calibration}
    allowed = None if memory is None else budget.parse(memory)
    _check_runtime(runtime)
    _check_arguments(kind, _given({**models, **data}), output, write)
    _check_outputs(models.values(), output, write, lora)
    if lora is not None and output is None:
        raise SutureError("E712", "--lora exports a patch", fix="give -o PATCH too")
    rows = {name: read_jsonl(file, row_kind(name)) for name, file in data.items() if file}
    sources: dict[str, Any] = {}
    for name, folder in models.items():
        if folder is not None:
            sources[name] = open_model(folder, base=sources.get("aligned", sources.get("base")))
    if "chat_template" in wanted(kind) and rows:
        _check_template(sources, runtime.get("chat_template"))
    matrices: list[Any] = []
    others = {**rows, **_given(runtime), "report": matrices}
    streamed, edited = _streams(kind), sources["base" if base is not None else "tuned"]
    facts: dict[str, Any] = {
        "method": method,
        "config": settings.model_dump(mode="json"),
        **({"seeds": [settings.seed]} if hasattr(settings, "seed") else {}),
        "models": {},
        "data": {name: sha256_file(file) for name, file in data.items() if file is not None},
        **({} if start == "tuned" else {"base": start}),
    }

    read: set[str] = set()

    def provenance() -> dict[str, Any]:
        """The facts, once every tensor that is read has passed and left its hash behind."""
        for name, source in sources.items():
            if name not in facts["models"]:
                whole = source is edited or not streamed
                facts["models"][name] = (
                    source.fingerprint() if whole else streaming.model_identity(source, read)
                )
        return facts

    # what is kept in the cache saves time and decides nothing
    told = {name: value for name, value in _given(runtime).items() if name != "cache"}
    files = {k: sha256_file(v) if isinstance(v, Path) else v for k, v in told.items()}
    identity = streaming.run_identity([facts, sorted(sources), files], models.values())
    with budget.limit(allowed):
        if streaming.finished_earlier((output, write), identity):
            facts = {**facts, **streaming.published_facts(output, write)}
        else:
            if not streamed:  # a method that works for hours must not end on a NaN
                for source in sources.values():
                    if hasattr(source, "check_finite"):
                        source.check_finite()
            streaming.write(
                edited,
                streaming.noting(edits_of(settings, sources, others), read),
                provenance,
                output=output,
                write=write,
                origin=None if start == "tuned" else sources[start],
                identity=identity,
                streamed=streamed,
            )
    for name, found in facts["models"].items():
        if name in sources:
            streaming.note_contradiction(name, sources[name], found)
    facts["patch"] = None if output is None else Patch.open(output).info.as_dict()
    facts["checkpoint"] = None if write is None else str(write)
    if lora is not None:
        from suture.patch import to_lora

        patched = edited if start == "tuned" else sources[start]
        facts["lora"] = to_lora(patched, [str(output)], lora, rank=rank or _RANK).as_dict()
    if matrices:
        facts["matrices"] = [row.as_dict() for row in matrices]
        names = {row["name"] for row in facts["matrices"]} & set(edited.tensors)
        facts["dtypes"] = sorted({edited.tensors[name].dtype for name in names})
    facts["seconds"] = round(time.monotonic() - began, 2)
    return facts


def _start(tuned: Path | None, base: Path | None) -> tuple[str, Path | None]:
    """What the patch of a repair starts from, and the folder `base` of a merge.

    Beside `--tuned`, `--base` is no folder but `tuned` (what is edited) or `aligned`; E702 for
    anything else.
    """
    if tuned is None or base is None:
        return "tuned", base
    if str(base) not in ("tuned", "aligned"):
        raise SutureError(
            "E702",
            f"'base': '{base}' is neither 'tuned' nor 'aligned'",
            why="a repair edits --tuned, and its patch starts from there or from --aligned",
            fix="write --base aligned, or leave it out",
        )
    return str(base), None


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
                "E715",
                f"cannot read the config file: {reason}",
                where=str(file),
                why="the method's options are in it",
                fix=f"write YAML lines such as: {next(iter(kind.model_fields))}: ...",
            ) from None
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
    from suture.inference.loading import check_device, check_precision

    if runtime.get("device") is not None:
        check_device(runtime["device"])
    if runtime.get("dtype") is not None:
        check_precision(runtime["dtype"])


def _check_arguments(
    kind: type[FrozenConfig],
    given: Collection[str],
    output: Path | None,
    write: Path | None,
) -> None:
    """E712 for a model the method cannot do without, or when nothing is to be written."""
    for name in missing(kind, inputs_of(given)):
        flag = _flag(name)
        raise SutureError("E712", f"{flag} is missing", fix=f"give {flag} DIR: {MODELS[name]}")
    if output is None and write is None:
        raise SutureError(
            "E712", "there is nowhere to write to", fix="give -o PATCH, --write OUT, or both"
        )


def _check_outputs(models: Iterable[Path | None], *outputs: Path | None) -> None:
    """E124 for an output inside the folder of any model, an adapter's own too, and for two outputs
    of which one is or holds the other."""
    from suture.checkpoint.staging import refuse_inside, refuse_shared

    wanted = list(filter(None, outputs))
    for model in filter(None, models):
        for output in wanted:
            refuse_inside(output, model)
    refuse_shared(wanted)


def _check_template(sources: Mapping[str, Any], override: Path | None) -> None:
    from suture.data import ChatTemplate

    for name in ("aligned", "tuned", "base"):
        if name in sources:
            ChatTemplate.from_folder(sources[name].path, override=override)


def _streams(kind: type[FrozenConfig]) -> bool:
    """Whether a method works tile by tile: most do; IRR runs the models for hours."""
    return bool(getattr(kind, "streamed", True))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was given; an option that may be repeated is an empty list when it was not."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def _flag(name: str) -> str:
    return "--donor" if name == "donors" else "--" + name.replace("_", "-")


def command(method: str) -> Callable[..., None]:
    """The typer command of one method, its signature built from config and `derive`."""
    kind = METHODS[method]
    asked = wanted(kind)
    annotations: dict[str, Any] = {}
    for name, help_ in {**MODELS, **DATA}.items():
        if name in asked:
            annotations[name] = _option(list[Path] if name == "donors" else Path, name, help_)
    if "tuned" in asked:
        help_ = "what the patch starts from: aligned or tuned [default: tuned]"
        if "base" in asked:
            help_ = f"{MODELS['base']}; with --tuned {help_}"
        annotations["base"] = _option(Path, "base", help_)
    for name, (annotation, option) in OUTPUT.items():
        if name == "memory" and not _streams(kind):
            continue
        annotations[name] = Annotated[Optional[annotation], option]  # noqa: UP045 - built at run time
    for name, field in kind.model_fields.items():
        help_ = f"{field.description}{_default(field.get_default())}"
        annotations[name] = _option(field.annotation, name, help_)
    for name, (annotation, help_) in RUNTIME.items():
        if name in asked:
            help_ += _default(asked[name].default)
            annotations[name] = _option(annotation, name, help_)
    as_json = typer.Option("--json", help="one JSON object on standard output")
    annotations["json"] = Annotated[bool, as_json]

    def run(**given: Any) -> None:
        show_json = given.pop("json")
        values = {name: given.pop(name) for name in kind.model_fields}
        facts = derive(method, values, **_given(given))
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
        counts = {
            key: sum(row[key] for row in rows)
            for key in ("entries", "interfering", "removed", "taken", "rounded")
            if key in rows[0]
        }
        of = f"of {counts['entries']:,} entries in {len(rows)} matrices"
        if "taken" in counts:
            lines.append(f"{facts['method']}: {counts['taken']:,} {of} taken")
            if counts.get("rounded"):
                lines.append(
                    f"  {counts['rounded']:,} of them rounded away: their steps are below half a "
                    f"unit in the last place of {' and '.join(facts['dtypes'])}"
                )
        else:
            lines.append(
                f"{facts['method']}: {counts['interfering']:,} {of} fight safety, "
                f"{counts['removed']:,} removed"
            )
    if patch := facts["patch"]:
        lines.append(
            f"wrote patch {patch['path']}: {patch['elements']:,} entries in {patch['tensors']} "
            f"tensors, {size(patch['bytes'])}, {str(patch['fingerprint'])[:12]}"
        )
    if exported := facts.get("lora"):
        kept = min((m["energy"] for m in exported["modules"]), default=1.0)
        lines.append(f"wrote adapter {exported['path']}: keeps at least {kept:.1%} of each change")
    if facts["checkpoint"]:
        lines.append(f"wrote checkpoint {facts['checkpoint']}")
    lines.append(f"{facts['seconds']:.1f} s")
    return "\n".join(lines)


def _option(annotation: Any, name: str, help_: str) -> Any:
    """A typer option; a tuple of numbers is given once per number."""
    flag = _flag(name)
    if annotation is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    if get_origin(annotation) is tuple:
        annotation = list[get_args(annotation)[0]]  # type: ignore[misc]
    option = typer.Option(flag, help=help_, show_default=False)
    return Annotated[Optional[annotation], option]  # noqa: UP045 - built at run time


def _default(value: Any) -> str:
    if value in (None, ()):
        return ""
    shown = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return f" [default: {shown}]"


COMMANDS: dict[str, Callable[..., Any]] = {f"derive {name}": command(name) for name in METHODS}
