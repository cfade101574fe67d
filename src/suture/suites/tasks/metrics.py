"""Answers to columns of a row, and the numbers that follow from them.

Every row says how its answer was read (`parsed_strict`, `parsed_lenient`) and whether it ended
(`unended`); the other columns stand behind the task's metrics. Kinds of metrics, by answer:

    label    accuracy, macro_f1, weighted_f1; f1_of, precision_of, recall_of (option `label`)
    labels   micro_f1, macro_f1, jaccard, exact
    score    mae, rmse, pearson; acc2_has0, acc2_non0, f1_has0, f1_non0, acc3, acc5, acc7; acc_bins
             and f1_bins (option `edges`)
    spans    micro_f1, micro_precision, micro_recall, exact, token_f1
    pairs    the same without token_f1; weighted_pair_f1 and macro_pair_f1 over the labels of a part
             (option `labels`: which of them)
    text     as `suture.suites.tasks.texts` has them

Scores follow MMSA (thuiar/MMSA, `metricsTop.py`; confirmed behaviour): predictions and truth are
clipped to ±3, ±2, ±1 and rounded half to even for Acc-7, Acc-5, Acc-3; has0 compares >= 0 with < 0;
non0 leaves truth 0 out and compares > 0; F1 is weighted. Spans and tuples are sets of texts: a
piece given twice counts once.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from suture.errors import SutureError, nearest
from suture.ledger import NONE, Better, Row, derive
from suture.suites.tasks.spec import (
    LabelAnswer,
    LabelsAnswer,
    MetricSpec,
    PairsAnswer,
    ScoreAnswer,
    SpansAnswer,
    TaskSpec,
)

READING: dict[str, tuple[Better, str]] = {
    "parsed_strict": ("higher", "share of replies that are an answer and nothing else"),
    "parsed_lenient": ("higher", "share of replies in which an answer was found at all"),
    "unended": ("lower", "share of replies that the token limit cut off"),
}
_EDGES = ("has0", "non0")


@dataclass(frozen=True)
class Metric:
    """A number about rows: a statistic of `suture.ledger.statistics` over columns of the task."""

    kind: str
    columns: Sequence[str]
    definition: str
    better: Better = "higher"
    options: Mapping[str, Any] = field(default_factory=dict)


def metric(spec: TaskSpec, asked: MetricSpec) -> Metric:
    """What a metric of the task is made of (E578: its answers have no such metric)."""
    answer, kind, options = spec.answer, asked.of, asked.options
    found: Metric | None = None
    if isinstance(answer, LabelAnswer):
        found = _of_label(answer, kind, options)
    elif isinstance(answer, LabelsAnswer):
        found = _of_labels(answer, kind)
    elif isinstance(answer, ScoreAnswer):
        found = _of_score(kind, options)
    elif isinstance(answer, SpansAnswer | PairsAnswer):
        found = _of_sets(answer, kind, options)
    else:
        found = _texts().METRICS.get(kind) or _texts().OF_MODELS.get(kind)
    if found is None:
        known = kinds(spec)
        close = nearest(kind, known)
        raise SutureError(
            "E578",
            f"answers of kind {answer.kind} have no metric '{kind}'",
            where=f"task {spec.name}, metrics.{asked.name}",
            fix=f"did you mean '{close}'?" if close else f"there are: {', '.join(known)}",
        )
    return found


def kinds(spec: TaskSpec) -> list[str]:
    """Kinds of metrics that the task's answers have."""
    answer = spec.answer
    if isinstance(answer, LabelAnswer):
        return ["accuracy", "macro_f1", "weighted_f1", "f1_of", "precision_of", "recall_of"]
    if isinstance(answer, LabelsAnswer):
        return ["micro_f1", "macro_f1", "jaccard", "exact"]
    if isinstance(answer, ScoreAnswer):
        plain = ["mae", "rmse", "pearson", "acc_bins", "f1_bins", "acc3", "acc5", "acc7"]
        return [*plain, *(f"{what}_{edge}" for what in ("acc2", "f1") for edge in _EDGES)]
    if isinstance(answer, SpansAnswer):
        return ["micro_f1", "micro_precision", "micro_recall", "exact", "token_f1"]
    if isinstance(answer, PairsAnswer):
        of_classes = ["weighted_pair_f1", "macro_pair_f1"]
        return ["micro_f1", "micro_precision", "micro_recall", "exact", *of_classes]
    return [*_texts().METRICS, *(_texts().OF_MODELS if spec.expresses else ())]


