"""Stress: does knowing an author's personality help to see stress in a post? (MBTIBench, Dreaddit)

The same posts are asked about under one condition at a time, and conditions are compared like
models, paired by post: `suture compare --before none.json --after soft.json`.

    none       the post alone
    hard       with the four sides that a model chose      (`personality=FILE`, made with form=hard)
    soft       with the four percentages that it gave      (made with form=soft)
    shuffled   with those of another post: what more text alone does

    accuracy, macro_f1            of yes and no; an answer that is neither is wrong
    accuracy_constant, ...        of the more frequent answer
    parsed_strict, parsed_lenient, ends_properly

`legacy_inverted` prints the soft percentages as the released code does: the second letter's share
as the first's. Its published soft condition was fed those, so its logs do not show that soft labels
help. With `--logs` the released replies are scored again, round by round (arXiv 2412.12510).

Data: {"id": 1, "posts": "...", "label": "yes"} per line; there is no default data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PrivateAttr

from suture.config import FrozenConfig, read_yaml
from suture.data import read_jsonl, sha256_file
from suture.data.records import Text
from suture.errors import SutureError
from suture.ledger import NONE, Better, Measurement, ReplyRow, Row, derive
from suture.progress import note
from suture.suites.answerers import replies_of
from suture.suites.common import DATA, Answers, one_id_each, quality, thin
from suture.suites.mbti.asking import fill
from suture.suites.mbti.columns import ENDS_PROPERLY
from suture.suites.mbti.predictions import Personalities
from suture.suites.thinking import answer_of

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer

ANSWERS = ("no", "yes")
_BRACKETED = re.compile(r"\[\[\s*(yes|no)\s*\]\]", re.IGNORECASE)
_DELETED = str.maketrans("", "", '.,"*![]')
_METRICS = {
    "accuracy": "share of posts answered rightly",
    "macro_f1": "F1 averaged over yes and no",
}
_READ = {
    "parsed_strict": "share of replies with [[yes]] or [[no]]",
    "parsed_lenient": "share of replies with an answer at all",
    "ends_properly": ENDS_PROPERLY,
}


class Asked(FrozenConfig):
    """How posts are asked about; options of the suite."""

    condition: Literal["none", "hard", "soft", "shuffled"] = Field(
        "none", description="what is known about the author"
    )
    personality: Path | None = Field(None, description="measurement or log of personalities")
    legacy_inverted: bool = Field(False, description="soft percentages as in the released code")
    parser: Literal["bracket", "released"] = Field(
        "bracket",
        description="bracket: [[yes]] or [[no]], else the only one of the two words; "
        "released: the first word yes or no, and yes where there is neither",
    )
    seed: int = Field(0, description="of the shuffling")
    reference: Path | None = Field(None, description="with --logs: the log to test against")


class Post(FrozenConfig):
    """Somebody's post, and whether its author is under stress."""

    id: Text
    posts: Text
    label: Literal["yes", "no"] | None = None
    # no field: posts under two conditions are the same posts
    _asked: str | None = PrivateAttr(None)

    @property
    def prompt(self) -> str:
        """The whole question, once the condition is known."""
        return self._asked or self.posts

    def asked(self, question: str) -> Post:
        """The post with its question."""
        own = self.model_copy()
        own._asked = question
        return own

    @property
    def cluster(self) -> str | None:
        return None


class Prompts(FrozenConfig):
    """The parts of the question, `suites/data/personality/stress.yaml`."""

    asks: str
    personality: str
    answer: str


@cache
def _prompts() -> Prompts:
    file = DATA / "personality" / "stress.yaml"
    return Prompts.load(read_yaml(file), where=file)


