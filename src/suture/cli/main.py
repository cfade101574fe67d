"""The `suture` command: finds the verb, imports its file only then, and words every refusal.

Exit codes: what the ledger says (0 proven, 2 broken, 3 not proven), 1 for anything else, usage
errors included. The root help comes from the table below, so it needs none of the verbs' files.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from suture import __version__
from suture.cli.terminal import clean, emit, emit_json, table, warn
from suture.errors import SutureError, nearest, spelt

# verb: (file in suture.cli, one line of help)
VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Start here": {
        "demo": ("run", "the whole story on the lab: damage, repair, proof, report"),
        "doctor": ("info", "check versions, disk, threads and known traps; paste-able"),
        "list": ("info", "what there is: methods, suites, recipes, models, tasks"),
    },
    "Weights": {
        "inspect": ("weights", "what a checkpoint folder holds, from its headers"),
        "diff": ("weights", "write the exact patch between two checkpoints"),
        "apply": ("weights", "put patches onto a checkpoint, bit for bit"),
        "revert": ("weights", "take a patch out again, bit for bit"),
        "verify": ("weights", "hash a checkpoint or a patch against its manifest"),
        "patch": ("patch", "look into patches, merge and split them, turn them to LoRA and back"),
    },
    "Edits": {
        "derive": ("derive", "run one method and write the change as a patch"),
        "train": ("train", "fine-tune, unalign or unlearn a checkpoint"),
        "task": ("task", "write a text task as rows to train on"),
    },
    "Proof": {
        "measure": ("measure", "run one suite on one model"),
        "score": ("measure", "score saved replies again"),
        "import": ("logs", "bring in a log of lm-eval or inspect as a measurement"),
        "compare": ("measure", "pair measurements and give verdicts; exit 0, 2 or 3"),
        "table": ("table", "models, metrics and seeds side by side: Markdown, CSV, LaTeX"),
        "plot": ("table", "draw how the answers of a personality measurement lean"),
        "report": ("report", "write the page of a finished run again"),
        "chat": ("chat", "talk to a model, before and after a patch side by side"),
    },
    "Whole runs": {
        "init": ("run", "write a commented recipe to start from"),
        "plan": ("run", "memory, disk, time and tensors of a recipe, from headers alone"),
        "run": ("run", "everything in a recipe; the same command resumes"),
        "sweep": ("sweep", "a grid of knobs: trade-off, Pareto front, the setting that fits"),
        "pick": ("sweep", "write the exact recipe of one setting of a sweep"),
    },
    "People": {
        "labels": ("labels", "annotators to soft labels; agreement, wrong labels, clean posts"),
    },
    "Lab": {
        "lab": ("lab", "build the miniature world, or say where its members are"),
    },
}
COMMANDS = {verb: where for group in VERBS.values() for verb, where in group.items()}
# What an interrupted verb leaves to the next run; the others write when they are done.
_KEPT = {
    "derive": "Finished tensors are",
    "train": "The last saved state is",
    "run": "Finished stages are",
    "demo": "Finished stages are",
    "lab": "Finished members are",
}
HELP_NAMES = {"help_option_names": ["-h", "--help"]}
# What is wrong with a path, rather than with us.
_PLACES = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_PLACES |= {errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS}


class Group(TyperGroup):
    """A group of commands that names the nearest one when it does not know a word."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args:
            args = [spelt(args[0], self.list_commands(ctx)), *args[1:]]
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise _unknown_command(ctx, args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


class Root(Group):
    """All verbs; a verb's file is imported when the verb or its help is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(root_help())


def load(verb: str) -> Any:
    """The command behind `verb`: a function, a mapping of functions, or a typer app."""
    found = importlib.import_module(f"suture.cli.{COMMANDS[verb][0]}").COMMANDS
    if verb in found:
        return _command(verb, found[verb])
    prefix = verb + " "  # "patch info", "patch merge", ...
    return _command(verb, {k.removeprefix(prefix): v for k, v in found.items() if prefix in k})


def _command(verb: str, target: Any) -> Any:
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    options: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}
    if isinstance(target, Mapping):
        app = typer.Typer(
            name=verb, cls=Group, help=COMMANDS[verb][1], context_settings=HELP_NAMES, **options
        )
        app.callback()(lambda: None)
        for name, function in target.items():
            app.command(name, context_settings=_settings(function))(function)
        return typer.main.get_command(app)
    app = typer.Typer(**options)
    app.command(verb, context_settings=_settings(target))(target)
    return typer.main.get_command(app)


def _settings(function: Callable[..., Any]) -> dict[str, Any]:
    """HELP_NAMES and what the function asks for itself, as an attribute `context_settings`."""
    return {**HELP_NAMES, **getattr(function, "context_settings", {})}


def root_help() -> str:
    """The text of `suture --help`."""
    width = max(map(len, COMMANDS))
    parts = [
        "Usage: suture COMMAND [OPTIONS]\n",
        "Change one capability of a language model, keep the rest, and prove it.\n",
    ]
    for group, verbs in VERBS.items():
        rows = [(verb.ljust(width), line) for verb, (_, line) in verbs.items()]
        parts.append(f"{group}:\n{table(rows, indent='  ')}\n")
    parts.append(
        "Every command takes --help, --json (one JSON object on standard output) and --debug.\n"
        "Exit codes: 0 proven or done, 2 something broke, 3 not proven, 1 error. suture --version\n"
    )
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `suture` script, which ends the process; others call `run`."""
    # What imports make stays; the collector would go through all of it again and again, a tenth of
    # the time that torch takes to import.
    gc.set_threshold(100_000, 50, 100)
    code = 1
    atexit.register(lambda: _leave(code))  # the first to be registered runs last
    with suppress(KeyboardInterrupt):  # while a message is written: 1 as for any other moment
        code = run(sys.argv[1:] if argv is None else argv)
    sys.exit(code)


def _leave(code: int) -> None:
    """End now: torch would take half a second to be taken apart object by object.

    Threads have been joined and all other exit functions have run; files are closed where they
    were written.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but a bug escapes as an exception."""
    args, debug = _without_debug(argv)
    as_json = "--json" in args
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a C locale must not crash a report
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")  # offline by default
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads for no use
    if as_json:
        from suture import progress

        progress.silent = True
    try:
        with _quiet_finalizers():
            return _dispatch(args)
    except KeyboardInterrupt:
        return _interrupted(args)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has left; say nothing more
        return 1
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            raise
        return _refused(error, as_json, args)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        emit(root_help())
        return 0
    if args[0] == "--version":
        emit(f"suture {__version__}")
        return 0
    root = Root(name="suture", context_settings=HELP_NAMES)
    code = root.main(args, prog_name="suture", standalone_mode=False)
    if code == 130:  # typer's word for Ctrl-C
        return _interrupted(args)
    return code if type(code) is int else 0


def _refused(error: BaseException, as_json: bool, args: Sequence[str]) -> int:
    known = _explain(error, args)
    if known is None:
        return int(error.code or 0) if isinstance(error, SystemExit) else 1
    if as_json:
        emit_json({"error": known.as_dict()})
    else:
        warn(str(known))
    return 1


def _explain(error: BaseException, args: Sequence[str]) -> SutureError | None:
    """Any exception as a refusal with a remedy; None when there is nothing to add."""
    if isinstance(error, SutureError):
        return error
    if isinstance(error, SystemExit):
        return None
    if hasattr(error, "format_message"):  # a usage error of typer's parser
        return _usage(error, args)
    if type(error).__name__ == "Abort":
        return SutureError("E719", "stopped: the question was not answered")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SutureError(
            "E795",
            "no space left on the disk",
            where=str(error.filename or os.getcwd()),
            why="unfinished output was removed; what stood there before is untouched",
            fix="free some space and run the same command again",
        )
    if isinstance(error, OSError) and error.errno in _PLACES and error.filename:
        reason = (error.strerror or "cannot be used").lower()
        return SutureError(
            "E796",
            reason,
            where=str(error.filename),
            why="the command has to read or write there",
            fix=f"check the path: ls -ld {shlex.quote(str(error.filename))}",
        )
    if isinstance(error, MemoryError):
        return SutureError(
            "E797", "out of memory", fix="`suture plan` says how much a recipe needs"
        )
    text = " ".join(str(error).split())[:300]
    return SutureError(
        "E799",
        f"unexpected {type(error).__name__}: {text}",
        why="this is a bug in Suture or in something it uses",
        fix="run again with --debug, and report the traceback with `suture doctor`",
    )


def _usage(error: Any, args: Sequence[str]) -> SutureError:
    """Typer's usage errors, with the nearest right option and the usage line."""
    ctx: Any = getattr(error, "ctx", None)
    verb = [arg for arg in args[:1] if arg in COMMANDS]
    path = ctx.command_path if ctx is not None else " ".join(["suture", *verb])
    help_line = f"`{path} --help` lists everything"
    option = str(getattr(error, "option_name", ""))
    message = error.format_message().rstrip(".")
    if type(error).__name__ == "NoSuchOption" and ctx is not None:
        known = [name for param in ctx.command.get_params(ctx) for name in _names(param)]
        bare = {name.lstrip("-"): name for name in known}  # dashes are alike in all of them
        close = bare.get(nearest(option.lstrip("-"), bare) or "")
        return SutureError(
            "E710",
            f"unknown option '{option}'",
            where=path,
            fix=f"did you mean '{close}'?" if close else help_line,
        )
    if found := re.match(r"No such command '(.*?)'", message):
        return _unknown_command(ctx, found[1], ctx.command.list_commands(ctx))
    if type(error).__name__ == "MissingParameter":
        usage = " ".join(ctx.get_usage().split()) if ctx is not None else ""
        param = getattr(error, "param", None)
        if names := _names(param):  # the usage line names no options
            usage = f"add {names[0]}: {getattr(param, 'help', None) or help_line}. {usage}"
        return SutureError("E712", message[0].lower() + message[1:], where=path, fix=usage)
    if re.search(r"unexpected extra argument", message):
        if verb == ["revert"]:
            help_line = "one patch at a time, last first; a stack that was rounded by its OUT.undo"
        return SutureError("E713", message[0].lower() + message[1:], where=path, fix=help_line)
    return SutureError("E714", message[:1].lower() + message[1:], where=path, fix=help_line)


def _names(param: Any) -> list[str]:
    if getattr(param, "param_type_name", "") != "option":
        return []
    return [*param.opts, *param.secondary_opts]


def _unknown_command(ctx: Any, word: str, known: Sequence[str]) -> SutureError:
    close = nearest(word, known)
    path = ctx.command_path
    return SutureError(
        "E711",
        f"unknown command '{clean(word)}'",
        where=path,
        fix=f"did you mean '{path} {close}'?" if close else f"one of: {', '.join(known)}",
    )


@contextmanager
def _quiet_finalizers() -> Iterator[None]:
    """A second Ctrl-C may strike in a finalizer, which cannot raise it: Python would print a
    traceback in the middle of an orderly end."""
    former = sys.unraisablehook

    def hook(found: Any) -> None:
        if not isinstance(found.exc_value, KeyboardInterrupt):
            former(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = former


def _interrupted(args: Sequence[str]) -> int:
    """Say what is left and what the same command will do; exit 1, at whatever moment it came."""
    kept = _KEPT.get(args[0] if args else "")
    method = getattr(sys.modules.get("suture.methods"), "METHODS", {}).get("".join(args[1:2]))
    if kept and getattr(method, "streamed", True):
        warn(f"Interrupted. {kept} kept, nothing half-written is left under its final name")
        warn("and the inputs are untouched; the same command goes on from there.")
    else:
        warn("Interrupted. Nothing half-written is left under its final name and the inputs are")
        warn("untouched; the same command begins again.")
    return 1


def _without_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """`--debug` may stand anywhere before `--`; no verb needs to know of it."""
    args = list(argv)
    end = args.index("--") if "--" in args else len(args)
    head = [arg for arg in args[:end] if arg != "--debug"]
    return head + args[end:], len(head) != end
