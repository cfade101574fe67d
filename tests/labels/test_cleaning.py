"""Cleaning: what leaks, what is noise, what stays; all posts are made up here."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import write_jsonl
from suture.errors import SutureError
from suture.labels import Cleaning, clean, read_rules
from suture.labels.cleaning import garbled

RULES = read_rules()
KEEP = Cleaning(min_words=0)

LEAKS = [
    ("type mentioned", "My sister is an ENFJ and it shows"),
    ("type mentioned", "typical intp's weekend"),
    ("type mentioned", "either INxJ or xNTJ, who knows"),
    ("type mentioned", "most NTs would disagree"),
    ("type mentioned", "took the Myers-Briggs again"),
    ("trait described", "I am such an introvert today"),
    ("trait described", "so extroverted at parties"),
    ("trait described", "a classic thinking type answer"),
    ("trait described", "strong Ni-Te loop lately"),
    ("trait described", "as a Fe dom I have to ask"),
    ("trait described", "my inferior function acts up"),
    ("another theory", "my Big Five results came in"),
    ("another theory", "high in conscientiousness"),
    ("another theory", "a 5w4 if there ever was one"),
    ("another theory", "socionics says otherwise"),
    ("another theory", "rather phlegmatic as a child"),
]
HARMLESS = [
    "The big five game animals are in this park",
    "I think that thinking is overrated, and feeling too",
    "We used NT kernels and a TV",
    "She was intent on judging the cakes herself",
    "Next week I start the new job, wish me luck",
    "Si, claro, nos vemos",
]


def run(tmp_path: Path, posts: list[str], how: Cleaning = KEEP) -> tuple[list[str], list[dict]]:
    path = write_jsonl(tmp_path / "p.jsonl", [{"id": 1, "posts": posts, "softlabels": {"E/I": 1}}])
    found = clean(path, RULES, how)
    assert found.posts[0] == len(posts)
    assert all(row["softlabels"] == {"E/I": 1} for row in found.rows)
    return (found.rows[0]["posts"] if found.rows else []), found.removed


@pytest.mark.parametrize(("kind", "post"), LEAKS)
def test_leaks_are_found_under_their_kind(tmp_path: Path, kind: str, post: str) -> None:
    left, removed = run(tmp_path, [post, "Nothing to see here"])
    assert kind in {one["kind"] for one in removed}
    assert all(one["found"] in post and one["post"] == 0 for one in removed)
    if kind != "type mentioned" or "NTs" not in post:
        assert left[-1] == "Nothing to see here"
    assert post not in left


@pytest.mark.parametrize("post", HARMLESS)
def test_what_leaks_nothing_stays(tmp_path: Path, post: str) -> None:
    left, removed = run(tmp_path, [post])
    if "NT kernels" in post:  # two capitals cannot be told from a temperament
        assert [one["rule"] for one in removed] == ["temperament", "too little left"]
        return
    assert left == [post]
    assert removed == []


def test_masking_keeps_the_post(tmp_path: Path) -> None:
    left, removed = run(tmp_path, ["An INFP walks in"], Cleaning(leaks="mask", min_words=0))
    assert left == ["An [...] walks in"]
    assert [(one["rule"], one["found"]) for one in removed] == [("four letters", "INFP")]


def test_links_noise_and_garbled_text(tmp_path: Path) -> None:
    posts = [
        "look at https://example.org/a?b=c it is fine",
        "https://example.org/only",
        "!!! ??? ...",
        "\ufffd\ufffd \ufffd what",
        "donâ€™t",
        "A long post with one broken apostrophe, donâ€™t mind, may stay all the same here",
        "(╯°□°)╯︵ ┻━┻",
        "a !!!! ???? #### ,,,,",
    ]
    left, removed = run(tmp_path, posts)
    assert left == ["look at it is fine", posts[5]]
    rules = [one["rule"] for one in removed]
    assert rules.count("link or media") == 2
    assert rules.count("no words") == 2
    assert rules.count("garbled") == 3
    assert not any("found" in one for one in removed)
    assert garbled("a\x00b")
    assert not garbled("Größe, naïve, 你好")


def test_users_with_too_few_words_left(tmp_path: Path) -> None:
    rows = [
        {"id": "much", "text": "word " * 120},
        {"id": "little", "text": "word " * 80},
        {"id": "leaky", "posts": ["word " * 60, "ISTJ " * 60]},
    ]
    found = clean(write_jsonl(tmp_path / "p.jsonl", rows), RULES)
    assert [row["id"] for row in found.rows] == ["much"]
    assert found.users == [3, 1]
    assert found.words == [120 + 80 + 120, 120]
    few = [one for one in found.removed if one["rule"] == "too little left"]
    assert [(one["id"], one["words"]) for one in few] == [("little", 80), ("leaky", 60)]
    assert found.counts()["noise"] == {"too little left": 2}


def test_who_has_nothing_left_is_removed(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "I am an INFP"}, {"id": 2, "posts": []}, {"id": 3, "text": "fine"}]
    found = clean(write_jsonl(tmp_path / "p.jsonl", rows), RULES, KEEP)
    assert found.rows == [{"id": 3, "text": "fine"}]
    assert (found.users, found.posts) == ([3, 1], [2, 1])
    assert found.counts()["noise"] == {"too little left": 2}


def test_rules_of_ones_own(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("hashtag:\n  sarcasm: '(?i)#(?:sarcasm|irony)\\b'\n")
    path = write_jsonl(tmp_path / "p.jsonl", [{"text": "Great weather #Sarcasm"}])
    found = clean(path, read_rules(rules), Cleaning(leaks="mask", min_words=0))
    assert found.rows == [{"text": "Great weather [...]"}]
    for wrong in ("hashtag: none\n", "hashtag: {a: '('}\n", "hashtag: {a: 'x*'}\n"):
        rules.write_text(wrong)
        with pytest.raises(SutureError, match="E395"):
            read_rules(rules)


def test_rows_without_posts(tmp_path: Path) -> None:
    for row in ({"id": 1}, {"id": 1, "posts": "x", "text": 3}, {"posts": [1]}, {"text": None}):
        path = write_jsonl(tmp_path / "p.jsonl", [{"text": "fine"}, row])
        if row.get("posts") == "x":
            assert len(clean(path, RULES, KEEP).rows) == 2
            continue
        with pytest.raises(SutureError, match="E396") as raised:
            clean(path, RULES)
        assert raised.value.where == f"{path}:2"
