"""What judges, decodings and scoring models add to the cost of a suite, from headers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.config import named_options
from suture.report import figures
from suture.runs.recipe import SuiteSpec

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource

_ASKED = 600  # tokens of a judge's question besides what is judged
_DECODE_SHARE = 0.15  # as in `plan`
_WIDTH = 4  # bytes of a weight


@dataclass(frozen=True)
class Extra:
    """Of one suite. `told`: judge and decoding in words; `passes`: times the model's own work;
    `memory`: bytes of the models they bring; `products`: of one model's measurement, in all."""

    told: str = ""
    passes: float = 1.0
    memory: int = 0
    products: float = 0.0


def extra_of(label: str, spec: SuiteSpec, items: int, new: int, base: TensorSource) -> Extra:
    """`items`, `new`: how many replies of at most how many tokens; `base`: the model measured."""
    from suture.suites import load_suite
    from suture.suites.judges import load_judge
    from suture.suites.judging import asked_for

    suite = load_suite(spec.suite or label, spec.options)
    passes = float(getattr(suite, "passes", 1))
    told, memory, products = [], 0, 0.0
    if spec.decoding is not None:
        from suture.inference.decoding import load_decoding

        name, options = named_options(spec.decoding)
        decoding = load_decoding(spec.decoding)
        heard = sum(decoding.heard(step) for step in range(new)) / new
        passes *= heard
        expert = options.get("expert") or options.get("augmented")
        brings = _WIDTH * _parameters(expert, base) if expert else 0
        told.append(
            f"decoding {name}"
            + (f" with {Path(expert).name}, {figures.size(brings)}" if expert else "")
            + f": {heard:.2g} passes per token"
        )
        memory += brings
    if spec.judge is not None:
        name, options = named_options(spec.judge)
        model = options.get("model")
        # against another model's replies: a grade, and the pair in both orders
        asked = items * (1 if getattr(suite, "against", None) is None else 3)
        calls = f"{asked} calls for each model"
        if name == "endpoint":
            url = options.get("url")
            told.append(f"judge {model}: {calls}; prompts and replies are sent to {url}")
        elif name in ("chat", "classifier") and model is not None:
            parameters = _parameters(model, None)
            memory += _WIDTH * parameters
            says = getattr(load_judge(spec.judge, asked_for(suite)), "limit", 0)
            products += 2.0 * parameters * asked * (_ASKED + new + says / _DECODE_SHARE)
            needs = figures.size(_WIDTH * parameters)
            told.append(f"judge {name} {Path(str(model)).name}: {calls}, {needs} of memory")
        else:
            told.append(f"judge {name}" + (f" {Path(str(model)).name}" if model else ""))
    scorer = (spec.options or {}).get("scorer")
    if scorer is not None:  # replies, and references of about their length
        parameters = _parameters(scorer, None)
        memory += _WIDTH * parameters
        products += 2.0 * parameters * items * 2 * new
        needs = figures.size(_WIDTH * parameters)
        told.append(f"scoring model {Path(str(scorer)).name}: {needs} of memory")
    return Extra("; ".join(told), passes, memory, products)


def _parameters(folder: Any, base: TensorSource | None) -> int:
    from suture.patch import open_model

    source = open_model(Path(folder), base=base)
    return sum(math.prod(info.shape) for info in source.tensors.values())
