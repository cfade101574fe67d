"""Posts without what gives the label away, and without what says nothing.

Leaks: expressions of a rule file, by kind; for MBTI the type itself, a trait that describes it, or
another theory's word for it. Noise: links and media, garbled text, and users with too few words
left (MBTIBench names these three kinds and about 100 words; the expressions are ours: inferred).

    {"id": 1, "posts": ["...", "..."]}   or   {"id": 1, "text": "..."}; other columns are kept

Stored labels and votes are kept as they are. What was removed is told by kind, and row by row in a
file of its own, which quotes the leak and nothing around it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field

from suture.config import FrozenConfig, read_yaml
from suture.data.reader import read_raw
from suture.errors import SutureError
from suture.progress import track

MBTI_RULES = Path(__file__).parent / "data" / "leaks_mbti.yaml"
MASK = "[...]"
_LINK = re.compile(
    r"(?i)\b(?:https?://|www\.)\S+|\bpic\.twitter\.com/\S+|!?\[[^\]]*\]\(https?://[^)]*\)"
    r"|\[/?(?:img|video|url|youtube)[^\]]*\]"
)
# Text in one encoding that was read as another: "â€™" for an apostrophe, "Ã©" for é.
_MOJIBAKE = re.compile("â€[\u0080-\u02ff\u2013-\u2122œ™¦]|[ÃÂ][\u0080-\u00bf]")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Cleaning(FrozenConfig):
    """What to remove, and how."""

    leaks: Literal["drop", "mask"] = Field(
        "drop", description=f"drop the post that leaks, or put {MASK} in the place of the leak"
    )
    min_words: int = Field(
        100, ge=0, description="users with fewer words left are removed; 0: those with nothing left"
    )
    min_letters: float = Field(
        0.5, ge=0, le=1, description="posts with a smaller share of letters among what is printed "
        "are garbled"
    )  # fmt: skip


@dataclass
class Cleaned:
    """`rows`: what is left; `removed`: one record per removal, in order; `posts`, `words`: before
    and after; `users`: before and after."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    users: list[int] = field(default_factory=lambda: [0, 0])
    posts: list[int] = field(default_factory=lambda: [0, 0])
    words: list[int] = field(default_factory=lambda: [0, 0])

    def counts(self) -> dict[str, dict[str, int]]:
        """Removals by kind and rule."""
        found: dict[str, Counter[str]] = {}
        for one in self.removed:
            found.setdefault(one["kind"], Counter())[one["rule"]] += 1
        return {kind: dict(rules) for kind, rules in found.items()}


def read_rules(path: str | Path = MBTI_RULES) -> dict[str, dict[str, re.Pattern[str]]]:
    """Rules by kind and name. Errors: E703 and E704 of the file, E395 no rules or a wrong one."""
    rules: dict[str, dict[str, re.Pattern[str]]] = {}
    for kind, named in read_yaml(path).items():
        if not isinstance(named, dict) or not named:
            raise SutureError(
                "E395",
                f"'{kind}' holds no rules",
                where=str(path),
                fix="write KIND: {NAME: 'regular expression'}",
            )
        rules[str(kind)] = {}
        for name, text in named.items():
            try:
                rules[str(kind)][str(name)] = re.compile(str(text))
            except re.error as error:
                raise SutureError(
                    "E395",
                    f"'{name}' is no regular expression: {error}",
                    where=str(path),
                    fix="correct it; in single quotes YAML leaves backslashes alone",
                ) from None
            if rules[str(kind)][str(name)].search(""):
                raise SutureError(
                    "E395",
                    f"'{name}' is found in an empty text, so it would remove everything",
                    where=str(path),
                    fix="let it need at least one character",
                )
    return rules


def clean(
    path: str | Path,
    rules: Mapping[str, Mapping[str, re.Pattern[str]]],
    how: Cleaning | None = None,
) -> Cleaned:
    """The rows of a file, cleaned.

    Errors: E301 to E312 of the reader, E396 a row without posts or text, or posts that are none.
    """
    how = how or Cleaning()
    out = Cleaned()
    for number, _, row in track(read_raw(path), "rows of posts"):
        where = f"{path}:{number}"
        key = "posts" if "posts" in row else "text"
        posts = row.get(key)
        if isinstance(posts, str):
            posts = [posts]
        if not isinstance(posts, list) or not all(isinstance(post, str) for post in posts):
            _refuse(row, where)
        name = row.get("id", str(number))
        left = [
            kept
            for at, post in enumerate(posts)
            if (kept := _post(post, rules, how, out, name, at))
        ]
        words = sum(len(_WORD.findall(post)) for post in left)
        few = words < how.min_words or not left
        if few:
            out.removed.append(
                {"id": name, "kind": "noise", "rule": "too little left", "words": words}
            )
        for counted, before, after in (
            (out.users, 1, 1),
            (out.posts, len(posts), len(left)),
            (out.words, sum(len(_WORD.findall(post)) for post in posts), words),
        ):
            counted[0] += before
            counted[1] += 0 if few else after
        if not few:
            out.rows.append({**row, key: left if key == "posts" else " ".join(left)})
    return out


def _post(
    post: str,
    rules: Mapping[str, Mapping[str, re.Pattern[str]]],
    how: Cleaning,
    out: Cleaned,
    name: Any,
    at: int,
) -> str:
    """The post as it may stay; an empty text where nothing may."""

    def note(kind: str, rule: str, found: str | None = None) -> None:
        quoted = {} if found is None else {"found": found}
        out.removed.append({"id": name, "post": at, "kind": kind, "rule": rule, **quoted})

    links = len(_LINK.findall(post))
    if links:
        post = re.sub(r"\s{2,}", " ", _LINK.sub(" ", post)).strip()
        note("noise", "link or media")
    if not _WORD.search(post):
        if not links:
            note("noise", "no words")
        return ""
    if garbled(post, how.min_letters):
        note("noise", "garbled")
        return ""
    leaks = False
    for kind, named in rules.items():
        for rule, pattern in named.items():
            for found in pattern.finditer(post):
                note(kind, rule, found.group())
                leaks = True
            if how.leaks == "mask":
                post = pattern.sub(MASK, post)
    if leaks and how.leaks == "drop":
        return ""
    return post


def garbled(post: str, min_letters: float = 0.5) -> bool:
    """Broken encoding (replacement or control characters, UTF-8 read as Latin-1) more than once in
    ten words, or fewer letters and digits than `min_letters` of all that is printed."""
    broken = sum(c == "\ufffd" or (c < " " and c not in "\t\n\r") for c in post)
    broken += len(_MOJIBAKE.findall(post))
    if broken * 10 > len(_WORD.findall(post)):
        return True
    printed = [c for c in post if not c.isspace()]
    letters = sum(c.isalpha() or c.isdigit() for c in printed)
    return bool(printed) and letters < min_letters * len(printed)


def _refuse(row: Mapping[str, Any], where: str) -> NoReturn:
    raise SutureError(
        "E396",
        "the row has no posts",
        where=where,
        why=f"it has: {', '.join(row) or 'nothing'}",
        fix='write {"id": ..., "posts": ["...", "..."]} or {"id": ..., "text": "..."}',
    )