class Stress:
    """Items: `Post` rows."""

    name = "stress"
    metrics: Mapping[str, Better] = {
        **{f"{name}{tail}": "higher" for name in _METRICS for tail in ("", "_constant")},
        **dict.fromkeys(_READ, "higher"),
    }
    default_data: tuple[Path, ...] = ()
    max_new_tokens = 64
    scorer: str | None = None
    needs_before = False
    baselines: tuple[str, ...] = ("majority",)
    # conditions are what is compared: they need not be the same on both sides
    unasked = frozenset({"condition", "personality", "legacy_inverted", "seed"})

    def __init__(self, asked: Asked | None = None) -> None:
        self.asked = asked or Asked()
        self.known: Personalities | None = None  # once the posts are read

    def configure(self, options: Mapping[str, Any]) -> Stress:
        """The suite with these options (`Asked`); E598: a condition and its file do not agree."""
        asked = Asked.load(options, where="options of the suite stress")
        needs = asked.condition != "none"
        if needs != (asked.personality is not None) and asked.reference is None:
            raise SutureError(
                "E598",
                f"condition {asked.condition} "
                + ("needs personalities" if needs else "has no use for personalities"),
                where="--set",
                fix="add personality=FILE, made by suture measure personality --data POSTS.jsonl"
                if needs
                else "leave personality out, or take condition=soft",
            )
        return Stress(asked)

    def read(self, files: Sequence[Path], limit: int | None) -> list[Post]:
        if not files:
            raise SutureError(
                "E566",
                f"the suite {self.name} has no data of its own",
                why="posts are personal, so none come with Suture",
                fix="give --data FILE: rows of id, posts and label (yes or no)",
            )
        items = [one for file in files for one in read_jsonl(file, Post)]
        one_id_each(items, files)
        items = thin(items, limit)
        self.known = self._personalities([item.id for item in items])
        return [item.asked(self.text(item)) for item in items]

    def described(self, items: Sequence[Post]) -> dict[str, Any]:
        """Which condition, the bytes of its file, and how much of it says nothing."""
        about: dict[str, Any] = {"condition": self.asked.condition, "private": True}
        if self.asked.personality is not None:
            about["personality_sha256"] = sha256_file(self.asked.personality)
        if self.known is not None:
            about["personality_unread"] = sum(self.known.unread.values())
        return about

    def measure(
        self,
        lm: LoadedModel,
        items: list[Post],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: LoadedModel | None = None,
    ) -> Answers:
        replies = replies_of(lm, self, items, max_new_tokens)
        return Answers(self.score(items, replies), replies)

    def score(
        self, items: list[Post], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        labels = [item.label for item in items]
        constant = majority([label for label in labels if label is not None])
        return [
            Row(item.id, answer_columns(reply, item.label, constant, self.asked.parser))
            for item, reply in zip(items, replies, strict=True)
        ]

    def derived(self, rows: list[Row]) -> dict[str, dict[str, Any]]:
        """All metrics; of posts without labels only how their replies could be read."""
        return derived(rows)

    def baseline(self, name: str, items: Sequence[Post], *, seed: int = 0) -> list[str]:
        """Replies of the more frequent answer."""
        constant = majority([item.label for item in items if item.label is not None])
        return [f"[[{ANSWERS[int(constant)]}]]"] * len(items)

    def as_asked(self, item: Post) -> dict[str, Any]:
        """The question about a post, for engines elsewhere."""
        return {"prompt": self.text(item)}

    def text(self, item: Post) -> str:
        """The whole question about a post under the condition."""
        parts = _prompts()
        middle = ""
        lines: list[str] = []
        if self.known is not None:
            lines = self.known.lines(item.id, inverted=self.asked.legacy_inverted)
        if lines:
            middle = "\n" + fill(parts.personality, {"lines": "\n".join(lines)})
        return f"{fill(parts.asks, {'post': item.posts})}\n{middle}\n{parts.answer}".strip()

    def score_log(self, file: Path, options: Mapping[str, Any]) -> Measurement:
        """The released replies scored again (`suites.mbti.logs`)."""
        from suture.suites.mbti.logs import score_log

        asked = Asked.load(options, where="options of the suite stress")
        return score_log(file, asked.parser, asked.reference)

    def _personalities(self, posts: Sequence[str]) -> Personalities | None:
        asked = self.asked
        if asked.personality is None:
            return None
        found = Personalities.load(asked.personality)
        if asked.condition in ("hard", "soft") and found.form != asked.condition:
            raise SutureError(
                "E598",
                f"condition {asked.condition}, but these personalities are {found.form}",
                where=str(asked.personality),
                fix=f"take condition={found.form}, or measure personality with "
                f"form={asked.condition}",
            )
        if asked.legacy_inverted and found.form == "hard":
            raise SutureError(
                "E598",
                "legacy_inverted is about soft percentages, and these personalities are hard",
                where=str(asked.personality),
                fix="leave legacy_inverted out",
            )
        found = found.of(posts, asked.personality)
        if asked.condition == "shuffled" and len(posts) < 2:
            raise SutureError(
                "E598",
                "condition shuffled, but there is one post: it would keep its own personality",
                where="--limit or --data",
                fix="give two posts or more, or take condition=soft",
            )
        if unread := sum(found.unread.values()):
            total = unread + sum(map(len, found.by_post.values()))
            note(
                f"{unread} of {total} replies about the authors could not be read: "
                + ("even shares" if asked.legacy_inverted else "the prompts leave them out")
            )
        shuffle = asked.condition == "shuffled"
        return found.shuffled(posts, seed=asked.seed) if shuffle else found


def bracketed(reply: str) -> int | None:
    """1 for [[yes]], 0 for [[no]]; None also where the reply has both: the question holds both,
    and a model may repeat it."""
    said = {word.lower() for word in _BRACKETED.findall(answer_of(reply))}
    return ANSWERS.index(said.pop()) if len(said) == 1 else None


def first_word(reply: str) -> int | None:
    """The released reader: split at spaces and line ends, . , " * ! [ ] deleted, lower case; the
    first word that is yes or no. Other punctuation stays, so "yes:" is neither."""
    for word in re.split(r"[ \n]", answer_of(reply).strip()):
        bare = word.translate(_DELETED).lower()
        if bare in ANSWERS:
            return ANSWERS.index(bare)
    return None


def lenient(reply: str) -> int | None:
    """`bracketed`, else yes or no where the reply has only one of the two words (inferred)."""
    strict = bracketed(reply)
    if strict is not None:
        return strict
    words = set(re.findall(r"\b(yes|no)\b", answer_of(reply).lower()))
    return ANSWERS.index(words.pop()) if len(words) == 1 else None


def answer_columns(
    reply: ReplyRow, label: str | None, constant: float, parser: str
) -> dict[str, float]:
    """The row of one reply: 0 no, 1 yes, -1 neither."""
    strict, loose = bracketed(reply.reply), lenient(reply.reply)
    if parser == "released":
        word = first_word(reply.reply)
        said = 1.0 if word is None else float(word)
    else:
        said = NONE if loose is None else float(loose)
    found = {
        "parsed_strict": float(strict is not None),
        "parsed_lenient": float(loose is not None),
        "ends_properly": quality(reply)["ends_properly"],
        "said": said,
    }
    if label is None:
        return found
    return {**found, "truth": float(ANSWERS.index(label)), "constant": constant}


def majority(labels: Sequence[str]) -> float:
    """The more frequent label, yes of two alike."""
    counts = Counter(labels)
    return float(counts["yes"] >= counts["no"])


def derived(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The metrics of rows of `answer_columns`."""
    found: dict[str, dict[str, Any]] = {}
    labelled = any("truth" in row.scores for row in rows)
    for name, told in _METRICS.items() if labelled else ():
        options: dict[str, Any] = {"labels": 2} if name == "macro_f1" else {}
        for tail, column in (("", "said"), ("_constant", "constant")):
            found[f"{name}{tail}"] = derive(
                rows,
                name,
                ["truth", column],
                definition=told + (", of the constant answer" if tail else ""),
                better="higher",
                **options,
            )
    for name, told in _READ.items():
        found[name] = derive(rows, "mean", [name], definition=told, better="higher")
    return found


SUITE = Stress()
