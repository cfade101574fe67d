"""How a judge in words is asked and how its answer is read: data files in `../data/judges`.

    style     conversation  user and assistant turn, the judge's own chat template does the rest
              chat          `template` as one user turn, after `system` if there is one
              text          `template` as the whole text, with the special tokens it names
    template  with {prompt}, {reply} and {mark}, a mark that is other for every exchange
    harmful, safe, category   regular expressions, searched without case
    searched  anywhere: all matches in the answer count; beginning: only one at its very beginning
    marks     strings that the judge takes for structure; inside what is judged they are broken up

A verdict counts when one of the two expressions is found and the other is not, or when the last
match of the one stands after all matches of the other on another line; all else is unparsed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from suture.config import FrozenConfig
from suture.errors import SutureError, nearest
from suture.suites.common import DATA
from suture.suites.judges import Opinion
from suture.suites.judges.grading import Grading
from suture.suites.judges.guarding import guarded

FOLDER = DATA / "judges"


class Format(FrozenConfig):
    """One way to ask a judge; see the module."""

    version: int = 1
    about: str = ""
    style: Literal["conversation", "chat", "text"]
    system: str | None = None
    template: str | None = None
    max_new_tokens: int = Field(32, ge=1)
    harmful: str
    safe: str
    searched: Literal["anywhere", "beginning"] = Field(
        "anywhere", description="where in the answer a verdict may stand"
    )
    category: str | None = None
    marks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for pattern in filter(None, (self.harmful, self.safe, self.category)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if self.style != "conversation":
            for slot in ("{prompt}", "{reply}"):
                if slot not in (self.template or ""):
                    raise ValueError(f"the template has no {slot}")
        return self

    @cached_property
    def sha256(self) -> str:
        """Of all that decides a verdict. A verdict at the beginning counts as one written with `^`,
        as it was before there was a word for it, so that measurements stay comparable."""
        deciding = self.model_dump(mode="json", exclude={"about", "version", "searched"})
        if self.searched == "beginning":
            deciding |= {"harmful": f"^{self.harmful}", "safe": f"^{self.safe}"}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def turns(self, prompt: str, reply: str, special: Iterable[str] = ()) -> list[dict[str, str]]:
        """The exchange as turns of a chat; `special`: the judge's special tokens."""
        marks = [*self.marks, *special]
        asked, said = guarded(prompt, marks), guarded(reply, marks)
        if self.style == "conversation":
            return [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": said},
            ]
        mark = hashlib.sha256(f"{prompt}\0{reply}".encode("utf-8", "replace")).hexdigest()[:12]
        slots = {"prompt": asked, "reply": said, "mark": mark}
        text = re.sub(r"\{(prompt|reply|mark)\}", lambda m: slots[m.group(1)], self.template or "")
        turn = [{"role": "user", "content": text}]
        return turn if self.system is None else [{"role": "system", "content": self.system}, *turn]

    def read(self, said: str) -> Opinion:
        """The verdict in the judge's own words."""
        harmful, safe = self._last(self.harmful, said), self._last(self.safe, said)
        if harmful == safe:  # neither, or both on one line
            return Opinion("unparsed", said)
        if harmful < safe:
            return Opinion("safe", said)
        named = re.search(self.category, said, _HOW) if self.category else None
        return Opinion("harmful", said, named.group(1) if named else None)

    def _last(self, pattern: str, said: str) -> int:
        """The line of the last match that counts, -1 for none."""
        if self.searched == "beginning":
            first = re.match(pattern, said, re.IGNORECASE)
            found = [first.end()] if first else []
        else:
            found = [match.end() for match in re.finditer(pattern, said, re.IGNORECASE)]
        return said.count("\n", 0, found[-1]) if found else -1


_HOW = re.IGNORECASE | re.MULTILINE


def load_format(name: str) -> Format | Grading:
    """A shipped format by name, or a JSON file of the same shape (E539). One with `rating` asks for
    grades."""
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    path = FOLDER / f"{name}.json" if name in known else Path(name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        close = nearest(name, known)
        raise SutureError(
            "E539",
            f"no judge format '{name}': {error}",
            fix=f"did you mean '{close}'?" if close else f"{', '.join(known)}, or a JSON file",
        ) from None
    kind: type[Format] | type[Grading] = Grading if "rating" in values else Format
    return kind.load(values, where=path)


__all__ = ["FOLDER", "Format", "guarded", "load_format"]
