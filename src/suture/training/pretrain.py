"""Pre-training as a file: a model from nothing, on packed text (CEA, arXiv 2403.02436, section 8).

`suture train recipes/pretrain_decoder.yaml` packs the text once, draws the weights, trains and
keeps checkpoints on the way, since architectures are compared at equal dev loss as well as at equal
steps. Beside the output:

    OUT.steps/run.json         whose checkpoints these are
    OUT.steps/record.jsonl     {"step", "loss", ...} of every step, {"step", "dev"} where measured
    OUT.steps/step-000200/     a checkpoint

Every checkpoint's `pretraining.json` says which text it was trained on and what was held out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from suture.checkpoint import read_json, staged_folder, write_json
from suture.config import FrozenConfig, override, read_yaml
from suture.errors import SutureError, nearest
from suture.lazy import np, torch, transformers
from suture.patch import open_model
from suture.training.begin import begin_with
from suture.training.documents import SECTION, TextSource
from suture.training.loop import TrainConfig, run_identity, train
from suture.training.meter import peak_memory
from suture.training.newborn import check_shape, new_model, parameters
from suture.training.objectives.masked import Causal, Ids, Masked, PretrainObjective, by_name
from suture.training.packed import Blocks, Packed, pack, packing_identity
from suture.training.pretrain_loss import Distillation, Loss
from suture.training.record import Record
from suture.training.vocabulary import TrainedTokenizer, mask_of, tokenizer_files

TRAINED_ON = "pretraining.json"
_RISEN = 1.02  # times the lowest dev loss; below is the noise of its few blocks


class PretrainSpec(FrozenConfig):
    """The section `pretrain`: the text, how it is cut, and what is predicted."""

    texts: tuple[TextSource, ...] = Field(min_length=1)
    tokenizer: Path | TrainedTokenizer = Field(
        TrainedTokenizer(), description="a folder that has one, or how to train one on the texts"
    )
    objective: Annotated[PretrainObjective, BeforeValidator(by_name)] = Field(
        Causal(), description="causal, or masked"
    )
    block: int = Field(128, ge=8, description="tokens that are read at once")
    held_out: float = Field(0.02, gt=0, lt=0.5, description="share of the text for the dev loss")
    dev_blocks: int = Field(256, ge=1, description="blocks of it, at most, for each dev loss")
    packed: Path | None = Field(
        None, description="folder of the packed text; default: packed-HASH beside the output"
    )


class PretrainRecipe(FrozenConfig):
    """Everything that decides the result of a pre-training."""

    pretrain: PretrainSpec
    model: dict[str, Any] = Field(
        min_length=1, description="model_type and what else its configuration says"
    )
    arms: dict[str, dict[str, Any]] = Field(
        {}, description="by name: what an architecture changes of `model`"
    )
    arm: str | None = Field(None, description="the one that is trained")
    start: Path | None = Field(
        None,
        description="checkpoint to begin with instead of drawn weights, of the same tokenizer; a "
        "dense one is upcycled where the model has experts",
    )
    distil: Distillation | None = Field(
        None, description="a teacher to match: its folder, what of it and how strongly"
    )
    output: Path
    checkpoints: int | tuple[int, ...] = Field(
        0,
        description="keep one every so many steps, from the untrained on, or after these; "
        "0 alone: none",
    )
    train: TrainConfig
    device: str = "auto"

    @model_validator(mode="after")
    def _fits(self) -> PretrainRecipe:
        if self.arm is not None and self.arm not in self.arms:
            close = nearest(self.arm, self.arms)
            known = ", ".join(self.arms) or "none"
            hint = f"; did you mean '{close}'?" if close else ""
            raise ValueError(f"there is no arm '{self.arm}', the arms are: {known}{hint}")
        if self.arms and self.arm is None:
            raise ValueError(f"arm must be one of: {', '.join(self.arms)}")
        if self.train.patience is not None:
            raise ValueError("a pre-training ends after its steps: leave out train.patience")
        wanted = [self.checkpoints] if isinstance(self.checkpoints, int) else self.checkpoints
        if any(step < 0 for step in wanted):
            raise ValueError("checkpoints are kept after 0 or more steps")
        try:
            check_shape(self.shape, self.pretrain.objective.name)
        except SutureError as error:
            raise (
                error if self.arm is None else _at(error, f"{error.where}, arm {self.arm}")
            ) from None
        return self

    @property
    def shape(self) -> dict[str, Any]:
        """The model's configuration with what the arm changes."""
        return {**self.model, **(self.arms[self.arm] if self.arm is not None else {})}

    @property
    def steps_folder(self) -> Path:
        return self.output.parent / f"{self.output.name}.steps"


