"""One suite over tasks that are data: `suture.suites.sentiment` and `emotion` are two of it.

A row is a record (of a variant, where several paraphrases or orders of the labels are asked); its
columns are called TASK.COLUMN, its metrics TASK.METRIC. With several tasks of one aspect there is
ASPECT.mean over their headlines, tasks held out apart. Variants add TASK.METRIC.mean, `.sd`,
`.worst` over the variants' own numbers, and those as TASK.METRIC.p0o1 (paraphrase 0, order 1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data.tasks.record import Record
from suture.errors import SutureError
from suture.ledger import Better, ReplyRow, Row
from suture.progress import note
from suture.suites.answerers import replies_of
from suture.suites.common import QUALITY, Answers, one_id_each, quality, thin, with_logprob
from suture.suites.tasks import graded
from suture.suites.tasks.asked import Question, TaskOptions, check_asked
from suture.suites.tasks.gold import check_gold, gold_of, tell_unknown
from suture.suites.tasks.learning import BASELINES, learn
from suture.suites.tasks.metrics import READING, columns, metric, reported
from suture.suites.tasks.parsing import Parsed, parse
from suture.suites.tasks.rendering import canonical, ordered, render, shown_labels
from suture.suites.tasks.shots import choose
from suture.suites.tasks.sources import FILES, read_records, unseen
from suture.suites.tasks.spec import TaskSpec, load_task
from suture.suites.tasks.summary import Derived, summarise, variant

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.suites.judges import Purpose
    from suture.suites.judges.grading import Case
    from suture.suites.scorers import Scorer
    from suture.suites.tasks.bertscore import Bertscorer


class TaskSuite:
    """Items: `Question`. `configure` names the tasks; without them nothing can be read (E579)."""

    default_data: tuple[Path, ...] = ()
    scorer: str | None = None
    needs_before = False
    baselines = BASELINES
    # ways to ask and to read the same items: pairs of them say what examples or captions bring.
    # What a scoring model is stands beside its scores (`scored_with`), by its weights.
    unasked = frozenset(
        {"task", "method", "shots", "sampler", "train", "images", "parser"}
        | {"scorer", "scorer_layer", "scorer_idf"}
    )

    def __init__(self, name: str, asked: TaskOptions | None = None, *, models: bool = True) -> None:
        self.name, self._asked, self._models = name, asked, models
        self._files: tuple[Path, ...] = ()
        self._place: tuple[str, Path | None] = ("auto", None)

    def configure(self, options: Mapping[str, Any]) -> TaskSuite:
        """The suite with these options (`TaskOptions`)."""
        values = dict(options)
        if isinstance(values.get("task"), str):
            values["task"] = [values["task"]]
        return TaskSuite(
            self.name, TaskOptions.load(values, where=f"options of the suite {self.name}")
        )

    @property
    def asked(self) -> TaskOptions:
        if self._asked is None:
            raise SutureError(
                "E579",
                "no task is named",
                where=f"suture measure {self.name}",
                fix="add --set task=NAME, or a YAML file; `suture list tasks` names them",
            )
        return self._asked

    @cached_property
    def specs(self) -> dict[str, TaskSpec]:
        """The tasks by name."""
        found = {}
        for name in self.asked.task:
            spec = load_task(name)
            for one in spec.metrics:
                metric(spec, one)
            check_asked(self.asked, spec, self.name, name)
            found[spec.name] = spec
        graded.check_scorer(self.asked, found.values())
        return found

    def check(self) -> None:
        """Refuse tasks and options that do not fit: E574, E580, E581, E589, E701 to E704."""
        self.specs  # noqa: B018

    @property
    def max_new_tokens(self) -> int:
        """The longest limit among the tasks."""
        return 32 if self._asked is None else max(s.max_new_tokens for s in self.specs.values())

    @property
    def metrics(self) -> Mapping[str, Better]:
        """Every metric there may be, with its direction."""
        if self._asked is None:
            return QUALITY
        found: dict[str, Better] = {}
        for spec in self.specs.values():
            for asked in reported(spec):
                better, name = metric(spec, asked).better, f"{spec.name}.{asked.name}"
                found[name] = better
                variants = self._variants(spec)
                if len(variants) > 1:
                    ends = ["mean", "worst", *(variant(p, o) for p, o in variants)]
                    found |= {f"{name}.{end}": better for end in ends}
                    found[f"{name}.sd"] = "lower"
            found |= {f"{spec.name}.{name}": about[0] for name, about in READING.items()}
            if spec.aspect:
                found[f"{spec.aspect}.mean"] = found[f"{spec.aspect}.held_out_mean"] = "higher"
        return found | QUALITY

    @property
    def unpaired(self) -> frozenset[str]:
        """What is about variants, not rows."""
        if self._asked is None:
            return frozenset()
        names = [
            f"{spec.name}.{one.name}" for spec in self.specs.values() for one in reported(spec)
        ]
        return frozenset(f"{name}.{end}" for name in names for end in ("sd", "worst"))

    def _variants(self, spec: TaskSpec) -> list[tuple[int, int]]:
        labels = shown_labels(spec.answer)
        orders = self.asked.orders if len(labels) > 1 else 1
        return [(p, o) for p in range(self.asked.paraphrases) for o in range(orders)]

    def read(self, files: Sequence[Path], limit: int | None) -> list[Question]:
        """Records of each task's data set in the folder FILES, or of the JSONL files themselves,
        each at most `limit`, in all variants."""
        self._files, asked = tuple(files), self.asked
        items = []
        for spec in self.specs.values():
            records = thin(self.records(spec, asked.split), limit)
            check_gold(spec, records)
            tell_unknown(spec, records)
            shots: list[list[Record]] = [[] for _ in records]
            if asked.shots:
                train = self._training(spec)
                shots = choose(spec, train, records, asked.shots, asked.sampler, asked.seed)
            for record, examples in zip(records, shots, strict=True):
                items += [self._ask(spec, record, examples, *one) for one in self._variants(spec)]
        one_id_each(items, files)
        return items

    def records(self, spec: TaskSpec, split: str) -> list[Record]:
        """The records of a task (E582: nothing says where they are)."""
        return self.records_of(spec, self._files, split)

    def records_of(self, spec: TaskSpec, files: Sequence[Path], split: str) -> list[Record]:
        """The same, in these places."""
        if not files:
            raise SutureError(
                "E582",
                f"the suite {self.name} has no data of its own",
                where="--data",
                fix="give --data DIR, a folder of data sets, or a JSONL file of records",
            )
        return [record for file in files for record in read_records(spec, file, split)]

    def _ask(
        self, spec: TaskSpec, record: Record, shots: Sequence[Record], paraphrase: int, order: int
    ) -> Question:
        labels = ordered(shown_labels(spec.answer), order, self.asked.seed)
        turns = spec.prompts[self.asked.method][paraphrase]
        # an example is one question and its answer, whatever the method
        plain = turns if self.asked.method == "zero-shot" else spec.prompts["zero-shot"][0]
        several = len(self._variants(spec)) > 1
        name = f"{spec.name}/{record.id}"
        data = (spec.dataset or spec.name).partition(":")[0]  # views are of the same tweets
        cluster = record.cluster and f"{data}/{record.cluster}"
        return Question(
            id=f"{name}@{variant(paraphrase, order)}" if several else name,
            task=spec.name,
            record=record,
            start=[turn for shot in shots for turn in solved(spec, shot, plain, labels)],
            turns=render(spec, record, turns, labels),
            cluster=cluster or (name if several else None),
            paraphrase=paraphrase,
            order=order,
        )

    def described(self, items: Sequence[Question]) -> dict[str, Any]:
        """What was shown, which the items' own SHA-256 leaves out."""
        shown = [[item.start, item.turns, str(self.picture(item) or "")] for item in items]
        return {"shown_sha256": hashlib.sha256(json.dumps(shown).encode()).hexdigest()}

    def conversation(self, item: Question) -> tuple[list[dict[str, str]], list[str]]:
        """Solved examples, and the user turns."""
        return item.start, item.turns

    def picture(self, item: Question) -> Path | None:
        """The image beside the text, unless pictures are left out."""
        return item.record.image if self.asked.images == "auto" else None

    def measure(
        self,
        lm: LoadedModel,
        items: list[Question],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: LoadedModel | None = None,
    ) -> Answers:
        replies = replies_of(lm, self, items, max_new_tokens)
        rows = self.score(items, replies)
        if before is not None and any(item.start or len(item.turns) > 1 for item in items):
            note("--before adds nothing here: log-probabilities are of replies to a single turn")
        elif before is not None:
            rows = with_logprob(rows, replies, before)
        return Answers(rows, replies)

    def score(
        self, items: list[Question], replies: Sequence[ReplyRow], scorer: Scorer | None = None
    ) -> list[Row]:
        read_all = [
            parse(self.specs[item.task].answer, reply.reply, item.record)
            for item, reply in zip(items, replies, strict=True)
        ]
        more = self._bertscores(items, read_all)
        rows = []
        for item, reply, read in zip(items, replies, read_all, strict=True):
            spec = self.specs[item.task]
            found = {
                "parsed_strict": float(read.how == "strict"),
                "parsed_lenient": float(read.how != "failed"),
                "unended": float(not reply.ended),
                **_variant_of(item, len(self._variants(spec))),
                **self._scored(spec, item.record, read),
                **more.get(item.id, {}),
            }
            scores = {f"{spec.name}.{name}": value for name, value in found.items()}
            rows.append(Row(item.id, {**scores, **quality(reply)}, item.cluster))
        for name in self.specs:
            self._tell_unread(name, rows)
        return rows

    def _tell_unread(self, name: str, rows: Sequence[Row]) -> None:
        """One line where not a single reply of a task could be read."""
        counted = f"{name}.parsed_{self.asked.parser}"
        asked = [row.scores for row in rows if counted in row.scores]
        if not asked or any(scores[counted] for scores in asked):
            return
        form = "had the form asked for" if self.asked.parser == "strict" else "could be read"
        found = sum(scores[f"{name}.parsed_lenient"] for scores in asked)
        more = f"; --set parser=lenient reads {found:g} of them" if found else ""
        note(f"{name}: 0 of {len(asked)} replies {form}; the policy {self.asked.policy} "
             f"decides every number{more}")  # fmt: skip

    def _scored(self, spec: TaskSpec, record: Record, read: Parsed) -> dict[str, float]:
        right, said = gold_of(spec, record), self._said(spec, read)
        if right is None or (said is None and self.asked.policy == "drop"):
            return {}
        return columns(spec, right, said)

    def _said(self, spec: TaskSpec, read: Parsed) -> Any:
        """The answer that counts; None where there is none."""
        counts = read.how == "strict" or (self.asked.parser == "lenient" and read.how == "lenient")
        said = read.value if counts else None
        return spec.answer.default if said is None and self.asked.policy == "default" else said

    @cached_property
    def _bertscorer(self) -> Bertscorer | None:
        """The scoring model, if one is asked for."""
        return graded.bertscorer(self._asked, *self._place) if self._models else None

    def scored_with(self) -> dict[str, Any]:
        """What scores besides phrases and judges, as measurements record it."""
        scorer = self._bertscorer
        return {} if scorer is None else {"bertscore": scorer.identity}

    def runs_on(self, device: str, cache: Path | None) -> None:
        """Where the scoring model runs, and the folder of answers that keeps its scores."""
        self._place = (device, cache)

    def without_models(self) -> TaskSuite:
        """The same, leaving scores alone that need a model."""
        return TaskSuite(self.name, self._asked, models=False)

    def _bertscores(
        self, items: Sequence[Question], read: Sequence[Parsed]
    ) -> dict[str, dict[str, float]]:
        """BERTScore's columns by item; none of a row that the policy leaves out."""
        if self._bertscorer is None:
            return {}
        said = {
            item.id: self._said(self.specs[item.task], one)
            for item, one in zip(items, read, strict=True)
        }
        if self.asked.policy == "drop":
            said = {name: one for name, one in said.items() if one is not None}
        return graded.bertscores(self._bertscorer, self.specs.values(), items, said)

    @property
    def judged(self) -> Purpose | None:
        """What a judge is asked: how much empathy a reply to somebody shows."""
        if self._asked is None or any(spec.expresses for spec in self.specs.values()):
            return "empathy"
        return None

    def judged_case(self, item: Question, reply: str) -> Case | None:
        """What a judge is shown of a reply; None where the task is not to answer somebody."""
        return graded.case_of(self.specs[item.task], item, reply)

    def derived(self, rows: Sequence[Row]) -> Derived:
        """All metrics, as entries of `Measurement.derived`."""
        told = f"answers read {'strictly' if self.asked.parser == 'strict' else 'leniently'}"
        return summarise(
            self.specs.values(),
            rows,
            told=f"{told}, policy {self.asked.policy}",
            variants={name: self._variants(spec) for name, spec in self.specs.items()},
        )

    def baseline(
        self,
        name: str,
        items: Sequence[Question],
        *,
        seed: int = 0,
        model: str | None = None,
        layer: int | None = None,
    ) -> list[str]:
        """What a baseline answers, in canonical form; it learns from the training records.

        `model`, `layer`: checkpoint folder of the embedding, default none, and whose states."""
        found: dict[str, str] = {}
        for spec in self.specs.values():
            own = [item for item in items if item.task == spec.name]
            records = [item.record for item in own]
            train = unseen(spec, records, self._training(spec))
            said = learn(name, spec, train, records, seed=seed, model=model, layer=layer)
            found |= {
                item.id: canonical(spec.answer, value)
                for item, value in zip(own, said, strict=True)
            }
        return [found[item.id] for item in items]

    def _check_apart(self) -> None:
        """A file by itself has no training split: what is asked would be learned (E583)."""
        named = self.asked.train.endswith(FILES)
        if not named and not all(file.is_dir() for file in self._files):
            raise SutureError(
                "E583",
                "nothing says what may be learned from: the data are files by themselves",
                where="train",
                why="what learns from the records that are asked answers them by heart",
                fix="give --set train=FILE.jsonl, other records with gold, or --data DIR",
            )

    def _training(self, spec: TaskSpec) -> list[Record]:
        """Records with their gold, that examples and baselines learn from."""
        self._check_apart()
        train = self.asked.train
        if train.endswith(FILES):
            found = read_records(spec, Path(train), "train")
        else:
            found = self.records(spec, train)
        known = [record for record in found if gold_of(spec, record) is not None]
        check_gold(spec, known)
        return known


def _variant_of(item: Question, variants: int) -> dict[str, float]:
    """Which variant a row is of, where there are several."""
    if variants < 2:
        return {}
    return {"paraphrase": float(item.paraphrase), "order": float(item.order)}


def solved(
    spec: TaskSpec, record: Record, turns: Sequence[str], labels: Sequence[str]
) -> list[dict[str, str]]:
    """A record with its right answer, as two messages."""
    asked = "\n\n".join(render(spec, record, turns, labels))
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": canonical(spec.answer, gold_of(spec, record))},
    ]
