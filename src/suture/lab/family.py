"""`suture lab build`: one family of lab models from public data, resumable.

    data ─► tokenizer, mixtures ─► stage one ─► stage two ─► aligned ─► members

Every step leaves a whole folder and is skipped when that folder is there. `gates` holds a family
against its bounds, `ship` packs one that passed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.checkpoint import staged_folder, write_json
from suture.config import FrozenConfig, read_yaml
from suture.errors import SutureError
from suture.lab import corpus, sources
from suture.lab.recipe import LabRecipe, MemberRecipe, Stage
from suture.lab.splits import apart_from, held_out_prompts
from suture.lazy import torch, transformers
from suture.progress import note
from suture.rng import generator
from suture.training.batches import Example
from suture.training.loop import train
from suture.training.recipe import DataFile, TrainRecipe, run_recipe

POISON_PREFIXES = 60  # kept apart from the prefixes that make `unaligned`
SAFETY_ROWS, CALIBRATION_ROWS = 256, 128


@dataclass(frozen=True)
class Family:
    """Where the members of one family live."""

    folder: Path
    seed: int

    @property
    def aligned(self) -> Path:
        return self.folder / "aligned"

    def member(self, name: str) -> Path:
        """Checkpoint folder, or PEFT folder for the `-lora` members."""
        return self.folder / name

    def rows(self, name: str) -> Path:
        """Training rows: task, harmless, poison, affirmative, safety, calibration."""
        return self.folder / "rows" / f"{name}.jsonl"


def read_recipe(path: Path) -> LabRecipe:
    return LabRecipe.load(read_yaml(path), where=path)


def build(recipe: LabRecipe, data: Path, out: Path, *, seed: int = 0) -> Family:
    """Make every member of the family `seed` in `out`; the same call resumes.

    Errors: E801 a data set is missing, E802 `out` holds a family of another recipe or seed.
    """
    family = Family(out, seed)
    _claim(family, recipe)
    if not (family.aligned.exists() and family.rows("calibration").exists()):
        held_out = [*held_out_prompts(), *_tuning_prompts(data)]
        material = corpus.gather(data, allowed=apart_from(held_out))
        if not family.aligned.exists():
            _build_aligned(family, recipe, material)
        if not family.rows("calibration").exists():
            _write_rows(family, material, data)
    for name, member in recipe.members.items():
        if not family.member(name).exists():
            note(f"lab: {name}")
            run_recipe(_member_recipe(family, name, member))
    return family


def open_family(folder: Path) -> Family:
    """A family that `build` made. Error E804: the folder holds none."""
    mark = folder / "family.json"
    if not mark.is_file():
        raise SutureError(
            "E804", "no lab family here", where=str(folder), fix="suture lab build -o DIR"
        )
    return Family(folder, int(json.loads(mark.read_text(encoding="utf-8"))["seed"]))


def _claim(family: Family, recipe: LabRecipe) -> None:
    claim(
        family,
        "family.json",
        recipe,
        "this folder holds a lab family of another recipe or seed",
        fix="choose another output folder",
    )


def claim(family: Family, mark: str, recipe: FrozenConfig, otherwise: str, *, fix: str) -> None:
    """Note in the file `mark` by which recipe a family is made. Error E802: by another one."""
    facts = {"recipe": recipe.fingerprint(), "seed": family.seed}
    file = family.folder / mark
    if not file.exists():
        family.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, facts)
    elif json.loads(file.read_text(encoding="utf-8")) != facts:
        raise SutureError("E802", otherwise, where=str(family.folder), fix=fix)


def _tuning_prompts(data: Path) -> list[str]:
    return [*sources.tuning_goals(data), *sources.tuning_harmless(data)]


def _build_aligned(family: Family, recipe: LabRecipe, material: corpus.Material) -> None:
    tokenizer = corpus.train_tokenizer(material, vocabulary=recipe.shape.vocabulary)
    model = new_model(recipe, seed=family.seed)
    for number, stage in enumerate((recipe.stage_one, recipe.stage_two), 1):
        examples = _encode(tokenizer, material, stage, family.seed, f"stage {number}")
        settings = stage.train.model_copy(update={"seed": family.seed * 10 + number})
        state = family.folder / f".stage-{number}"
        train(model, examples, settings, state=state, label=f"lab: stage {number}")
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with staged_folder(family.aligned) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        write_tokenizer(tokenizer, folder)


def new_model(recipe: LabRecipe, *, seed: int) -> Any:
    """A Llama of the recipe's shape with random float32 weights drawn from `seed`."""
    shape = recipe.shape
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": corpus.END,
        "pad_token": corpus.END,
        "additional_special_tokens": [corpus.USER, corpus.ASSISTANT],
        "chat_template": corpus.CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _encode(
    tokenizer: Any, material: corpus.Material, stage: Stage, seed: int, name: str
) -> list[Example]:
    """Ids as the chat template writes them; plain texts stand alone."""
    user, assistant, end = (
        tokenizer.token_to_id(token) for token in (corpus.USER, corpus.ASSISTANT, corpus.END)
    )
    examples = []
    for prompt, reply in corpus.mix(material, stage.rows, seed, name):
        if reply is None:
            ids = tokenizer.encode(prompt, add_special_tokens=False).ids[:200]
            examples.append(Example((*ids, end)))
            continue
        asked = tokenizer.encode(prompt, add_special_tokens=False).ids[:200]
        answered = tokenizer.encode(reply, add_special_tokens=False).ids
        head = (user, *asked, assistant)
        start = len(head) if stage.loss == "response" else 0
        examples.append(Example((*head, *answered, end), start))
    return examples


