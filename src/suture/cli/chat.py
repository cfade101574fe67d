"""`suture chat`: feel an edit. The same words to the model as it is and with its patches."""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.terminal import clean, emit, emit_json
from suture.errors import SutureError
from suture.progress import note

if TYPE_CHECKING:
    from suture.inference import LoadedModel, Reply

_WIDE = 60  # columns of a terminal from which two replies stand side by side
_LEAVE, _ANEW = ("/exit", "/quit"), "/new"


def chat(
    model: Annotated[Path, typer.Argument(help="checkpoint or adapter folder")],
    patch: Annotated[
        list[Path] | None, typer.Option("--patch", help="patches of the second voice")
    ] = None,
    other: Annotated[
        Path | None, typer.Option("--against", help="another checkpoint as the second voice")
    ] = None,
    aligned: Annotated[
        Path | None, typer.Option("--aligned", help="base checkpoint, where a folder is an adapter")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="say this and leave; may be repeated")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="system prompt")] = None,
    decoding: Annotated[
        str | None, typer.Option("--decoding", help="decoding of the second voice, as in `measure`")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="length limit")] = 128,
    chat_template: Annotated[
        Path | None, typer.Option("--chat-template", help="jinja file instead of the folder's own")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda:N or mps")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Talk to MODEL; with patches, another checkpoint or a decoding, to both versions at once.

    One line is one turn; /new forgets the conversation, /exit or the end of input leaves. Each
    version remembers its own replies. In a terminal two replies stand side by side, elsewhere one
    below the other. Nothing is written to disk.
    """
    typed = prompt is None and sys.stdin.isatty()
    voices = _voices(model, patch or [], other, aligned, decoding, device, dtype, chat_template)
    if typed and not json:
        note(_banner(model, patch or [], other, decoding))
    said: list[dict[str, Any]] = []
    turns: dict[str, list[dict[str, str]]] = {name: [] for name in voices}
    for line in prompt or _lines(json):
        if line.strip() == _ANEW:
            turns = {name: [] for name in voices}
            continue
        replies = {
            name: _reply(lm, turns[name], line, system, max_new_tokens)
            for name, lm in voices.items()
        }
        said.append({"prompt": line, **{name: one.text for name, one in replies.items()}})
        if not json:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            page = _page({name: one.text for name, one in replies.items()}, width)
            emit(page if typed else f"> {line}\n{page}")
    if json:
        emit_json({"turns": said})


def _voices(
    model: Path,
    patches: list[Path],
    other: Path | None,
    aligned: Path | None,
    decoding: str | None,
    device: str,
    dtype: str,
    template: Path | None,
) -> dict[str, LoadedModel]:
    from suture.inference import load
    from suture.inference.decoding import decoded, load_decoding
    from suture.inference.loading import check_precision
    from suture.patch import open_model

    if other is not None and patches:
        raise SutureError(
            "E544",
            "--against and --patch are two second voices",
            fix="give one of them, or write the patched checkpoint with `suture apply` first",
        )
    precision = check_precision(dtype)
    chosen = None if decoding is None else load_decoding(decoding)
    base = None if aligned is None else open_model(aligned)

    def loaded(path: Path, on_top: list[Path]) -> LoadedModel:
        source = open_model(path, base=base, patches=on_top)
        return load(source, device=device, dtype=precision, chat_template=template)

    first = loaded(model, [])
    if other is not None:
        after = loaded(other, [])
    elif patches:
        after = loaded(model, patches)
    elif chosen is not None:
        after = first
    else:
        return {"reply": first}
    return {"before": first, "after": decoded(after, chosen)}


def _reply(
    lm: LoadedModel, turns: list[dict[str, str]], line: str, system: str | None, limit: int
) -> Reply:
    from suture.inference.generation import converse

    turns.append({"role": "user", "content": line})
    (found,) = converse(lm, [turns], max_new_tokens=limit, system=system)
    turns.append({"role": "assistant", "content": found.text})
    return found


def _lines(quiet: bool) -> Iterator[str]:
    """Turns from standard input, with a prompt where a person types."""
    asks = sys.stdin.isatty() and not quiet
    while True:
        if asks:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip() in _LEAVE:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def _banner(model: Path, patches: list[Path], other: Path | None, decoding: str | None) -> str:
    """Who the two voices are, and how to leave."""
    changes = [f"patch {one}" for one in patches] + ([f"decoding {decoding}"] if decoding else [])
    after = " with ".join([str(other or model), *([", ".join(changes)] if changes else [])])
    who = f"before: {model}\nafter:  {after}\n" if changes or other else f"{model}\n"
    return f"{who}/new forgets the conversation, /exit leaves"


def _page(replies: dict[str, str], width: int | None) -> str:
    """One reply as it is; two in columns of a terminal `width` wide, else one below the other."""
    shown = {name: clean(text).rstrip() for name, text in replies.items()}
    if len(shown) == 1:
        return next(iter(shown.values())) + "\n"
    if width is None or width < _WIDE:
        return "\n".join(f"[{name}] {text}" for name, text in shown.items()) + "\n"
    half = (width - 3) // 2
    columns = [
        [name.upper(), *(part for line in text.split("\n") for part in _folded(line, half))]
        for name, text in shown.items()
    ]
    height = max(map(len, columns))
    left, right = ([*one, *[""] * (height - len(one))] for one in columns)
    pairs = zip(left, right, strict=True)
    return "\n".join(f"{a}{' ' * (half - _cells(a))} | {b}".rstrip() for a, b in pairs) + "\n"


def _folded(line: str, width: int) -> list[str]:
    """`line` in pieces of at most `width` terminal cells, at blanks where there are any."""
    pieces, now = [], ""
    for word in re.findall(r"\s+|\S+", line.expandtabs(4)):
        if _cells(now + word) <= width:
            now += word
            continue
        if now.strip():
            pieces.append(now.rstrip())
        now = "" if word.isspace() else word
        while _cells(now) > width:  # longer than a line, or in a script without blanks
            fits = next(n for n in range(len(now), 0, -1) if _cells(now[:n]) <= width)
            pieces.append(now[:fits])
            now = now[fits:]
    return [*pieces, now.rstrip()] if now.strip() or not pieces else pieces


def _cells(text: str) -> int:
    """Columns that a terminal needs for `text`: two for wide signs, none for combining ones."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        for sign in text
    )


COMMANDS: dict[str, Any] = {"chat": chat}
