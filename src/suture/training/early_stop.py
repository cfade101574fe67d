"""Early stopping: rows that are not trained on say when to end, and which weights are the result.

After every epoch the mean −log p of the `dev` rows' responses is taken. `patience` epochs in a row
without a lower one end the training, and in any case the weights of the best epoch are the result.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.checkpoint.staging import fsync
from suture.lazy import torch
from suture.training.batches import Example, collate, epoch_plan
from suture.training.logits import answer_count
from suture.training.state import private_folder

if TYPE_CHECKING:
    from suture.training.loop import TrainConfig


class EarlyStop:
    """`best`: the lowest loss so far, after step `best_step`; `waited`: epochs since then.

    `folder`: where the best weights lie; without one they are held in memory.
    """

    def __init__(self, dev: Sequence[Example], config: TrainConfig, folder: Path | None) -> None:
        self.dev, self.config, self.folder = dev, config, folder
        self.best, self.best_step, self.waited = math.inf, 0, 0
        self._held: dict[str, torch.Tensor] = {}

    @property
    def over(self) -> bool:
        """Nothing has become better for `patience` epochs."""
        return self.waited >= (self.config.patience or math.inf)

    def facts(self) -> dict[str, Any]:
        """What a resumed run must know."""
        best = self.best if self.best_step else None
        return {"best": best, "best_step": self.best_step, "waited": self.waited}

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Go on from what `facts` gave."""
        self.best_step, self.waited = int(facts["best_step"]), int(facts["waited"])
        self.best = float(facts["best"]) if self.best_step else math.inf

    def after_epoch(self, model: torch.nn.Module, loss: float, step: int) -> None:
        """Take note of the dev rows' `loss` after `step` steps, and of the weights if it is best.

        A run that is killed comes past the same steps again, so only the newest best is kept.
        """
        if not loss < self.best:  # NaN is no better either
            self.waited += 1
            return
        self.best, self.best_step, self.waited = loss, step, 0
        weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        if self.folder is None:
            self._held = {name: weight.cpu().clone() for name, weight in weights.items()}
            return
        from safetensors.torch import save_file

        private_folder(self.folder)
        stage = self.folder / "best.tmp"
        save_file({name: weight.cpu().contiguous() for name, weight in weights.items()}, stage)
        fsync(stage)
        former = list(self.folder.glob("best-*.safetensors"))
        os.replace(stage, self._file())
        fsync(self.folder)
        for old in former:
            if old != self._file():
                old.unlink()

    def restore(self, model: torch.nn.Module) -> None:
        """Put the best epoch's weights into `model`; nothing if no epoch was a number."""
        if not self.best_step:
            return
        if self.folder is not None:
            from safetensors.torch import load_file

            self._held = load_file(self._file())
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in self._held.items():
                parameters[name].copy_(weight)

    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / f"best-{self.best_step:08d}.safetensors"

    def loss(self, model: Any) -> float:
        """Mean −log p over all labelled tokens of the dev rows, in the training's precision."""
        from suture.training.loop import next_token_loss
        from suture.training.objectives.common import computing

        lengths = [len(example.ids) for example in self.dev]
        plan = epoch_plan(lengths, batch_tokens=self.config.batch_tokens, seed=0, epoch=0)
        total = tokens = 0.0
        with torch.no_grad(), computing(model, self.config) as device:
            for rows in plan:
                batch = collate([self.dev[row] for row in rows]).to(device)
                labelled = answer_count(batch)
                total += float(next_token_loss(model, batch)) * labelled
                tokens += labelled
        return total / tokens
