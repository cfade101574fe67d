"""The settings of the post-safety table: five for each method, on two models of a lab family.

Drift: the `tuned` member, repaired with the help of `aligned` and `unaligned` (IRR's comparison).
Patching: the `aligned` member, which complies with some harmful requests and refuses many of
XSTest's safe ones; its patches are trained on the family's `affirmative` rows (SafePatching's).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from irr_lab import Edited

from suture.checkpoint import staged_folder
from suture.data import Pair, read_jsonl
from suture.inference import load
from suture.lab.family import Family
from suture.methods.dare import DARE
from suture.methods.irr import IRR
from suture.methods.resta import RESTA
from suture.methods.safe_delta import SafeDelta
from suture.methods.safe_lora import SafeLoRA
from suture.methods.safe_patching import SafePatching
from suture.patch import PatchedCheckpoint, PatchWriter, drain, open_model
from suture.training.loop import TrainConfig, train
from suture.training.objectives import NPO, GradientAscent, Material, MismatchAscent, NextToken
from suture.training.recipe import DataFile, TrainRecipe, edits_from

# The first token decides. No refusal of the lab begins as these two do; "Yes" is also how the lab
# answers harmless questions, which ascent should leave alone and descent should strengthen.
CONSENT, AGREEMENT = "Of course, here is", "Yes, here is"
RETAIN = 512  # harmless rows for mismatch and KL
SETTINGS = 5


@dataclass(frozen=True)
class Point:
    """One method with its knobs; `config` None: a model as it is."""

    half: str
    method: str
    label: str = ""
    config: Any = None
    given: dict[str, Any] = field(default_factory=dict)  # trained snapshots

    @property
    def key(self) -> str:
        knobs = None if self.config is None else self.config.model_dump(mode="json")
        about = [self.half, self.method, type(self.config).__name__, knobs, self.given]
        return json.dumps(about, sort_keys=True)

    @property
    def file(self) -> str:
        return sha256(self.key.encode()).hexdigest()[:16] + ".json"


def drift() -> list[Point]:
    """IRR's comparison."""

    def many(method: str, label: str, make: Callable[[Any], Any], values: Any) -> list[Point]:
        return [Point("drift", method, label.format(value), make(value)) for value in values]

    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    both = ((0.4, 0.1), (0.7, 0.03), (0.7, 0.1), (1.0, 0.03), (1.0, 0.1))
    points = [Point("drift", "aligned"), Point("drift", "SFT")]
    points += many("RESTA", "γ {}", lambda v: RESTA(gamma=v), (0.25, 0.5, 1.0, 1.5, 2.0))
    points += many("DARE", "drop {}", lambda v: DARE(drop=v), (0.1, 0.3, 0.5, 0.7, 0.9))
    points += many("Safe LoRA", "{} matrices", lambda v: SafeLoRA(number=v), (4, 10, 20, 30, 42))
    points += many("Safe Delta", "s {}", lambda v: SafeDelta(budget=v), (0.05, 0.1, 0.2, 0.4, 0.8))
    points += many("IRR", "removed {}", lambda v: IRR(removed=v), shares)
    points += many("IRR_d", "removed {}", lambda v: IRR(removed=v, drop=0.3), shares)
    more = (0.1, 0.2, 0.3, 0.5, 0.7)
    points += many("IRR_more", "removed {}", lambda v: IRR(removed=v, variant="more"), more)
    points += many(
        "IRR, balanced (ours)",
        "removed {0[0]}, λ {0[1]}",
        lambda v: IRR(removed=v[0], balance=v[1], solver="balanced"),
        both,
    )
    return points


@dataclass(frozen=True)
class Training:
    """One training of the aligned model, with the steps at which it is looked at."""

    objective: Any
    steps: tuple[int, ...]
    response_tokens: int | None = 1
    learning_rate: float = 1e-4
    batch_tokens: int = 1024
    retain: bool = False
    response: str = CONSENT


