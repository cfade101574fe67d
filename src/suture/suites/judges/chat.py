"""A judge that answers in words, from a checkpoint folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from suture.errors import SutureError
from suture.suites.judges.formats import Format
from suture.suites.judges.speaking import Heard, Speaker, Turns

if TYPE_CHECKING:
    from suture.inference import LoadedModel


class ChatJudge(Speaker):
    """Settings of a judge checkpoint."""

    model: Path = Field(description="checkpoint folder of the judge")
    device: str = Field("auto", description="auto, cpu, cuda:N or mps")
    max_new_tokens: int | None = Field(None, ge=1, description="default: the format's")
    _lm: Any = PrivateAttr(None)

    @property
    def lm(self) -> LoadedModel:
        """The judge's model, loaded when it is first needed."""
        if self._lm is None:
            from suture.inference import load
            from suture.patch import open_model

            self._lm = load(open_model(self.model), device=self.device)
        found: LoadedModel = self._lm
        return found

    @property
    def limit(self) -> int:
        """Tokens that the judge may say."""
        return self.max_new_tokens or self.how.max_new_tokens

    @property
    def special(self) -> list[str]:
        return [str(token) for token in self.lm.tokenizer.all_special_tokens]

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "kind": "chat",
            "model": self.lm.fingerprint,
            "format": self.how.sha256,
            "max_new_tokens": self.limit,
        }

    def check(self) -> None:
        """Whether the model's template takes what the format says (E320, E321)."""
        if not (isinstance(self.how, Format) and self.how.style == "text"):
            system = isinstance(self.how, Format) and self.how.system is not None
            turns = [{"role": "system", "content": "x"}] if system else []
            _rendered(self.lm, [[*turns, {"role": "user", "content": "x"}]])

    def ask(self, asked: Sequence[Turns]) -> list[Heard]:
        from suture.inference.generation import converse, generate_ids

        lm, limit = self.lm, self.limit
        as_text = isinstance(self.how, Format) and self.how.style == "text"
        if as_text:
            first = lm.tokenizer.bos_token_id
            texts = [turns[-1]["content"] for turns in asked]
            ids = [
                list(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
            ]
            ids = [([first] if isinstance(first, int) else []) + row for row in ids]
        else:
            ids = _rendered(lm, asked)
        fits = [i for i, row in enumerate(ids) if lm.within(len(row) + limit) == len(row) + limit]
        if as_text:
            said = generate_ids(lm, [ids[i] for i in fits], max_new_tokens=limit)
        else:
            said = converse(lm, [asked[i] for i in fits], max_new_tokens=limit)
        found = {i: Heard(reply.text) for i, reply in zip(fits, said, strict=True)}
        too_long = Heard("longer than the judge's context", answered=False)
        return [found.get(i, too_long) for i in range(len(asked))]


def _rendered(lm: LoadedModel, asked: Sequence[Turns]) -> list[list[int]]:
    from suture.inference.generation import conversation_ids

    try:
        return conversation_ids(lm, asked)
    except SutureError as error:
        raise SutureError(
            error.code,
            f"the judge's {error.what[0].lower()}{error.what[1:]}",
            where=str(lm.source.path),
            why=error.why,
            fix="give another format with --judge chat:model=DIR,format=FILE",
        ) from None


JUDGE = ChatJudge