def reported(spec: TaskSpec) -> list[MetricSpec]:
    """The task's own metrics, and of replies to somebody those that a scoring model or a judge
    adds: they are there where rows have their columns."""
    own = {one.name for one in spec.metrics}
    more = _texts().OF_MODELS if spec.expresses else {}
    return [*spec.metrics, *(MetricSpec(name=name) for name in more if name not in own)]


def _texts() -> Any:
    """Only tasks that ask for a text of the model's own need what compares texts."""
    return importlib.import_module("suture.suites.tasks.texts")


def _of_label(answer: LabelAnswer, kind: str, options: Mapping[str, Any]) -> Metric | None:
    codes, count = ["gold", "said"], len(answer.labels)
    if kind == "accuracy":
        return Metric("mean", ["accuracy"], "share of right answers")
    if kind in ("macro_f1", "weighted_f1"):
        how = "averaged" if kind == "macro_f1" else "weighted by how often each is right"
        return Metric(kind, codes, f"F1 of {count} labels, {how}", options={"labels": count})
    if kind in ("f1_of", "precision_of", "recall_of"):
        label = options.get("label")
        if label not in answer.labels:
            raise SutureError(
                "E578",
                f"{kind} of '{label}', which is no label",
                where="metrics: options: label",
                fix=f"give one of: {', '.join(answer.labels)}",
            )
        said = f"{kind.partition('_')[0]} of the label {label}"
        return Metric(kind, codes, said, options={"label": answer.index(label)})
    return None


def _of_labels(answer: LabelsAnswer, kind: str) -> Metric | None:
    if kind == "micro_f1":
        return Metric(kind, ["tp", "fp", "fn"], "F1 over all labels of all texts")
    if kind == "macro_f1":
        columns = [f"{what}_{k}" for k in range(len(answer.labels)) for what in ("tp", "fp", "fn")]
        return Metric("macro_count_f1", columns, f"F1 averaged over {len(answer.labels)} labels")
    if kind == "jaccard":
        return Metric("mean", [kind], "labels in both / labels in either, averaged over texts")
    if kind == "exact":
        return Metric("mean", [kind], "share of texts with all labels right")
    return None


def _of_score(kind: str, options: Mapping[str, Any]) -> Metric | None:
    errors: dict[str, tuple[str, Better]] = {
        "mae": ("mean absolute error", "lower"),
        "rmse": ("root of the mean squared error", "lower"),
        "pearson": ("Pearson correlation", "higher"),
    }
    if kind in errors:
        told, better = errors[kind]
        told += " over the answers that could be read"
        return Metric(kind, ["gold", "said"], told, better)
    if kind in ("acc3", "acc5", "acc7"):
        return Metric("mean", [kind], f"share right of {kind[-1]} rounded scores")
    what, _, edge = kind.partition("_")
    if edge in _EDGES and what in ("acc2", "f1"):
        told = {"has0": ">= 0 or < 0", "non0": "> 0 or not, without truth 0"}[edge]
        if what == "acc2":
            return Metric("mean", [kind], f"share right of: {told}")
        columns = [f"gold_{edge}", f"said_{edge}"]
        return Metric("weighted_f1", columns, f"weighted F1 of: {told}", options={"labels": 2})
    if kind in ("acc_bins", "f1_bins"):
        edges = options.get("edges")
        if not isinstance(edges, list | tuple) or len(edges) < 3 or sorted(edges) != list(edges):
            raise SutureError(
                "E578",
                f"{kind} needs its edges, at least three that rise",
                where="metrics: options: edges",
                fix="write options: {edges: [-1.01, -0.1, 0.1, 1.01]}",
            )
        name = bins_column(edges)
        told = f"{len(edges) - 1} bins with edges {', '.join(f'{e:g}' for e in edges)}"
        columns = [f"gold_{name}", f"said_{name}"]
        if kind == "acc_bins":
            return Metric("accuracy", columns, f"share right of {told}")
        count = {"labels": len(edges) - 1}
        return Metric("weighted_f1", columns, f"weighted F1 of {told}", options=count)
    return None


