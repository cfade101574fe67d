"""What the suites `tofu` and `unlearning` share: options, and the way from items to numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from suture.config import FrozenConfig
from suture.data import sha256_file
from suture.errors import SutureError
from suture.ledger import Better, Measurement, ReplyRow, Row, replies_sha256
from suture.suites.common import Answers
from suture.suites.forgetting.asking import UNSPOKEN, ask_facts, said_scores
from suture.suites.forgetting.columns import DEFINITIONS, UNPAIRED, UTILITY, Kind
from suture.suites.forgetting.facts import Fact, check_apart
from suture.suites.forgetting.logs import Reference, answers_sha256, read_log, read_reference
from suture.suites.forgetting.overlap import Kind as Rouge
from suture.suites.forgetting.probes import Probe, probed
from suture.suites.forgetting.summary import Derived, summarise, warn_dropped
from suture.versions import versions

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.scorers import Scorer

_ATTACKED = ("mink_k",)  # options that PrivLeak and relearning must have had in common
_RELEARNED = ("relearn_rate", "relearn_tokens", "seed")
_COMPARED = (*_ATTACKED, *_RELEARNED)


class Asked(FrozenConfig):
    """Options of both suites (`--set KEY=VALUE`)."""

    reference: Path | None = Field(
        None, description="file of a model that never saw the rows to forget; none: this is it"
    )
    rows: int | None = Field(
        None,
        ge=1,
        description="first rows of what is to forget and to keep; 300 as first published",
    )
    rouge: Rouge = Field("recall-stemmed", description="which ROUGE-L")
    mink_k: float = Field(0.4, gt=0, le=1, description="share of tokens of min-k and min-k++")
    a_retrain: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="published reference AUC of PrivLeak instead of a measured one",
    )
    utility: tuple[Kind, ...] | None = Field(
        None, description="sets that model utility averages over"
    )
    holdout: Path | None = Field(None, description="unseen rows, for membership attacks")
    probes: tuple[Probe, ...] = Field((), description="relearn, quantise")
    relearn_rate: float = Field(2e-5, gt=0, description="learning rate of relearning, one epoch")
    relearn_tokens: int = Field(4096, ge=8, description="tokens per step of relearning")
    seed: int = Field(0, description="order of the rows in relearning")


class Forgetting:
    """A suite over `Fact` items; subclasses say which files are which set.

    Its metrics follow from the rows (`derived`); columns that are no metric feed them. `unpaired`:
    metrics that no row has. `unasked`: options that change no row's scores, so that measurements
    that differ in them are paired all the same.
    """

    name: str
    options: type[Asked] = Asked
    metrics: Mapping[str, Better] = {name: about[0] for name, about in DEFINITIONS.items()}
    headline = (  # of a picture over the epochs of a training
        "forget_quality",
        "forget_probability",
        "retain_probability",
        "forget_rouge",
        "retain_rouge",
        "extraction_strength",
        "model_utility_geometric",
    )
    default_data: tuple[Path, ...] = ()
    max_new_tokens = 200
    scorer: str | None = None
    needs_before = False
    unpaired = UNPAIRED
    unasked = frozenset({"reference", "utility", "a_retrain", "authors"})

    @property
    def authors(self) -> int:
        """Rows of a log about one author; 0: rows are independent."""
        return 0

    def __init__(self, asked: Asked | None = None, *, told: bool = False) -> None:
        """`told`: the options were given, so that an absent reference is a decision."""
        self.asked = asked or self.options()
        self.told = told

    def configure(self, options: Mapping[str, Any]) -> Forgetting:
        """The suite with these options (`Asked`); `reference: none` says that there is none."""
        values = dict(options)
        told = "reference" in values
        if values.get("reference") in (None, "none", "None"):
            values.pop("reference", None)
        for key in ("probes", "utility"):
            if isinstance(values.get(key), str):
                values[key] = [values[key]]
        asked = self.options.load(values, where=f"options of the suite {self.name}")
        return type(self)(asked, told=told)

    def read(self, files: Sequence[Path], limit: int | None) -> list[Fact]:
        raise NotImplementedError

    def measure(
        self,
        lm: LoadedModel,
        items: list[Fact],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: LoadedModel | None = None,
    ) -> Answers:
        rows, replies = ask_facts(
            lm, items, max_new_tokens=max_new_tokens, mink_k=self.asked.mink_k, before=before
        )
        said = {row.item: row.scores for row in self.score(items, replies)}
        after = probed(
            lm, [fact for fact in items if fact.kind == "forget"], self.asked.probes,
            rate=self.asked.relearn_rate, tokens=self.asked.relearn_tokens, seed=self.asked.seed,
        )  # fmt: skip
        return Answers(
            [
                Row(
                    row.item,
                    {**row.scores, **said[row.item], **after.get(row.item, {})},
                    row.cluster,
                )
                for row in rows
            ],
            replies,
        )

    def score(
        self, items: list[Fact], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        """The overlap of each reply with the truth; held-out rows and other text have none."""
        texts = {reply.item: reply.reply for reply in replies}
        return [
            Row(
                fact.id,
                said_scores(fact, texts[fact.id], self.asked.rouge) if fact.id in texts else {},
                fact.cluster,
            )
            for fact in items
        ]

    def derived(self, rows: Sequence[Row]) -> Derived:
        """All numbers behind which these rows stand."""
        return summarise(
            rows,
            self.reference,
            utility=self.utility(rows),
            a_retrain=self.asked.a_retrain,
        )

    def utility(self, rows: Sequence[Row]) -> tuple[Kind, ...]:
        """The sets of model utility."""
        return UTILITY if self.asked.utility is None else self.asked.utility

    @cached_property
    def reference(self) -> Reference | None:
        """The reference's rows, read once."""
        return None if self.asked.reference is None else read_reference(self.asked.reference)

    def described(self, items: Sequence[Fact]) -> dict[str, Any]:
        """What a measurement's `data` says beyond the files."""
        found: dict[str, Any] = {"answers_sha256": _answers_of(items, "forget")}
        if any(fact.kind == "holdout" for fact in items):
            found["holdout_sha256"] = _answers_of(items, "holdout")
        counts: dict[str, int] = {}
        for fact in items:
            counts[fact.kind] = counts.get(fact.kind, 0) + 1
        return {**found, "sets": counts}

    def replied_to(self, fact: Fact) -> bool:
        """Held-out rows and other text are only read."""
        return fact.kind not in UNSPOKEN

    def score_log(self, path: Path, options: Mapping[str, Any]) -> Measurement:
        """The numbers of a published per-row log or of a measurement file, without a model.

        The weights behind a log are unknown, so its model is declared. Errors: E548 no reference
        was named, E549 not a log, E550 a reference of other rows, E551 a column is missing.
        """
        self._needs_reference()
        found = read_log(path, self.authors)
        if isinstance(found, Measurement):
            derived = self._from(found.rows, found.data)
            asked = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
            data = {**found.data, "options": {**found.data.get("options", {}), **asked}}
            return replace(found, data=data, **_numbers(derived))
        warn_dropped(found.dropped, str(path))
        derived = self._from(found.rows, {"answers_sha256": found.answers})
        items = {row.item: found.truths.get(row.item, "") for row in found.rows}
        return Measurement(
            suite=self.name,
            model={"fingerprint": None, "path": path.name, "patches": [], "identity": "declared"},
            n=len(found.rows),
            rows=found.rows,
            data={
                "name": path.name,
                "files": [str(path.resolve())],
                "sha256": answers_sha256(items),
                "log_sha256": sha256_file(path),
                "n": len(found.rows),
                "answers_sha256": found.answers,
                "dropped": found.dropped,
            },
            decoding={"declared": True},
            versions=versions(),
            replies=found.replies,
            replies_sha256=replies_sha256(found.replies) if found.replies else None,
            **_numbers(derived),
        )

    def _from(self, rows: Sequence[Row], data: Mapping[str, Any]) -> Derived:
        """The numbers of rows that were measured before, with the options `data` tells of."""
        if self.reference is not None:
            forget = [row.item for row in rows if row.item.startswith("forget/")]
            self.reference.check_rows(forget, data.get("answers_sha256"))
            columns = {column for row in rows for column in row.scores}
            told = {k: v for k, v in data.get("options", {}).items() if k in _COMPARED}
            self._check_alike(
                self.options.load(told, where="options of the measurement"),
                data.get("holdout_sha256"),
                attacked="holdout_attack_min_k" in columns,
                relearned="forget_probability_relearned" in columns,
            )
        return self.derived(rows)

    def _check_alike(
        self, asked: Asked, holdout: str | None, *, attacked: bool, relearned: bool
    ) -> None:
        """That the reference was attacked and relearned as this model is (E550, E563)."""
        assert self.reference is not None
        if attacked and self.asked.a_retrain is None:
            self.reference.check_holdout(holdout)
            self.reference.check_asked(asked, _ATTACKED)
        if relearned:
            self.reference.check_asked(asked, _RELEARNED)

    def first_rows(self, kind: Kind) -> int | None:
        """How many rows of a set are taken, from its first."""
        return self.asked.rows if kind in ("forget", "retain") else None

    def checked(self, items: list[Fact], *, needs_reference: bool) -> list[Fact]:
        """The items, once sets do not overlap and the reference, if one is needed, fits.

        Errors: E548 no reference was named, E550 it is of other rows, E552 and E553 it lacks what
        PrivLeak or relearning need, E555 sets overlap, E563 it was measured otherwise.
        """
        check_apart(items)
        if needs_reference:
            self._needs_reference()
        if self.reference is not None:
            told = self.described(items)
            forget = [fact.id for fact in items if fact.kind == "forget"]
            self.reference.check_rows(forget, told["answers_sha256"])
            attacked, relearned = "holdout_sha256" in told, "relearn" in self.asked.probes
            if attacked and self.asked.a_retrain is None:
                self.reference.attacked()
            if relearned:
                self.reference.relearned()
            self._check_alike(
                self.asked, told.get("holdout_sha256"), attacked=attacked, relearned=relearned
            )
        return items

    def _needs_reference(self) -> None:
        if not self.told:
            raise SutureError(
                "E548",
                "forget quality needs a reference: a model that never saw the rows to forget",
                why="it is the distance between the two models' answers to the same rows",
                fix=f"measure that model once, `suture measure {self.name} --model ORACLE "
                "--data ROWS --reference none -o reference.json`, then give here "
                "--reference reference.json",
            )


def _answers_of(items: Sequence[Fact], kind: Kind) -> str:
    return answers_sha256({fact.id: fact.answer for fact in items if fact.kind == kind})


def _numbers(derived: Derived) -> dict[str, Any]:
    """The fields of a measurement that hold its numbers."""
    metrics = {name: about["value"] for name, about in derived.items()}
    better = {name: DEFINITIONS[name][0] for name in derived}
    return {"metrics": metrics, "better": better, "derived": derived}
