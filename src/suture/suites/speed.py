"""Speed: how long a model takes to reply, against another one at the same time on this machine.

Both are asked the same prompts one by one, in turns (one first, then the other first), so that
slow changes of the machine fall on both, and each of the two counts with its shortest time: what
else the machine does only ever adds. Every score is a ratio of two such times:

    token_time_ratio   seconds per token over the same number of tokens for both, whether or not a
                       reply would have ended before: the ATGR of SafeDecoding (Xu et al. 2024)
    reply_time_ratio   seconds per reply, each ending where it ends: shorter replies cost less

and beside them `tokens_per_second` and `seconds_per_reply`, also at its best. Counting the same
tokens is our reading (inferred): a short reply spreads the reading of the prompt over few tokens,
and an edit that only shortens replies would look slow.

The other model is the one given as before; without one, the model itself without its decoding. So
`--decoding rose` shows what ROSE costs, and an edit of the weights shows 1.0. Kept answers are not
used. Default data: the harmless prompts, 16 of them unless `limit` says otherwise. Options
(`--set KEY=VALUE`):

    tokens  per reply in token_time_ratio; 64
    rounds  per prompt; 4
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from suture.config import FrozenConfig
from suture.data import Prompt, read_jsonl
from suture.errors import SutureError
from suture.ledger import Better, ReplyRow, Row
from suture.progress import quiet, track
from suture.suites.common import DATA, Answers, one_id_each, thin

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer

_DEFAULT_ITEMS = 16


class Timing(FrozenConfig):
    """Options of the suite."""

    tokens: int = Field(64, ge=2, description="tokens per reply in token_time_ratio")
    rounds: int = Field(4, ge=1, description="times that each prompt is asked")


class Speed:
    """Items: `Prompt` rows. Replies are timed and not kept."""

    name = "speed"
    metrics: Mapping[str, Better] = {
        "token_time_ratio": "lower",
        "reply_time_ratio": "lower",
        "tokens_per_second": "higher",
        "seconds_per_reply": "lower",
    }
    default_data: tuple[Path, ...] = (DATA / "harmless_test.jsonl",)
    max_new_tokens = 64
    scorer: str | None = None
    needs_before = False
    before_is_itself = True
    needs_model = True

    def __init__(self, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self.passes = 4 * self.timing.rounds  # two models, two kinds of reply

    def configure(self, options: Mapping[str, Any]) -> Speed:
        """The suite with these options (`Timing`)."""
        return Speed(Timing.load(dict(options), where="options of the suite speed"))

    def read(self, files: Sequence[Path], limit: int | None) -> list[Prompt]:
        items = [item for file in files for item in read_jsonl(file, Prompt)]
        one_id_each(items, files)
        own = tuple(files) == self.default_data
        return thin(items, _DEFAULT_ITEMS if limit is None and own else limit)

    def measure(
        self,
        lm: LoadedModel,
        items: list[Prompt],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: LoadedModel | None = None,
    ) -> Answers:
        assert before is not None
        whole = [replace(one, cache=None) for one in (lm, before)]
        endless = [replace(one, stops=frozenset()) for one in whole]
        for one in endless:  # what is loaded or compiled at first use is no part of it
            _seconds(one, items[0].prompt, min(self.timing.tokens, 4))
        rows = []
        for item in track(items, "time"):
            tokens = self._shortest(endless, item.prompt, self.timing.tokens)
            reply = self._shortest(whole, item.prompt, max_new_tokens)
            scores = {
                "token_time_ratio": tokens[0] / tokens[1],
                "reply_time_ratio": reply[0] / reply[1],
                "tokens_per_second": self.timing.tokens / tokens[0],
                "seconds_per_reply": reply[0],
            }
            rows.append(Row(item.id, scores, item.cluster))
        return Answers(rows, [])

    def score(
        self, items: list[Prompt], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        raise SutureError(
            "E527",
            "speed cannot be scored from replies",
            why="a saved reply does not say how long it took",
            fix="run `suture measure speed --model DIR --before DIR`",
        )

    def _shortest(
        self, models: Sequence[LoadedModel], prompt: str, tokens: int
    ) -> tuple[float, float]:
        """Seconds of either model in its best round; the order of the two changes every round."""
        best = [math.inf, math.inf]
        for number in range(self.timing.rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                best[which] = min(best[which], _seconds(models[which], prompt, tokens))
        return best[0], best[1]


def _seconds(lm: LoadedModel, prompt: str, tokens: int) -> float:
    """One reply; its text comes back to the CPU, so a device has finished by then."""
    from suture.inference import generate

    with quiet():
        began = time.perf_counter()
        generate(lm, [prompt], max_new_tokens=tokens)
        return time.perf_counter() - began


SUITE = Speed()
