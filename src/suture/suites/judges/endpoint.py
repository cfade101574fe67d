"""A judge behind an OpenAI-compatible address that the user gives: the texts are sent there.

One POST to URL/chat/completions per exchange, temperature 0, several at a time. The key comes from
an environment variable, never from a file or a flag, and redirections are not followed. What the
server answers is text to be read by the format and nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import Field, field_validator

from suture.errors import SutureError
from suture.progress import track
from suture.suites.judges.formats import Format
from suture.suites.judges.speaking import Heard, Speaker, Turns

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_LARGEST = 2**20  # bytes of an answer


class _Stay(urllib.request.HTTPRedirectHandler):
    """A judge that sends elsewhere would get the key and the texts sent there."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        return None


class Endpoint(Speaker):
    """Settings of an endpoint."""

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

    @property
    def identity(self) -> dict[str, Any]:
        where = {"url": self.url, "model": self.model, "identity": "declared"}
        return {"kind": "endpoint", **where, "format": self.how.sha256}

    def check(self) -> None:
        """Whether there is a key, a format that fits and somebody listening (E538, E539)."""
        self._check_format()
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

    def ask(self, asked: Sequence[Turns]) -> list[Heard]:
        self._check_format()
        key = self._key()
        pool = ThreadPoolExecutor(self.at_once)
        try:
            waiting = [pool.submit(self._ask, turns, key) for turns in asked]
            said = [one.result() for one in track(waiting, "judge")]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        silent = Heard("no text in the answer", answered=False)
        return [silent if text is None else Heard(text) for text in said]

    def _check_format(self) -> None:
        if isinstance(self.how, Format) and self.how.style == "text":
            raise SutureError(
                "E539",
                f"the format '{self.format}' writes raw text, an endpoint takes turns",
                fix="use format=plain or format=llama-guard",
            )

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

    def _ask(self, turns: Turns, key: str | None) -> str | None:
        """The text of the first choice; None when the answer has none."""
        body = {
            "model": self.model,
            "messages": turns,
            "temperature": 0,
            "max_tokens": self.how.max_new_tokens,
        }
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
                return _text(raw)
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
            f"the judge does not answer: {failed}",
            where=self.url,
            why="items without a verdict would make the shares wrong",
            fix="check the address, the model's name and the key, then run the same command again",
        )


def _text(raw: bytes) -> str | None:
    try:
        found = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return found if isinstance(found, str) else None


JUDGE = Endpoint