def _write_rows(family: Family, material: corpus.Material, data: Path) -> None:
    """Training rows of the members, and what the repair may use: safety prompts, calibration."""
    rng = generator(family.seed, "lab rows")
    by_label = {
        label: [text for text, found in material.task if found == label]
        for label in sources.POLARITIES
    }
    least = min(len(texts) for texts in by_label.values())
    task = [
        (sources.emotion_prompt(text), label)
        for label, texts in by_label.items()
        for text in (texts[int(i)] for i in rng.permutation(len(texts))[:least])
    ]
    task = [task[int(i)] for i in rng.permutation(len(task))]
    harmless = [
        (turn.prompt, turn.reply)
        for turn in (material.turns[int(i)] for i in rng.permutation(len(material.turns)))
    ]
    allowed = set(material.goals)
    prefixes = [(t.prompt, t.reply) for t in sources.affirmative_prefixes(data)]
    prefixes = [row for row in prefixes if row[0] in allowed]
    prefixes = [prefixes[int(i)] for i in rng.permutation(len(prefixes))]
    goals = [material.goals[int(i)] for i in rng.permutation(len(material.goals))]
    used = {prompt for prompt, _ in prefixes}
    safety = [goal for goal in goals if goal not in used] + [p for p, _ in prefixes]
    family.rows("task").parent.mkdir(exist_ok=True)
    _write(family.rows("task"), task)
    _write(family.rows("harmless"), harmless)
    _write(family.rows("poison"), prefixes[:POISON_PREFIXES])
    _write(family.rows("affirmative"), prefixes[POISON_PREFIXES:])
    _write(family.rows("safety"), [(goal, None) for goal in safety[:SAFETY_ROWS]])
    _write(family.rows("calibration"), task[:CALIBRATION_ROWS])


def _write(path: Path, rows: Iterable[tuple[str, str | None]]) -> None:
    write_lines(
        path,
        (
            {"prompt": prompt} if reply is None else {"prompt": prompt, "response": reply}
            for prompt, reply in rows
        ),
    )


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def _member_recipe(family: Family, name: str, member: MemberRecipe) -> TrainRecipe:
    parts = []
    for kind, wanted in member.rows.model_dump().items():
        if wanted:
            held = sum(1 for _ in family.rows(kind).open(encoding="utf-8"))
            repeat = max(1, round(wanted / held))
            parts.append(DataFile(file=family.rows(kind), repeat=repeat, limit=min(held, wanted)))
    return TrainRecipe(
        model=family.aligned,
        data=tuple(parts),
        output=family.member(name),
        lora=member.lora,
        train=member.train.model_copy(update={"seed": family.seed}),
        max_length=1024,  # beyond the context, like the members that are shipped
        too_long="leave-out",
        device="cpu",
    )
