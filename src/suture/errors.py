"""One exception type for everything a user can cause or mend.

An error says what happened, where (file, tensor, line), why it matters and what to type next, and
carries a stable code that `docs/errors.md` explains. Code families: E1xx checkpoint, E2xx patch,
E3xx data, E4xx method, E5xx inference and suites, E6xx ledger, E7xx usage, recipes and runs,
E8xx lab, E9xx training.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SutureError(Exception):
    """A refusal with a remedy. The command line prints it without a traceback and exits 1.

    `code`: stable, e.g. "E104". `what`: one sentence. `where`: file, tensor or line.
    `why`: what would go wrong otherwise. `fix`: what to type or change next.
    """

    def __init__(
        self,
        code: str,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.code, self.what, self.where, self.why, self.fix = code, what, where, why, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.code}: {self.what}"]
        for label, text in (("where", self.where), ("why", self.why), ("next", self.fix)):
            if text:
                parts.append(f"  {label}: {text}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.code, self.what, self.where, self.why, self.fix))

    def as_dict(self) -> dict[str, str | None]:
        """The same facts for `--json`."""
        return {
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "next": self.fix,
        }


class TooLongError(SutureError):
    """A row that does not fit a model's context; `row`: its place among those that were asked."""

    row: int = 0

    def called(self, name: str) -> SutureError:
        """The same refusal for a row that has a name."""
        where = f"{name}, for {self.where}" if self.where else name
        return SutureError(self.code, self.what, where=where, why=self.why, fix=self.fix)


def _rebuild(
    code: str, what: str, where: str | None, why: str | None, fix: str | None
) -> SutureError:
    return SutureError(code, what, where=where, why=why, fix=fix)


def some(names: Sequence[str], most: int = 6) -> str:
    """The first `most` names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def spelt(word: str, known: Iterable[str]) -> str:
    """The known word that differs from `word` in hyphens and the like alone, else `word` itself:
    safepatching is safe-patching."""

    def plain(name: str) -> str:
        return name.replace("-", "").replace("_", "").casefold()

    found = [name for name in known if plain(name) == plain(word)]
    return word if word in found or len(found) != 1 else found[0]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, for "did you mean"; None when nothing is close."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None
