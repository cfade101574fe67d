"""Contribution: how much of the language modelling attention does, and how much the outer FFN.

The states at each site of the residual stream are scored for what they say about the token to be
predicted: m_0 behind the embedding, a_l behind layer l's attention, m_l behind its FFN (CEA, arXiv
2403.02436, section 7 of its specification). Each score Φ gives a share of the FFN,

    Σ_l (Φ(m_l) − Φ(a_l)) / (Φ(m_L) − Φ(m_0)),

the rest is attention's, an inner FFN included. Net, unclipped sums are inferred. Scores of a site:

    mi            mutual information, in nats, of a cluster's number and the token: mini-batch
                  k-means with k-means++; the plug-in estimate (Voita et al., EMNLP 2019)
    mi_corrected  less what it comes to when the tokens are shuffled: most of the plug-in estimate's
                  bias (inferred)
    tp            token prediction: how often the token whose states' mean direction is nearest is
                  the right one, of tokens with enough states; on the states the means are of
    tp_held_out   the same with means of one half and states of the other, both ways (inferred)

and the metrics are `ffn_share_` of each, beside `gain_` of each, what is divided by: where the
layers add little, a share says little, and may lie far from 0 to 1. Without an outer FFN m_l = a_l
and the share is 0 by definition. Rows are sites. The estimates' bias depends on the numbers of
states and of clusters, so compare models at the same. An encoder is asked at masked positions; its
states are clustered at all. `--data` is the list that the models were pre-trained on, and as in
the paper the text is of the dev set: the sections that were held out. Options:

    root, passages, length, held_out  as of base-capability
    whole     the texts were not trained on: read all of them
    states    positions, at most, drawn evenly
    clusters  of k-means
    least     states that a token must have
    seed      of clusters, shuffles and halves
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from suture.errors import SutureError
from suture.lazy import np, torch
from suture.ledger import Better, Row
from suture.progress import note, track
from suture.rng import generator
from suture.suites.passages import OfPassages, Passage, Reading, masking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from suture.inference.reading import Reader

SCORES = ("mi", "mi_corrected", "tp", "tp_held_out")
_SHUFFLES = 3


class Asked(Reading):
    """Which text is read, and how its states are scored."""

    whole: bool = Field(False, description="read all of the texts: the models never saw them")
    states: int = Field(40_000, ge=100, description="positions, at most")
    clusters: int = Field(200, ge=2, description="of k-means; the paper has 2000")
    least: int = Field(50, ge=2, description="states that a token must have")
    seed: int = 0

    def lists(self, files: Sequence[Path]) -> list[tuple[Path, bool]]:
        return [(file, not self.whole) for file in files]


class Contribution(OfPassages[Asked]):
    """Items: `Passage`, as of base-capability."""

    name = "contribution"
    metrics: Mapping[str, Better] = {
        **{f"ffn_share_{name}": "lower" for name in SCORES},
        **{f"gain_{name}": "higher" for name in SCORES},
    }
    options = Asked
    what = "contributions"
    why = "they are read off the states inside a model"
    usage = "--data TEXTS.yaml"

    def rows(self, lm: Any, items: list[Passage]) -> list[Row]:
        sites, tokens = states_of(lm, [item.prompt for item in items], self.asked)
        rows = [
            Row(name, site_scores(states, tokens, self.asked))
            for name, states in track(sites.items(), "contribution")
        ]
        for name in SCORES:
            if why := lacking({row.item: row.scores[name] for row in rows if name in row.scores}):
                note(f"there is no ffn_share_{name}: {why}")
        return rows

    def derived(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """The shares; a score that a model's layers do not raise has none."""
        found = {}
        for name in SCORES:
            scores = {row.item: row.scores[name] for row in rows if name in row.scores}
            layers = f"{name}(m_L) - {name}(m_0)"
            for metric, value, definition in (
                ("ffn_share", ffn_share(scores),
                 f"sum over layers of {name}(m_l) - {name}(a_l), over {layers}"),
                ("gain", gain(scores), layers),
            ):  # fmt: skip
                if value is not None:
                    found[f"{metric}_{name}"] = {
                        "value": value,
                        "definition": definition,
                        "direction": self.metrics[f"{metric}_{name}"],
                        "n": len(rows),
                    }
        return dict(sorted(found.items(), key=lambda one: one[0].startswith("gain")))