@dataclass(frozen=True)
class PretrainReport:
    """What `suture train` prints of a pre-training.

    `dev`: (step, dev loss in nats) of every measurement; `tokens` and `seconds` are this process's,
    as in `TrainReport`; `checkpoints`: kept on the way; `warnings`: what speaks against the result.
    """

    output: str
    folder: str
    arm: str | None
    parameters: int
    steps: int
    tokens: int
    seconds: float
    dev: list[tuple[int, float]]
    peak_memory: int | None = None
    checkpoints: int = 0
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_pretraining(path: Path) -> bool:
    """Whether a recipe file makes a model from nothing."""
    return "pretrain" in read_yaml(path)


def read_pretraining(path: Path, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """The recipe in a YAML file.

    `pretrain.texts` may be a YAML file with a list `texts`; the files in it lie below
    `pretrain.root`, or beside the file that lists them. Other paths are relative to the recipe,
    those of `--set` to where you are. Errors: E701 to E705.
    """
    values = read_yaml(path)
    folder = Path(path).parent
    if isinstance(values.get("output"), str):
        values["output"] = folder / values["output"]
    if isinstance(values.get("start"), str):
        values["start"] = folder / values["start"]
    distil = values.get("distil")
    if isinstance(distil, dict) and isinstance(distil.get("teacher"), str):
        distil["teacher"] = folder / distil["teacher"]
    section = values.get("pretrain")
    if isinstance(section, dict):
        for key in ("texts", "tokenizer", "packed", "root"):
            if isinstance(section.get(key), str):
                section[key] = folder / section[key]
    values = override(values, overrides)
    section = values.get("pretrain")
    if isinstance(section, dict):
        root = section.pop("root", None)
        texts = section.get("texts")
        if isinstance(texts, str | Path):
            section["texts"] = read_texts(Path(texts), root and Path(root))
        elif isinstance(texts, list):
            section["texts"] = rooted(texts, Path(root) if root else folder)
    try:
        return PretrainRecipe.load(values, where=path)
    except SutureError as error:
        if str(path) in str(error.where):
            raise
        raise _at(error, f"{path}: {error.where}") from None


def _at(error: SutureError, where: str) -> SutureError:
    """The same error with a better place."""
    return SutureError(error.code, error.what, where=where, why=error.why, fix=error.fix)


def read_texts(path: Path, root: Path | None = None) -> list[Any]:
    """The list `texts` of a YAML file, its files below `root`, by default beside it."""
    values = read_yaml(path)
    if not isinstance(values.get("texts"), list) or len(values) != 1:
        raise SutureError(
            "E704",
            "the file must hold a list `texts` and nothing else",
            where=str(path),
            fix="write texts: [{name: DOMAIN, files: [FILE]}]",
        )
    return rooted(values["texts"], root or path.parent)


def rooted(texts: Sequence[Any], root: Path) -> list[Any]:
    """The sources with their files below `root`."""

    def below(source: Any) -> Any:
        if not isinstance(source, dict) or not isinstance(source.get("files"), str | list):
            return source
        files = source["files"] if isinstance(source["files"], list) else [source["files"]]
        return {**source, "files": [root / str(file) for file in files]}

    return [below(source) for source in texts]


def packed_folder(recipe: PretrainRecipe) -> Path:
    """Where the packed text is, or is to be: the same for every run on the same text."""
    spec = recipe.pretrain
    if spec.packed is not None:
        return spec.packed
    identity = packing_identity(spec.texts, spec.tokenizer, spec.held_out)
    return recipe.output.parent / f"packed-{identity[:12]}"


def run_pretraining(
    recipe: PretrainRecipe, *, on_record: Callable[[Record], None] | None = None
) -> PretrainReport:
    """Pack, draw, train, write; the same call resumes a killed run and ends in the same bytes.

    `on_record`: called whenever a dev loss was measured.

    Errors, all before the first step: E904 checkpoints or a state of another run lie beside the
    output; E905 the output exists; E940 to E945 of text and tokenizer, E943 too little of it; E946
    a model that cannot be, E947 one whose context is shorter than a block, E949 one whose
    vocabulary is smaller than the tokenizer's; E948 a checkpoint that is never reached; E507 no
    such device; of a teacher those of `Distillation.open_teacher`, of a beginning those of
    `begin_with`.
    """
    if recipe.output.exists():
        raise SutureError(
            "E905",
            "the output folder exists",
            where=str(recipe.output),
            fix="choose another output, or remove it",
        )
    spec = recipe.pretrain
    text = pack(spec.texts, spec.tokenizer, spec.held_out, packed_folder(recipe))
    run = _Run(recipe, text)
    model = new_model(
        recipe.shape, spec.objective.name, text.facts, block=spec.block, seed=recipe.train.seed,
        device=recipe.device,
    )  # fmt: skip
    if recipe.start is not None:
        begin_with(model, recipe.start, text.tokenizer, seed=recipe.train.seed)
    teacher = recipe.distil and recipe.distil.open_teacher(model, text.tokenizer)
    objective = Loss(spec.objective, recipe.distil, teacher)
    run.claim()
    record = Record(recipe.steps_folder / "record.jsonl")

    def measured(step: int) -> None:
        if recipe.checkpoints and step in run.kept:
            run.write(model, recipe.steps_folder / f"step-{step:06d}")
        record.add({"step": step, "dev": run.dev_loss(model, objective)})
        if on_record:
            on_record(record)

    if not record.has(0):
        measured(0)

    def on_step(done: int, loss: float) -> None:
        record.go_on_at(done)
        record.add({"step": done, "loss": loss, **objective.take()})
        if done in run.kept:
            measured(done)

    state = recipe.output.parent / f".{recipe.output.name}.training"
    result = train(
        model,
        run.blocks,
        recipe.train,
        objective=objective,
        state=state,
        identity=run.identity,
        label=recipe.output.name,
        on_step=on_step,
    )
    run.write(model, recipe.output)
    shutil.rmtree(state, ignore_errors=True)
    dev = record.curve("dev")
    best = min(dev, key=lambda point: point[1])
    warnings = early(run.settings)
    if dev[-1][1] > _RISEN * best[1]:
        warnings.append(
            f"the dev loss was lowest after step {best[0]}, {best[1]:.4f}, and is {dev[-1][1]:.4f} "
            "at the end; lower train.learning_rate, or take fewer steps"
        )
    return PretrainReport(
        output=str(recipe.output),
        folder=str(recipe.steps_folder),
        arm=recipe.arm,
        parameters=parameters(model),
        steps=result.steps,
        tokens=result.tokens,
        seconds=round(result.seconds, 3),
        dev=dev,
        peak_memory=peak_memory(next(model.parameters()).device),
        checkpoints=len(run.kept) if recipe.checkpoints else 0,
        warnings=tuple(warnings),
    )


def kept_steps(wanted: int | Sequence[int], steps: int) -> frozenset[int]:
    """Steps after which the dev loss is measured and, where any are wanted, a checkpoint kept: the
    last among them.

    Error E948: one is wanted after more steps than there are.
    """
    if isinstance(wanted, int):
        wanted = tuple(range(0, steps + 1, wanted)) if wanted else ()
    if late := [step for step in wanted if step > steps]:
        raise SutureError(
            "E948",
            f"a checkpoint is wanted after step {late[0]}, and the training has {steps}",
            where="checkpoints",
            fix=f"leave out steps above {steps}, or train longer",
        )
    return frozenset((*wanted, steps))


def early(config: TrainConfig) -> list[str]:
    """A warning where the learning rate never reaches its peak; steps must be resolved."""
    warmup, steps = config.warmup, config.steps
    if isinstance(warmup, int) and steps is not None and warmup >= steps:
        return [
            f"the learning rate warms up for {warmup} steps and the training has {steps}: it never "
            "reaches its peak; lower train.warmup"
        ]
    return []


def trained_on(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its text: of packed.json what tells which part was held out."""
    sources = [
        {key: source[key] for key in ("name", "reading", "sha256")} for source in facts["sources"]
    ]
    return {"text": facts["identity"], "held_out": facts["held_out"], "sources": sources}


class _Run:
    """What the recipe and the packed text come to. `settings`: the training's, steps and warm-up
    as numbers; `kept`: as `kept_steps`."""

    def __init__(self, recipe: PretrainRecipe, text: Packed) -> None:
        from suture.inference.loading import load_tokenizer

        spec = recipe.pretrain
        self.recipe, self.text = recipe, text
        ids: Ids | None = None
        if isinstance(spec.objective, Masked):
            tokenizer = load_tokenizer(text.tokenizer)
            special = {*tokenizer.all_special_ids, int(text.facts["end"])}
            mask = mask_of(tokenizer, text.tokenizer)
            ids = Ids(int(text.facts["vocabulary"]), mask, tuple(sorted(special)))
        self.blocks = Blocks(
            text.tokens("train"), spec.block, identity=text.identity,
            prepare=spec.objective.prepare(ids, recipe.train.seed),
        )  # fmt: skip
        self.blocks.check(recipe.train, "training text")
        self.settings = self.blocks.resolved(recipe.train)
        assert self.settings.steps is not None
        self.kept = kept_steps(recipe.checkpoints, self.settings.steps)
        self.dev = Blocks(
            text.tokens("dev"), spec.block, identity=text.identity,
            prepare=spec.objective.prepare(ids, 0),  # the same masks for every seed
        )  # fmt: skip
        if not len(self.dev):
            raise SutureError(
                "E943",
                f"the text held out has {len(self.dev.tokens)} tokens, less than a block of "
                f"{spec.block}",
                where=f"pretrain.held_out={spec.held_out:g}, packed in {text.folder}",
                why=f"whole sections of about {SECTION} characters are held out, chosen by their "
                "words, and of little text it may be none",
                fix="raise pretrain.held_out, or give more text; this packed text can be removed",
            )

    @property
    def identity(self) -> str:
        """What decides the run besides the settings and the text."""
        spec = self.recipe.pretrain
        facts: list[Any] = [self.recipe.shape, spec.objective.model_dump(), spec.block]
        if spec.dev_blocks != PretrainSpec.model_fields["dev_blocks"].default:
            facts.append({"dev_blocks": spec.dev_blocks})
        if self.recipe.start is not None:
            facts += ["start", open_model(self.recipe.start).fingerprint()]
        if (distil := self.recipe.distil) is not None:
            facts += [distil.model_dump(mode="json"), open_model(distil.teacher).fingerprint()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def claim(self) -> None:
        """Note whose checkpoints lie beside the output. Error E904: those of another run."""
        config = self.recipe.train
        own = run_identity(config, (), self.identity + self.blocks.identity)
        mark = self.recipe.steps_folder / "run.json"
        if not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            write_json(mark, {"identity": own, "arm": self.recipe.arm, "seed": config.seed})
        elif read_json(mark).get("identity") != own:
            raise SutureError(
                "E904",
                "this folder holds checkpoints of another run: other settings, text or model",
                where=str(mark.parent),
                why="the two would be mixed",
                fix="choose another output, or delete that folder",
            )

    def dev_loss(self, model: Any, objective: Loss) -> float:
        """Mean −log p over the predicted tokens of the blocks held out, in float32."""
        spec, config = self.recipe.pretrain, self.recipe.train
        count = min(len(self.dev), spec.dev_blocks)
        numbers = np.linspace(0, len(self.dev) - 1, count).astype(np.int64)
        piece = max(1, config.batch_tokens // spec.block)
        device = next(model.parameters()).device
        total = tokens = 0.0
        with torch.no_grad():
            for at in range(0, count, piece):
                batch = self.dev.batch(numbers[at : at + piece], 0).to(device)
                weight = objective.weight(batch)
                if weight:
                    total += float(objective.output(model, batch).loss) * weight
                    tokens += weight
        return total / tokens

    def write(self, model: Any, out: Path) -> None:
        """A checkpoint with its tokenizer, unless a run that was killed has written it."""
        if out.exists():
            return
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with staged_folder(out) as stage:
            model.save_pretrained(stage)
            for name in tokenizer_files(self.text.tokenizer):
                (stage / name).write_bytes((self.text.tokenizer / name).read_bytes())
            write_json(stage / TRAINED_ON, trained_on(self.text.facts))
