"""`suture doctor` and `suture list`: what this machine and this installation have.

Neither imports torch (unless `doctor --deep` is asked to); versions come from package metadata.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from suture import __version__
from suture.cli.terminal import emit, emit_json, size, table
from suture.errors import SutureError, nearest, some

Status = Literal["pass", "warn", "fail"]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]

# Lowest versions, as in pyproject.toml, and why where the reason is not "we use its functions".
FLOORS: dict[str, tuple[str, str]] = {
    "torch": ("2.10", "older ones have known vulnerabilities in loading"),
    "transformers": ("5.3", "5.3.0 fixes CVE-2026-4372"),
    "safetensors": ("0.6", ""),
    "tokenizers": ("0.22", ""),
    "numpy": ("2.0", ""),
    "blake3": ("1.0", ""),
    "zlib-ng": ("1.0", ""),
    "pydantic": ("2.10", ""),
    "typer": ("0.15", ""),
    "rich": ("13.9", ""),
    "pyyaml": ("6.0", ""),
    "jinja2": ("3.1", ""),
}
EXTRAS = ("peft", "scipy")
_LEAST_FREE = 5 * 2**30

_DEEP = """
import json, torch
found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "devices": ["cpu"]}
if torch.cuda.is_available():
    found["devices"] += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
if torch.backends.mps.is_available():
    found["devices"].append("mps")
try:
    import torchvision
    found["torchvision"] = "imports"
except ModuleNotFoundError:
    found["torchvision"] = "absent"
except Exception as error:
    found["torchvision"] = f"broken: {str(error).splitlines()[0]}"
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def doctor(
    folder: Annotated[Path, typer.Option("--dir", help="folder whose disk is tested")] = Path("."),
    deep: Annotated[
        bool, typer.Option("--deep", help="also import torch and look for devices (seconds)")
    ] = False,
    json: Json = False,
) -> int:
    """Check versions, known traps, threads, disk and atomic writes; paste it into bug reports."""
    if not folder.is_dir():
        raise SutureError("E730", "there is no such folder", where=str(folder), fix="check --dir")
    checks = [*_versions(), *_traps(), *_machine(), *_disk(folder), _offline()]
    if deep:
        checks += _deep()
    failed = any(check.status == "fail" for check in checks)
    if json:
        emit_json({"suture": __version__, "ok": not failed, "checks": [asdict(c) for c in checks]})
    else:
        rows = [(c.status.upper(), c.name, _no_home(c.detail)) for c in checks]
        emit(table(rows))
        for check in checks:
            if check.fix:
                emit(f"next: {check.name}: {_no_home(check.fix)}")
    return 1 if failed else 0