def bins_column(edges: Sequence[float]) -> str:
    """What the columns of a binning are called."""
    return "bins_" + "_".join(f"{edge:g}" for edge in edges)


def _of_sets(
    answer: SpansAnswer | PairsAnswer, kind: str, options: Mapping[str, Any]
) -> Metric | None:
    if kind in ("micro_f1", "micro_precision", "micro_recall"):
        told = {"micro_f1": "F1", "micro_precision": "precision", "micro_recall": "recall"}[kind]
        return Metric(kind, ["tp", "fp", "fn"], f"{told} of exact matches over all texts")
    if kind == "exact":
        return Metric("mean", [kind], "share of texts with everything right and nothing more")
    if kind == "token_f1" and isinstance(answer, SpansAnswer):
        return Metric("mean", [kind], "F1 of the words in the pieces, averaged over texts")
    if kind in ("weighted_pair_f1", "macro_pair_f1") and isinstance(answer, PairsAnswer):
        classes = classes_of(answer)
        over = [name for name in options.get("labels", classes) if name in classes]
        columns = [f"{what}_{classes.index(name)}" for name in over for what in ("tp", "fp", "fn")]
        how = "weighted by how often each is right" if kind == "weighted_pair_f1" else "averaged"
        own = "weighted_pair_f1" if kind == "weighted_pair_f1" else "macro_count_f1"
        told = f"F1 of exact matches of {len(over)} labels ({', '.join(over)}), {how} (inferred)"
        return Metric(own, columns, told) if over else None
    return None


def classes_of(answer: PairsAnswer) -> list[str]:
    """The labels of the last part that has any."""
    return next((part.labels for part in reversed(answer.parts) if part.kind == "label"), [])


def columns(spec: TaskSpec, gold: Any, said: Any) -> dict[str, float]:
    """The columns behind the task's metrics for one row. `said`: None where there is no answer,
    which is wrong, or, of a score, has no error."""
    answer = spec.answer
    if isinstance(answer, LabelAnswer):
        code = NONE if said is None else float(answer.index(said))
        right = float(answer.index(gold))
        found = {"gold": right, "said": code, "accuracy": float(code == right)}
    elif isinstance(answer, LabelsAnswer):
        found = _label_counts(answer, set(gold), set(said or ()), said is not None)
    elif isinstance(answer, ScoreAnswer):
        edges = [m.options.get("edges", ()) for m in spec.metrics if m.of.endswith("_bins")]
        found = score_columns(float(gold), None if said is None else float(said), edges)
    elif isinstance(answer, SpansAnswer):
        found = _set_counts([[one] for one in gold], [[one] for one in said or ()])
        found["exact"] *= said is not None
        found["token_f1"] = _token_f1(gold, said or ()) * (said is not None)
    elif isinstance(answer, PairsAnswer):
        found = _set_counts(gold, said or ())
        found["exact"] *= said is not None
        place = max((i for i, p in enumerate(answer.parts) if p.kind == "label"), default=-1)
        for k, name in enumerate(classes_of(answer)):
            own = [[row for row in side if row[place] == name] for side in (gold, said or ())]
            counts = _set_counts(*own)
            found |= {f"{what}_{k}": counts[what] for what in ("tp", "fp", "fn")}
    else:
        found = _texts().columns(said or "", gold)
    needed = {name for one in spec.metrics for name in metric(spec, one).columns}
    return {name: value for name, value in found.items() if name in needed}