def states_of(
    reader: Reader, texts: Sequence[str], asked: Asked
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """States (positions, d) by site, m0, a1, m1, ..., and the token each position is to predict,
    −100 where an encoder is asked for nothing.

    Error E960: the model is none of ours, so its sites are not known.
    """
    from suture.inference.text_loss import IGNORED, batches, inputs, windows
    from suture.training.newborn import OWN

    if reader.model.config.model_type not in OWN:
        raise SutureError(
            "E960",
            f"the sites of a {reader.model.config.model_type} model are not known",
            where=str(reader.source.path),
            fix=f"measure one of: {', '.join(OWN)}",
        )
    found: dict[str, list[Any]] = {}
    targets: list[Any] = []
    for batch in track(batches(windows(reader, texts, masking(reader)), reader), "states"):
        width = max(len(window.ids) for window in batch)
        labels = np.full((len(batch), width), IGNORED)
        there = np.zeros((len(batch), width), dtype=bool)
        for row, window in enumerate(batch):
            shift = int(reader.causal)  # a causal model's state predicts the token behind it
            known = window.labels[shift:]
            labels[row, : len(known)] = known
            there[row, : len(known)] = True
        targets.append(labels[there])
        with torch.no_grad():
            sites = reader.model(**inputs(reader, batch), capture={"m", "a"}).sites
        for kind, first in (("m", 0), ("a", 1)):
            for layer, states in enumerate(sites[kind], first):
                found.setdefault(f"{kind}{layer}", []).append(states.float().cpu().numpy()[there])
    tokens = np.concatenate(targets)
    chosen = np.sort(generator(asked.seed, "states").permutation(len(tokens))[: asked.states])
    order = sorted(found, key=lambda name: (int(name[1:]), name[0]))
    return {name: np.concatenate(found[name])[chosen] for name in order}, tokens[chosen]


def site_scores(
    states: NDArray[np.float32], tokens: NDArray[np.int64], asked: Asked
) -> dict[str, float]:
    """The four scores of one site. Error E961: too few states for the clusters."""
    if len(states) < asked.clusters:
        raise SutureError(
            "E961",
            f"{len(states)} states cannot make {asked.clusters} clusters",
            fix="use more passages, or fewer clusters",
        )
    asked_for = tokens >= 0
    numbers = clusters_of(states, asked.clusters, asked.seed)[asked_for]
    states, tokens = states[asked_for], tokens[asked_for]
    plain = mutual_information(numbers, tokens)
    rng = generator(asked.seed, "shuffles")
    chance = [mutual_information(numbers, rng.permutation(tokens)) for _ in range(_SHUFFLES)]
    found = {"mi": plain, "mi_corrected": plain - float(np.mean(chance))}
    same = token_prediction(states, tokens, states, tokens, asked.least)
    half = generator(asked.seed, "halves").random(len(tokens)) < 0.5
    ways = [
        token_prediction(
            states[side], tokens[side], states[~side], tokens[~side], max(2, asked.least // 2)
        )
        for side in (half, ~half)
    ]
    if same is not None:
        found["tp"] = same
    if ways[0] is not None and ways[1] is not None:
        found["tp_held_out"] = (ways[0] + ways[1]) / 2
    return found


def clusters_of(states: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    """The number of each state's cluster: mini-batch k-means, batches of 1024, k-means++.

    Error E959: scikit-learn is not installed.
    """
    try:
        cluster = importlib.import_module("sklearn.cluster")
    except ImportError:
        raise SutureError(
            "E959", "clusters need scikit-learn", fix="pip install 'scikit-learn>=1.5'"
        ) from None
    made = cluster.MiniBatchKMeans(
        count, batch_size=1024, init="k-means++", n_init=1, random_state=seed
    )
    found: NDArray[np.int64] = np.asarray(made.fit_predict(states), dtype=np.int64)
    return found


def mutual_information(x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
    """H(X) + H(Y) − H(X, Y) of the empirical distribution, in nats."""
    pairs = np.stack([x, y])
    return _entropy(x) + _entropy(y) - _entropy(pairs)


def _entropy(values: NDArray[np.int64]) -> float:
    counts = np.unique(values, axis=-1, return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def token_prediction(
    known: NDArray[np.float32],
    known_tokens: NDArray[np.int64],
    asked: NDArray[np.float32],
    asked_tokens: NDArray[np.int64],
    least: int,
) -> float | None:
    """Accuracy of argmax_t cos(state, mean direction of t's states) over `asked`.

    Tokens with fewer than `least` states in `known` are left out of both; None if none has as many.
    """
    names, counts = np.unique(known_tokens, return_counts=True)
    names = names[counts >= least]
    inside, right = np.isin(known_tokens, names), np.isin(asked_tokens, names)
    if not len(names) or not right.any():
        return None
    places = np.searchsorted(names, known_tokens[inside])
    means = np.zeros((len(names), known.shape[1]), dtype=np.float64)
    np.add.at(means, places, _unit(known[inside]))
    said = names[(asked[right] @ _unit(means).T.astype(np.float32)).argmax(-1)]
    return float((said == asked_tokens[right]).mean())


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12))


def ffn_share(scores: Mapping[str, float]) -> float | None:
    """Σ_l (Φ(m_l) − Φ(a_l)) / (Φ(m_L) − Φ(m_0)); None where a site is missing or the layers as a
    whole do not raise Φ."""
    gained = gain(scores)
    if gained is None or gained <= 0:
        return None
    layers = _layers(scores)
    return sum(scores[f"m{i}"] - scores[f"a{i}"] for i in range(1, layers + 1)) / gained


def gain(scores: Mapping[str, float]) -> float | None:
    """Φ(m_L) − Φ(m_0), what all layers add; None where a site is missing."""
    layers = _layers(scores)
    needed = ["m0", *(f"{kind}{i}" for i in range(1, layers + 1) for kind in "am")]
    if not layers or any(name not in scores for name in needed):
        return None
    return scores[f"m{layers}"] - scores["m0"]


def lacking(scores: Mapping[str, float]) -> str | None:
    """Why there is no share of these scores, for people; None where there is one."""
    gained = gain(scores)
    if gained is None:
        return "no token has as many states as `least` asks for; read more passages, or lower least"
    return (
        None if gained > 0 else f"the layers do not raise the score, they change it by {gained:.4f}"
    )


def _layers(scores: Mapping[str, float]) -> int:
    return max((int(name[1:]) for name in scores), default=0)


SUITE = Contribution()