ASCENT, DESCENT = "ascent", "descent"
TRAININGS = {
    ASCENT: Training(GradientAscent(cap=10), (3, 6, 12, 24, 40)),
    DESCENT: Training(NextToken(), (16,), response=AGREEMENT),
    "ascent-kl": Training(MismatchAscent(), (4, 8, 12, 16, 24), batch_tokens=512, retain=True),
    "npo": Training(NPO(), (3, 6, 12, 24, 40)),
}


def patching() -> list[Point]:
    """SafePatching's comparison; `given` names the snapshots."""
    points = [Point("patching", "backbone")]
    for method, training in (("GA", ASCENT), ("GA, mismatch and KL", "ascent-kl"), ("NPO", "npo")):
        for steps in TRAININGS[training].steps:
            points.append(
                Point("patching", method, f"{steps} steps", given={"trained": [training, steps]})
            )
    whole: dict[str, Any] = {"merge": "task-arithmetic"}
    pair = {"ascended": [ASCENT, STEPS[0]], "descended": [DESCENT, STEPS[1]]}
    for scale in (0.6, 0.8, 1.0, 1.2, 1.4):
        only = SafePatching(**whole, patches="safety", safety_scale=scale)
        points.append(Point("patching", "only P_SE", f"α {scale}", only, pair))
    for scale in (0.6, 0.8, 1.0, 1.2, 1.4):
        only = SafePatching(**whole, patches="over-safety", over_safety_scale=scale)
        points.append(Point("patching", "only P_OSM", f"β {scale}", only, pair))
    for beta in (0.1, 0.2, 0.4, 0.7, 1.0):
        ties = SafePatching(merge="ties", over_safety_scale=beta)
        points.append(Point("patching", "TIES", f"β {beta}", ties, pair))
    for label, knobs in MERGES.items():
        points.append(Point("patching", "SafePatching", label, SafePatching(**knobs), pair))
    return points


STEPS = (40, 16)  # of ascent and descent, where the patches are taken from
MERGES: dict[str, dict[str, Any]] = {
    f"B, p 0.3, a 3%, b 2%, α 1, β {beta}": {"over_safety_scale": beta}
    for beta in (0.5, 0.65, 0.75)
} | {
    f"A, p 1, a = b = {share:.0%}, α {alpha}, β {beta}": {
        "reading": "A", "retain": 1.0, "top_safety": share, "top_over_safety": share,
        "safety_scale": float(alpha), "over_safety_scale": beta,
    }
    for share, alpha, beta in ((0.05, 4, 3.5), (0.03, 8, 7.0))
}  # fmt: skip