def _label_counts(
    answer: LabelsAnswer, gold: set[str], said: set[str], answered: bool
) -> dict[str, float]:
    found: dict[str, float] = {}
    for k, label in enumerate(answer.labels):
        found[f"tp_{k}"] = float(label in gold and label in said)
        found[f"fp_{k}"] = float(label in said - gold)
        found[f"fn_{k}"] = float(label in gold - said)
    both, either = len(gold & said), len(gold | said)
    return found | {
        "tp": float(both),
        "fp": float(len(said - gold)),
        "fn": float(len(gold - said)),
        "exact": float(answered and gold == said),
        "jaccard": both / either if either else float(answered),
    }


def score_columns(
    gold: float, said: float | None, edges: Sequence[Sequence[float]] = ()
) -> dict[str, float]:
    """MMSA's classes of a score. Without a prediction each class is wrong and there is no error."""
    found = {"gold": gold} | ({} if said is None else {"said": said})
    for most, name in ((3.0, "acc7"), (2.0, "acc5"), (1.0, "acc3")):
        classes = [round(min(max(x, -most), most)) for x in (gold, said) if x is not None]
        found[name] = float(len(classes) == 2 and classes[0] == classes[1])
    for edge in _EDGES:
        if edge == "non0" and gold == 0:
            continue
        over: Callable[[float], bool] = (lambda x: x >= 0) if edge == "has0" else (lambda x: x > 0)
        right, given = float(over(gold)), NONE if said is None else float(over(said))
        found |= {f"gold_{edge}": right, f"said_{edge}": given, f"acc2_{edge}": right == given}
    for own in filter(None, edges):
        name = bins_column(own)
        found[f"gold_{name}"] = _bin(gold, own)
        found[f"said_{name}"] = NONE if said is None else _bin(said, own)
    return {name: float(value) for name, value in found.items()}


def _bin(value: float, edges: Sequence[float]) -> float:
    """Which (low, high] a value lies in; beyond the ends, the nearest."""
    value = min(max(value, edges[0]), edges[-1])
    inside = [k for k in range(len(edges) - 1) if edges[k] < value <= edges[k + 1]]
    return float(inside[0] if inside else 0)


def _set_counts(gold: Sequence[Sequence[Any]], said: Sequence[Sequence[Any]]) -> dict[str, float]:
    right, given = ({tuple(_key(x) for x in row) for row in side} for side in (gold, said))
    return {
        "tp": float(len(right & given)),
        "fp": float(len(given - right)),
        "fn": float(len(right - given)),
        "exact": float(right == given),
    }


def _key(value: Any) -> Any:
    """Texts are the same whatever their blanks and apostrophes."""
    return " ".join(value.replace("’", "'").split()) if isinstance(value, str) else value


def _token_f1(gold: Sequence[str], said: Sequence[str]) -> float:
    """SQuAD's F1 over the words of all pieces; 1 where there are none on either side."""
    one, two = (re.findall(r"\w+", " ".join(side).casefold()) for side in (gold, said))
    if not one or not two:
        return float(not one and not two)
    both = sum(min(one.count(word), two.count(word)) for word in set(one))
    return 2 * both / (len(one) + len(two))


def derived(
    spec: TaskSpec, rows: Sequence[Row], *, told: str, where: Mapping[str, float] | None = None
) -> dict[str, dict[str, Any]]:
    """The task's metrics over its rows, by their own names. `told`: how answers were read."""
    found = {}
    for asked in reported(spec):
        one = metric(spec, asked)
        names = [f"{spec.name}.{column}" for column in one.columns]
        if any(all(name in row.scores for name in names) for row in rows):
            found[asked.name] = derive(
                rows,
                one.kind,
                names,
                definition=f"{one.definition}; {told}",
                better=one.better,
                where=where,
                **one.options,
            )
    return found
