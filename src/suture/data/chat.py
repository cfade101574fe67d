"""From a prompt to token ids: the folder's own chat template, rendered in a sandbox.

The template text comes from a stranger's folder, so it runs in jinja2's immutable sandbox with
only the helpers that published templates use. `strftime_now` always says 26 Jul 2024 (the date
Llama's own template falls back to): a prompt that changes with the calendar could not be compared
with yesterday's measurement.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from suture.errors import SutureError

if TYPE_CHECKING:
    import jinja2
    from transformers import PreTrainedTokenizerBase

_TODAY = datetime.datetime(2024, 7, 26)
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompt and response together; the response starts at `prompt_length`."""

    ids: list[int]
    prompt_length: int

    @property
    def response_ids(self) -> list[int]:
        """The response's tokens, the end token included; empty when there was no response."""
        return self.ids[self.prompt_length :]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and the special tokens it may name."""

    text: str
    origin: str = "given"
    tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, path: str | Path, override: str | Path | None = None) -> ChatTemplate:
        """Read `chat_template.jinja`, else `tokenizer_config.json`; `override` is a file to prefer.

        Raises SutureError E320 when the folder has no template, E321 when it is not readable.
        """
        path = Path(path)
        settings = _json(path / "tokenizer_config.json")
        tokens = _special_tokens(settings)
        if override is not None:
            return cls(_read(Path(override)), str(override), tokens)
        beside = path / "chat_template.jinja"
        if beside.is_file():
            return cls(_read(beside), beside.name, tokens)
        found = settings.get("chat_template")
        if isinstance(found, list):  # several named templates: the one called default
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default")
        if isinstance(found, str) and found.strip():
            return cls(found, "tokenizer_config.json", tokens)
        raise SutureError(
            "E320",
            "the tokenizer has no chat template",
            where=str(path),
            why="without the markers it was trained with, a chat model's replies mean nothing",
            fix="give one with --chat-template FILE (a jinja file)",
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the template and the special tokens it may name, hex."""
        canon = json.dumps([self.text, dict(sorted(self.tokens.items()))], ensure_ascii=False)
        return hashlib.sha256(canon.encode("utf-8", "surrogatepass")).hexdigest()

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as one text. Raises SutureError E321 where the template refuses."""
        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except SutureError:
            raise
        except Exception as error:
            raise SutureError(
                "E321",
                f"the chat template cannot render this conversation: {error}",
                where=self.origin,
                fix="give another with --chat-template FILE"
                + (", or leave the system prompt out" if messages[0]["role"] == "system" else ""),
            ) from error

    @cached_property
    def _compiled(self) -> jinja2.Template:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        env = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # the result is a prompt, never a page
            extensions=[loopcontrols, _generation_tag()],
        )
        env.filters["tojson"] = _tojson
        env.globals["raise_exception"] = _raise
        env.globals["strftime_now"] = _TODAY.strftime
        try:
            return env.from_string(self.text)
        except jinja2.TemplateSyntaxError as error:
            raise SutureError(
                "E321",
                f"the chat template is not valid jinja: {error.message}",
                where=f"{self.origin}:{error.lineno}",
                fix="give another with --chat-template FILE",
            ) from None


def encode(
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    prompt: str,
    response: str | None = None,
    *,
    system: str | None = None,
) -> Encoded:
    """Token ids of a user turn and, if given, the reply and the end token.

    Prompt and reply are tokenized apart, so that the prompt's ids are the same in training, in
    scoring and in generation, whatever the reply begins with. The template writes its own special
    tokens; none are added. Raises SutureError E322 when a reply is given but there is no end token.
    """
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    ids = _ids(tokenizer, template.render(messages, add_generation_prompt=True))
    length = len(ids)
    if response is not None:
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            raise SutureError(
                "E322",
                "the tokenizer has no end-of-sequence token",
                where=str(getattr(tokenizer, "name_or_path", "tokenizer")),
                why="a reply could not be told from an unfinished one",
                fix='set "eos_token" in tokenizer_config.json',
            )
        ids = [*ids, *_ids(tokenizer, response), end]
    return Encoded(ids, length)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that begins a plain text, if this tokenizer puts one there."""
    first = tokenizer.bos_token_id
    begins = list(tokenizer("a")["input_ids"])[:1]
    return [first] if isinstance(first, int) and begins == [first] else []


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("larger than 1 MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SutureError(
            "E321",
            f"cannot read the chat template: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            fix="give a UTF-8 jinja file",
        ) from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SutureError(
            "E321", f"cannot read the tokenizer's settings: {error}", where=str(path)
        ) from None
    return value if isinstance(value, dict) else {}


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token`, ... as plain strings; a template may name any of them."""
    found = {}
    for key, value in settings.items():
        if key.endswith("_token"):
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                found[key] = content
    return found


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _generation_tag() -> Any:
    """`{% generation %}` marks the reply for training masks elsewhere; here it renders its body."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation
