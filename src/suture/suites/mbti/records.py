"""People with posts and labels, in MBTIBench's form, and what is asked of each: one dimension.

    {"id": 1, "source": "...", "posts": ["...", "..."],
     "softlabels": {"E/I": 0.81, ...}, "hardlabels": {"E/I": "I", ...}}

Labels may be absent: then there are answers and no errors. `posts` may be a single text. The labels
may also come from a file of their own, as `suture labels estimate` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from suture.config import FrozenConfig
from suture.data import read_jsonl
from suture.data.records import Text
from suture.errors import SutureError
from suture.suites.mbti.dimensions import dimensions

SHORTEST = 11  # characters of a post that is kept
_TOKEN = re.compile(r"\w+|[^\w\s]")


class Labels(FrozenConfig):
    """Labels of one person, by dimension; null where there is none, as nobody voted or they tie."""

    id: Text
    softlabels: dict[str, float | None] | None = Field(
        None, description="0 first letter, 1 second, null unknown"
    )
    hardlabels: dict[str, str | None] | None = Field(
        None, description="a letter of the dimension, null unknown"
    )


class Person(Labels):
    """Somebody's posts, and their labels where they are known."""

    posts: list[str] | str
    source: str | None = Field(None, description="the corpus the posts come from")


class Trait(FrozenConfig):
    """One dimension of one person; `id` is PERSON/EI and the person is the cluster."""

    id: str
    person: str
    dimension: str
    posts: str = Field(description="as prepared for the prompt")
    source: str | None = None
    soft: float | None = None
    hard: str | None = None

    @property
    def prompt(self) -> str:
        return self.posts

    @property
    def cluster(self) -> str:
        return self.person


def read_people(file: Path, labels: Mapping[str, Labels] | None = None) -> list[Person]:
    """The people of a file, their labels checked; `labels` replace their own.

    Errors: those of the reader (E301-E312); E564 a label outside its space, or of no dimension,
    and a person that `labels` lacks.
    """
    people = read_jsonl(file, Person)
    if labels is not None:
        people = [
            one.model_copy(update=labels_of(one.id, labels, file).model_dump()) for one in people
        ]
    for one in people:
        _check(one, file)
    return people


def labels_of(person: str, labels: Mapping[str, Labels] | None, file: Path) -> Labels:
    """Somebody's labels: none without any `labels`; E564 where they lack the person."""
    if labels is None:
        return Labels(id=person)
    if person not in labels:
        raise SutureError(
            "E564",
            f"person '{person}' has no labels",
            where=str(file),
            why="an id is a number in its own file: another file's people may be called alike",
            fix="leave --set labels out, or give labels of the same people, made by "
            "suture labels estimate VOTES -o FILE",
        )
    return labels[person]


def read_labels(file: Path) -> dict[str, Labels]:
    """Labels by person, from a file of `suture labels estimate` or of MBTIBench."""
    found = read_jsonl(file, Labels)
    for one in found:
        _check(one, file)
    return {one.id: one for one in found}


def traits(
    people: Sequence[Person], names: Sequence[str], *, tokens: int, most: int | None
) -> list[Trait]:
    """What is asked: of every person each of the dimensions `names` (E569: no posts)."""
    found = []
    for one in people:
        posts = prepared(one.posts, tokens=tokens, most=most)
        if not posts:
            raise SutureError(
                "E569",
                f"person '{one.id}' has no post of {SHORTEST} characters or more",
                why="an answer about nothing would be counted like any other",
                fix="leave the person out, or give longer posts",
            )
        for name in names:
            found.append(
                Trait(
                    id=f"{one.id}/{name.replace('/', '')}",
                    person=one.id,
                    dimension=name,
                    posts=posts,
                    source=one.source,
                    soft=(one.softlabels or {}).get(name),
                    hard=(one.hardlabels or {}).get(name),
                )
            )
    return found


def prepared(posts: Sequence[str] | str, *, tokens: int = 80, most: int | None = None) -> str:
    """The posts as one text, `Post k: ...; ` each (MBTIBench's preparation).

    Posts of 10 characters or fewer are dropped, braces are removed, `tokens` tokens of each post
    are kept: words and punctuation marks (inferred: which tokenizer counted is not published; this
    one is the same for every model). `most`: the first so many posts that are left.
    """
    kept = [posts] if isinstance(posts, str) else list(posts)
    kept = [post for post in kept if len(post) >= SHORTEST][:most]
    return "".join(f"Post {k}: {_cut(post, tokens)}; " for k, post in enumerate(kept, 1))


def _cut(post: str, tokens: int) -> str:
    bare = post.replace("{", "").replace("}", "").strip()
    for count, match in enumerate(_TOKEN.finditer(bare), 1):
        if count == tokens:
            return bare[: match.end()]
    return bare


def _check(one: Labels, file: Path) -> None:
    known = dimensions()
    for name, value in (one.softlabels or {}).items():
        if name not in known or not (value is None or 0 <= value <= 1):
            told = "null" if value is None else f"{value:g}"
            raise _outside(one, file, f"soft label {told} of '{name}'", "0 to 1")
    for name, letter in (one.hardlabels or {}).items():
        poles = [known[name].first.letter, known[name].second.letter] if name in known else []
        if name not in known or letter not in (*poles, None):
            raise _outside(one, file, f"hard label '{letter}' of '{name}'", " or ".join(poles))


def _outside(one: Labels, file: Path, what: str, space: str) -> SutureError:
    return SutureError(
        "E564",
        f"{what} is outside its space",
        where=f"{file}, id '{one.id}'",
        fix=f"give {space}" if space else f"the dimensions are {', '.join(dimensions())}",
    )
