"""Personalities that a model has read out of posts, for tasks that come after.

Two files hold them: a measurement of the suite `personality` on the same posts, and MBTIBench's log
of replies ({"dimension": "EI", "id": 1, "response": "[[7]]"} per line).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from suture.errors import SutureError
from suture.ledger import Measurement
from suture.rng import uniform
from suture.suites.mbti import parsing
from suture.suites.mbti.asking import Form
from suture.suites.mbti.columns import was_read
from suture.suites.mbti.dimensions import NAMES, dimensions
from suture.suites.questions import file_rows


@dataclass(frozen=True)
class Personalities:
    """`by_post[id][dimension]`: 0 the first letter to 1 the second, absent where the reply could
    not be read; `unread`: by post, in how many dimensions that is."""

    by_post: Mapping[str, Mapping[str, float]]
    form: Form
    unread: Mapping[str, int]

    @classmethod
    def load(cls, file: Path) -> Personalities:
        """Read either file (E596: it is neither, of another suite, or none of it could be read)."""
        found = _measured(file) if file.suffix == ".json" else _logged(file)
        if not found.by_post:
            raise _no_personalities(file, "no row names a post and a dimension")
        if not any(found.by_post.values()):
            raise SutureError(
                "E596",
                f"none of these {sum(found.unread.values())} replies could be read",
                where=str(file),
                why="nothing is known about any author",
                fix="measure personality with another model, or with --set parser=lenient",
            )
        return found

    def of(self, posts: Sequence[str], file: Path) -> Personalities:
        """Those of these posts only; refuse (E597) a file that lacks some of them."""
        if lost := [post for post in posts if post not in self.by_post]:
            raise SutureError(
                "E597",
                f"{len(lost)} of {len(posts)} posts have no personality, the first is '{lost[0]}'",
                where=str(file),
                fix="measure the suite personality on the same posts: "
                "suture measure personality --data POSTS.jsonl --model MODEL -o FILE",
            )
        known = {post: self.by_post[post] for post in posts}
        return Personalities(known, self.form, {post: self.unread[post] for post in posts})

    def shuffled(self, posts: Sequence[str], *, seed: int) -> Personalities:
        """Every post with the personality of another: one cycle through all of them, by `seed`.

        The control of whether a personality helps or just more text.
        """
        draws = uniform(seed, "personality/shuffled", 0, len(posts))
        order = [posts[place] for place in draws.argsort(kind="stable")]
        givers = [*order[1:], *order[:1]]
        swapped = {post: self.by_post[giver] for post, giver in zip(order, givers, strict=True)}
        unread = {post: self.unread[giver] for post, giver in zip(order, givers, strict=True)}
        return Personalities(swapped, self.form, unread)

    def lines(self, post: str, *, inverted: bool = False) -> list[str]:
        """One line for each dimension, as a prompt shows them: "75.0% Extraversion, 25.0%
        Introversion", or the name of the side; none where nothing is known. `inverted`: the
        released code's soft lines, which give the second letter's share to the first, and an even
        share where nothing is known."""
        said = []
        unknown = parsing.MIDDLE if inverted else None
        for name, about in dimensions().items():
            value = self.by_post[post].get(name, unknown)
            if value is None:
                continue
            if self.form == "hard":
                said.append((about.second if value else about.first).name)
                continue
            share = value if inverted else 1 - value
            said.append(
                f"{100 * share:.1f}% {about.first.name}, {100 - 100 * share:.1f}% "
                f"{about.second.name}"
            )
        return said


def _measured(file: Path) -> Personalities:
    measurement = Measurement.load(file)
    suite = measurement.data.get("suite", measurement.suite)
    if suite != "personality":
        raise _no_personalities(file, f"it is a measurement of {suite}")
    options = measurement.data.get("options", {})
    form: Form = options.get("form", "soft")
    found: dict[str, dict[str, float]] = {}
    for row in measurement.rows:
        post, _, key = row.item.rpartition("/")
        own = found.setdefault(post, {})
        if was_read(row, options):
            own[_name(key)] = row.scores[f"{key.lower()}.said"]
    return _counted(found, form, (row.item.rpartition("/")[0] for row in measurement.rows))


def _counted(
    by_post: Mapping[str, Mapping[str, float]], form: Form, asked: Iterable[str]
) -> Personalities:
    """`asked`: the post of every reply."""
    replies = Counter(asked)
    return Personalities(
        by_post, form, {post: replies[post] - len(known) for post, known in by_post.items()}
    )


@dataclass(frozen=True)
class Logged:
    """A reply of MBTIBench's log: whose, about which dimension (E/I), and what was said."""

    person: str
    dimension: str
    response: str


def logged_replies(file: Path) -> list[Logged]:
    """The replies of a log. E596: a row that is none, or one about the same thing twice."""
    known = {name.replace("/", "") for name in NAMES}
    found: dict[tuple[str, str], Logged] = {}
    for number, raw in file_rows(file, lambda path, _, what: _no_personalities(path, what)):
        key, said = str(raw.get("dimension")), raw.get("response")
        if key not in known or not isinstance(said, str) or "id" not in raw:
            what = f"line {number} lacks 'id', 'dimension' (EI, SN, TF, JP) or 'response'"
            raise _no_personalities(file, what)
        one = Logged(str(raw["id"]), _name(key), said)
        if found.setdefault((one.person, key), one) is not one:
            raise _no_personalities(file, f"line {number} is about {one.person} and {key} again")
    return list(found.values())


def _logged(file: Path) -> Personalities:
    """MBTIBench's own log; the form is soft when a reply holds a score."""
    rows = logged_replies(file)
    form: Form = (
        "soft" if any(parsing.first_score(one.response) is not None for one in rows) else "hard"
    )
    found: dict[str, dict[str, float]] = {}
    for one in rows:
        value = _value(one, form)
        own = found.setdefault(one.person, {})
        if value is not None:
            own[one.dimension] = value
    return _counted(found, form, (one.person for one in rows))


def _value(one: Logged, form: Form) -> float | None:
    if form == "hard":
        side = parsing.side(one.response, dimensions()[one.dimension])
        return None if side is None else float(side)
    number = parsing.first_score(one.response)
    return None if number is None else parsing.soft_value(number)


def _name(key: str) -> str:
    """EI as E/I."""
    return f"{key[:1]}/{key[1:]}"


def _no_personalities(file: Path, what: str) -> SutureError:
    return SutureError(
        "E596",
        f"no personalities in this file: {what}",
        where=str(file),
        fix="give a measurement of the suite personality, or MBTIBench's personality_soft.jsonl.gz",
    )