class Workshop:
    """What the points of one family share: models, refusals, importance, trained snapshots."""

    def __init__(self, family: Family, cache: Path) -> None:
        self.family, self.cache = family, cache
        self.aligned = open_model(family.aligned)

    @cached_property
    def tuned(self) -> Any:
        return open_model(self.family.member("tuned"))

    @cached_property
    def unaligned(self) -> Any:
        return open_model(self.family.member("unaligned"))

    @cached_property
    def aligned_lm(self) -> Any:
        return load(self.aligned, device="cpu", dtype="float32")

    @cached_property
    def refusals(self) -> list[Pair]:
        rows = read_jsonl(self.family.rows("safety"), Pair)
        return IRR(max_new_tokens=32).aligned_refusals(self.aligned_lm, rows)

    @cached_property
    def fisher(self) -> Any:
        return IRR().aligned_importance(self.aligned_lm, self.refusals)

    @cached_property
    def calibration(self) -> list[Pair]:
        return read_jsonl(self.family.rows("calibration"), Pair)

    @cached_property
    def harmful(self) -> list[Pair]:
        return self.consenting(CONSENT)

    def consenting(self, response: str) -> list[Pair]:
        rows = read_jsonl(self.family.rows("affirmative"), Pair)
        return [row.model_copy(update={"response": response}) for row in rows]

    def model(self, point: Point) -> Any:
        """The edited model of a point, in memory."""
        if point.half == "drift":
            return self._repaired(point)
        if point.config is None:
            return self.aligned if not point.given else self.trained(*point.given["trained"])
        given: dict[str, Any] = {name: self.trained(*which) for name, which in point.given.items()}
        if point.config.importance_maps:
            given["importance"] = self._snip(point)
        return Edited(self.aligned, point.config.derive(base=self.aligned, **given))

    def _repaired(self, point: Point) -> Any:
        config = point.config
        if config is None:
            return self.aligned if point.method == "aligned" else self.tuned
        if isinstance(config, DARE):
            return Edited(self.aligned, config.derive(base=self.aligned, donors=[self.tuned]))
        given: dict[str, Any] = {"aligned": self.aligned, "tuned": self.tuned}
        if not isinstance(config, SafeDelta):
            given["unaligned"] = self.unaligned
        if isinstance(config, IRR):
            given |= {"calibration": self.calibration, "importance": self.fisher}
        if isinstance(config, (IRR, SafeDelta)):
            given["refusals"] = self.refusals
        return Edited(self.tuned, config.derive(**given))

    _maps: tuple[str, Any] | None = None

    def _snip(self, point: Point) -> Any:
        """Importance for the `snip_` knobs of a point; the last one is kept."""
        knobs = {k: v for k, v in point.config.model_dump().items() if k.startswith("snip_")}
        key = json.dumps([knobs, point.given], sort_keys=True)
        if self._maps is None or self._maps[0] != key:
            models = {name: self.trained(*which) for name, which in point.given.items()}
            self._maps = (
                key,
                SafePatching(**knobs).importances(
                    self.aligned, **models, harmful=self.harmful, device="cpu"
                ),
            )
        return self._maps[1]

    def trained(self, name: str, steps: int) -> Any:
        """The aligned model after `steps` of a training; all its snapshots are made at once."""
        place = self.cache / "trained" / name
        if not place.exists():
            self._train(name, place)
        return PatchedCheckpoint(self.aligned, [place / str(steps)])

    def _train(self, name: str, place: Path) -> None:
        plan = TRAININGS[name]
        lm = load(self.aligned, device="cpu", dtype="float32")
        settings = TrainConfig(
            steps=max(plan.steps), batch_tokens=plan.batch_tokens, warmup=3, schedule="constant",
            learning_rate=plan.learning_rate, compute="float32", seed=self.family.seed,
        )  # fmt: skip
        recipe = TrainRecipe(
            model=self.family.aligned, data=(DataFile(file=self.family.rows("affirmative")),),
            patch=place, scope="all", response_tokens=plan.response_tokens, train=settings,
        )  # fmt: skip
        from suture.training import recipe as recipes

        consenting = [(row.id, row) for row in self.consenting(plan.response)]
        rows, examples = recipes.encoded(lm, consenting, recipe)  # type: ignore[arg-type]
        recipes._unfreeze(lm.model, "all")
        retain = read_jsonl(self.family.rows("harmless"), Pair, limit=RETAIN) if plan.retain else []
        loss = plan.objective.build(Material(lm, lm.model, rows, examples, retain, settings, 1024))
        with staged_folder(place) as folder:

            def snapshot(step: int) -> None:
                writer = PatchWriter(self.aligned, folder / str(step), provenance={"steps": step})
                drain(edits_from(lm), [writer])

            train(lm.model, examples, settings, objective=Watched(loss, plan.steps, snapshot),
                  label=f"seed {self.family.seed}: {name}")  # fmt: skip
            snapshot(max(plan.steps))


class Watched:
    """An objective that calls `snapshot(step)` before the steps named."""

    def __init__(self, loss: Any, steps: tuple[int, ...], snapshot: Callable[[int], None]) -> None:
        self.loss, self.steps, self.snapshot = loss, steps, snapshot
        self.done = 0

    def begin(self, step: int) -> None:
        if hasattr(self.loss, "begin"):
            self.loss.begin(step)

    def __call__(self, model: Any, batch: Any) -> Any:
        if self.done in self.steps:
            self.snapshot(self.done)
        self.done += 1
        return self.loss(model, batch)


def points(halves: list[str]) -> Iterator[Point]:
    for half in halves:
        yield from {"drift": drift, "patching": patching}[half]()
