"""A judge behind an OpenAI-compatible address: the texts are sent there (`inference.endpoint`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from suture.errors import SutureError
from suture.inference.endpoint import Address
from suture.suites.judges.formats import Format
from suture.suites.judges.speaking import Heard, Speaker, Turns


class Endpoint(Address, Speaker):
    """Settings of a judge at an address."""

    _who: ClassVar[str] = "the judge"
    _matters: ClassVar[str] = "items without a verdict would make the shares wrong"

    @property
    def identity(self) -> dict[str, Any]:
        where = {"url": self.url, "model": self.model, "identity": "declared"}
        return {"kind": "endpoint", **where, "format": self.how.sha256}

    def check(self) -> None:
        """Whether there is a key, a format that fits and somebody listening (E538, E539)."""
        self._check_format()
        self.check_address()

    def ask(self, asked: Sequence[Turns]) -> list[Heard]:
        self._check_format()
        bodies = [self.request(turns, self.how.max_new_tokens) for turns in asked]
        said = dict(self.post(bodies, "judge"))
        silent = Heard("no text in the answer", answered=False)
        texts = [said[i].text for i in range(len(asked))]
        return [silent if text is None else Heard(text) for text in texts]

    def _check_format(self) -> None:
        if isinstance(self.how, Format) and self.how.style == "text":
            raise SutureError(
                "E539",
                f"the format '{self.format}' writes raw text, an endpoint takes turns",
                fix="use format=plain or format=llama-guard",
            )


JUDGE = Endpoint