def list_(
    kind: Annotated[
        str | None, typer.Argument(help="methods, suites, recipes, models or tasks [default: all]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="folder of data sets: what of the tasks' data is there")
    ] = None,
    json: Json = False,
) -> None:
    """Print what there is of a kind, one line each."""
    if kind is not None and kind not in KINDS:
        close = nearest(kind, KINDS)
        raise SutureError(
            "E731",
            f"nothing is listed under '{kind}'",
            fix=f"did you mean 'suture list {close}'?" if close else f"one of: {', '.join(KINDS)}",
        )
    if data is not None and not data.is_dir():
        raise SutureError("E730", "there is no such folder", where=str(data), fix="check --data")
    if kind == "tasks":
        _task_map(data, json)
        return
    found = {each: KINDS[each]() for each in KINDS if kind in (None, each)}
    if json:
        emit_json(
            {each: [{"name": n, "about": a} for n, a in rows] for each, rows in found.items()}
        )
        return
    for each, rows in found.items():
        heading = f"{each}\n" if kind is None else ""
        emit(heading + (table(rows) if rows else f"no {each}") + ("\n" if kind is None else ""))


def _versions() -> Iterator[Check]:
    python = platform.python_version()
    fine = sys.version_info >= (3, 11)
    yield Check("suture", "pass", __version__)
    yield Check(
        "python",
        "pass" if fine else "fail",
        f"{python} on {platform.system()} {platform.machine()}",
        "" if fine else "Suture needs Python 3.11 or newer",
    )
    for name, (floor, why) in FLOORS.items():
        there = _version(name)
        if there is None:
            yield Check(name, "fail", "not installed", f"pip install '{name}>={floor}'")
        elif _order(there) < _order(floor):
            reason = f" ({why})" if why else ""
            yield Check(
                name, "fail", f"{there} < {floor}{reason}", f"pip install '{name}>={floor}'"
            )
        else:
            yield Check(name, "pass", there)
    for name in EXTRAS:
        yield Check(name, "pass", _version(name) or "not installed (optional)")


def _traps() -> Iterator[Check]:
    vision, torch = _version("torchvision"), _version("torch") or ""
    if vision is None:
        yield Check("torchvision", "pass", "not installed (not needed)")
    else:
        apart = vision.partition("+")[2] != torch.partition("+")[2]
        yield Check(
            "torchvision",
            "warn" if apart else "pass",
            f"{vision} beside torch {torch}",
            "built for another torch, it fails when imported and takes transformers' image classes "
            "with it; `suture doctor --deep` tries it, `pip uninstall torchvision` cures it"
            if apart
            else "",
        )
    kernels = _version("kernels")
    yield Check(
        "kernels",
        "warn" if kernels else "pass",
        f"{kernels} installed" if kernels else "not installed",
        "with it, a config.json can make transformers fetch and run code; pip uninstall kernels"
        if kernels
        else "",
    )


def _machine() -> Iterator[Check]:
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS")
    try:
        too_many = wanted is not None and int(wanted) > cores
    except ValueError:
        too_many = True
    yield Check(
        "threads",
        "warn" if too_many else "pass",
        f"{cores} cores, OMP_NUM_THREADS={wanted or 'unset'}",
        f"set OMP_NUM_THREADS to at most {cores}" if too_many else "",
    )
    from suture.runs.plan import memory_there

    there = memory_there()
    yield Check("memory", "pass", "unknown" if there is None else f"{size(there)} free")


def _disk(folder: Path) -> Iterator[Check]:
    free = shutil.disk_usage(folder).free
    little = free < _LEAST_FREE
    yield Check(
        "disk",
        "warn" if little else "pass",
        f"{size(free)} free in {folder.resolve()}",
        "checkpoints of billions of parameters need more" if little else "",
    )
    yield _atomic_write(folder)


def _atomic_write(folder: Path) -> Check:
    """Write, fsync, rename, fsync the folder, read back: what every output of Suture relies on."""
    try:
        with tempfile.TemporaryDirectory(prefix=".suture-doctor-", dir=folder) as scratch:
            staged, final = Path(scratch, "staged"), Path(scratch, "final")
            staged.mkdir()
            with (staged / "bytes").open("wb") as file:
                file.write(b"suture" * 1000)
                file.flush()
                os.fsync(file.fileno())
            staged.rename(final)
            if hasattr(os, "O_DIRECTORY"):
                handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            if (final / "bytes").read_bytes() != b"suture" * 1000:
                raise OSError("other bytes came back")
    except OSError as error:
        reason = error.strerror or str(error)
        return Check("write test", "fail", reason, "choose a folder you can write to, with --dir")
    return Check("write test", "pass", "write, fsync, rename and read back work")


def _offline() -> Check:
    open_ = [n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(n) == "0"]
    note = "folders in, folders out; nothing is downloaded or sent"
    if open_:
        return Check("offline", "warn", f"{', '.join(open_)}=0 in the environment", "unset it")
    return Check("offline", "pass", note)


def _deep() -> Iterator[Check]:
    import json

    done = subprocess.run(
        [sys.executable, "-c", _DEEP], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Check("import torch", "fail", last, "install again with -c constraints.txt")
        return
    found = json.loads(done.stdout.strip().splitlines()[-1])
    yield Check("import torch", "pass", f"{found['torch']}, {found['threads']} threads")
    yield Check("devices", "pass", ", ".join(found["devices"]))
    broken = found["torchvision"].startswith("broken")
    yield Check(
        "import torchvision",
        "warn" if broken else "pass",
        found["torchvision"],
        "pip uninstall torchvision; Suture does not need it" if broken else "",
    )


def _methods() -> list[tuple[str, str]]:
    from suture.methods import METHODS

    return [(name, _first_line(config.__doc__)) for name, config in METHODS.items()]


def _suites() -> list[tuple[str, str]]:
    from suture.suites import available, load_suite

    return [(name, some(list(load_suite(name).metrics), 14)) for name in available()]


def _recipes() -> list[tuple[str, str]]:
    from suture.config import read_yaml
    from suture.recipes import headline, shipped_recipes, verb_of

    return [
        (name, f"{headline(path)} (suture {verb_of(read_yaml(path))})")
        for name, path in shipped_recipes().items()
    ]


def _models() -> list[tuple[str, str]]:
    from suture.lab import shipped

    return [
        *(
            (name, "member of the lab; `suture lab path " + name + "`")
            for name in shipped.members()
        ),
        ("suture-decoder", "architecture of our own: vanilla, FFN-Wider, CEA, experts"),
        ("suture-encoder", "the same as a masked language model"),
    ]


def _tasks() -> list[tuple[str, str]]:
    from suture.suites.tasks.listing import listing

    return [(row.name, f"{row.about} ({row.suite})") for row in listing() if row.name]


def _task_map(data: Path | None, json: bool) -> None:
    """Tasks with modality, data set, metrics, licence and what is on disk."""
    from suture.suites.tasks.listing import listing

    rows = listing(data)
    if json:
        named = [row.as_dict() for row in rows if row.name]
        unnamed = [row.as_dict() for row in rows if not row.name]
        emit_json({"tasks": named, "data sets without a task": unnamed})
        return
    head = ["task", "suite", "modality", "data set", "metrics", "licence", "on disk"]
    cells = [
        [
            row.name or "-",
            f"{row.suite}, held out" if row.held_out else row.suite or "-",
            row.modality,
            row.dataset,
            some(row.metrics, 3),
            row.licence,
            "?" if row.there is None else " ".join(row.there) or "-",
        ]
        for row in rows
    ]
    emit(table(cells, head))
    if data is None:
        emit("next: suture list tasks --data DIR shows what of it is in a folder of data sets")


KINDS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "methods": _methods,
    "suites": _suites,
    "recipes": _recipes,
    "models": _models,
    "tasks": _tasks,
}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _order(version: str) -> tuple[int, ...]:
    """The numbers of a version, enough to hold it against a floor."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit()) if part[:1].isdigit() else ""
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if (text or "").strip() else ""


def _no_home(text: str) -> str:
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


COMMANDS: dict[str, Callable[..., Any]] = {"doctor": doctor, "list": list_}
