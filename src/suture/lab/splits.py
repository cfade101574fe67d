"""Training, tuning and test prompts kept apart.

No test prompt may have a token Jaccard of 0.6 or more with a training or tuning prompt: public
harmful sets copy from each other (of JailbreakBench's 100 goals, 45 come from other sets).
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

NEAR = 0.6  # token Jaccard from which two prompts count as the same
TESTS = ("safety_test", "xstest", "harmless_test")


def words(text: str) -> frozenset[str]:
    """Lower-case word tokens, in any script."""
    return frozenset(re.findall(r"\w+", text.lower()))


def nearness(prompts: Iterable[str]) -> Callable[[str], float]:
    """A function that gives the largest token Jaccard of a text with any of `prompts`."""
    bags = [bag for bag in {words(prompt) for prompt in prompts} if bag]
    holders: dict[str, list[int]] = defaultdict(list)
    for number, bag in enumerate(bags):
        for word in bag:
            holders[word].append(number)

    def largest(text: str) -> float:
        own = words(text)
        shared = Counter(number for word in own for number in holders.get(word, ()))
        return max(
            (count / (len(own) + len(bags[n]) - count) for n, count in shared.items()), default=0.0
        )

    return largest


def held_out_prompts() -> list[str]:
    """Prompts of the shipped test files."""
    folder = Path(__file__).parents[1] / "suites" / "data"
    return [
        json.loads(line)["prompt"]
        for name in TESTS
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]


def apart_from(prompts: Iterable[str]) -> Callable[[str], bool]:
    """Whether a text is far enough from every one of `prompts`."""
    largest = nearness(prompts)
    return lambda text: largest(text) < NEAR
