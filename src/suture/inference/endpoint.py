"""A model behind an OpenAI-compatible address that the user gives: the texts are sent there.

One POST to URL/chat/completions per exchange, temperature 0, several at a time. The key comes from
an environment variable, never from a file or a flag, and redirections are not followed. What the
server answers is text and nothing else.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.inference.generation import Reply
from suture.progress import track

if TYPE_CHECKING:
    from suture.inference.memory import AnswerCache

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_LARGEST = 2**20  # bytes of an answer


class _Stay(urllib.request.HTTPRedirectHandler):
    """An address that sends elsewhere would get the key and the texts sent there."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        return None


@dataclass(frozen=True)
class Said:
    """An answer: its text (None where it has none), whether it ended, tokens where counted."""

    text: str | None
    ended: bool = True
    tokens: int | None = None


class Address(FrozenConfig):
    """Settings of an endpoint."""

    _who: ClassVar[str] = "the endpoint"
    _matters: ClassVar[str] = "a measurement without some of its replies would be another one"

    url: str = Field(description="base address, such as http://localhost:8000/v1")
    model: str = Field(description="the model's name at that address")
    key_env: str | None = Field(None, description="environment variable that holds the key, if any")
    at_once: int = Field(4, ge=1, le=64, description="requests at a time")
    timeout: float = Field(120.0, gt=0, description="seconds per request")
    tries: int = Field(4, ge=1, description="times a request is made before giving up")
    pause: float = Field(1.0, ge=0, description="seconds before the second try; doubles")

    @field_validator("url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("the address must begin with http:// or https://")
        return url.rstrip("/")

    def check_address(self) -> None:
        """Whether there is a key and somebody listening (E538)."""
        self._key()
        parts = urllib.parse.urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        proxied = urllib.request.getproxies().get(parts.scheme) and not (
            urllib.request.proxy_bypass(parts.hostname or "")
        )
        if proxied:
            return  # whether the address answers is for the proxy to find out
        try:
            socket.create_connection((parts.hostname or "", port), min(10.0, self.timeout)).close()
        except OSError as error:
            raise self._silent(error.strerror or error) from None

    def request(self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int) -> dict[str, Any]:
        """The body of a request."""
        return {
            "model": self.model,
            "messages": [_message(one) for one in messages],
            "temperature": 0,
            "max_tokens": max_new_tokens,
        }

    def post(self, bodies: Sequence[dict[str, Any]], label: str) -> Iterator[tuple[int, Said]]:
        """(place, answer) of each body as answers come; E538 when one cannot be had."""
        key = self._key()
        pool = ThreadPoolExecutor(self.at_once)
        try:
            places: dict[Future[Said], int] = {
                pool.submit(self._post, body, key): i for i, body in enumerate(bodies)
            }
            failed: BaseException | None = None
            for done in track(as_completed(places), label, total=len(places)):
                if done.cancelled():
                    continue
                if (error := done.exception()) is None:
                    yield places[done], done.result()
                elif failed is None:  # what is under way is still heard, and can be kept
                    failed = error
                    for waiting in places:
                        waiting.cancel()
            if failed is not None:
                raise failed
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env)
        if not key:
            raise SutureError(
                "E538",
                f"the environment variable {self.key_env} is not set",
                fix=f"export {self.key_env}=... first, or leave key_env out",
            )
        return key

    def _post(self, body: dict[str, Any], key: str | None) -> Said:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers
        )
        opener = urllib.request.build_opener(_Stay)
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with opener.open(request, timeout=self.timeout) as answer:
                    raw = answer.read(_LARGEST)
                return _said(raw)
            except urllib.error.HTTPError as error:
                failed: object = f"HTTP {error.code}"
                error.close()
                if error.code not in _AGAIN:
                    break
            except (urllib.error.URLError, OSError) as error:
                failed = getattr(error, "reason", error)
        raise self._silent(failed)

    def _silent(self, failed: object) -> SutureError:
        return SutureError(
            "E538",
            f"{self._who} does not answer: {failed}",
            where=self.url,
            why=self._matters,
            fix="check the address, the model's name and the key, then run the same command again",
        )


class Client:
    """An address to talk to (`suites.tasks.asking.Talker`). `cache`: answers by the hash of the
    whole request, kept as they come, so that a run that was stopped makes no call twice."""

    sees = True

    def __init__(self, address: Address, cache: AnswerCache | None = None) -> None:
        self.address, self.cache = address, cache

    def converse(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], *, max_new_tokens: int
    ) -> list[Reply]:
        """The next turn of each conversation, in order. A message may have an `image`, a path."""
        bodies = [self.address.request(one, max_new_tokens) for one in conversations]
        found: dict[int, Reply] = {}
        if self.cache is not None:
            for i, body in enumerate(bodies):
                if (known := self.cache.get(body)) is not None:
                    found[i] = Reply(*known)
        missing = [i for i in range(len(bodies)) if i not in found]
        asked = {json.dumps(bodies[i], sort_keys=True): i for i in reversed(missing)}
        first = sorted(asked.values())  # a request that stands twice is made once
        for place, said in self.address.post([bodies[i] for i in first], "endpoint"):
            i, text = first[place], said.text or ""
            tokens = len(text.split()) if said.tokens is None else said.tokens
            found[i] = Reply(text, tokens, said.ended)
            if self.cache is not None:
                self.cache.put(bodies[i], [text, tokens, said.ended])
                self.cache.flush()
        for i in missing:
            found.setdefault(i, found[asked[json.dumps(bodies[i], sort_keys=True)]])
        return [found[i] for i in range(len(bodies))]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """As the address takes it; an image goes along as a data URL."""
    said: dict[str, Any] = {"role": message["role"], "content": message["content"]}
    if message.get("image") is not None:
        picture = {"type": "image_url", "image_url": {"url": data_url(Path(message["image"]))}}
        said["content"] = [{"type": "text", "text": message["content"]}, picture]
    return said


def data_url(image: Path) -> str:
    """A picture file as a data URL; SutureError E513 where it is none or cannot be read."""
    kind = mimetypes.guess_type(image.name)[0] or ""
    try:
        if not kind.startswith("image/"):
            raise OSError("its name is not that of a picture")
        return f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode('ascii')}"
    except OSError as error:
        raise SutureError(
            "E513",
            f"a picture cannot be read: {error.strerror or error}",
            where=str(image),
            fix="put the file there, or measure without pictures: --set images=none",
        ) from None


def _said(raw: bytes) -> Said:
    try:
        content = json.loads(raw)
        choice = content["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return Said(None)
    usage = content.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return Said(
        text if isinstance(text, str) else None,
        choice.get("finish_reason") != "length",
        tokens if isinstance(tokens, int) else None,
    )
