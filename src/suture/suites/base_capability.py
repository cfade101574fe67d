"""Base capability: the loss on running text, domain by domain, in and out of the distribution.

    NAME_loss   mean −log p per predicted token of the domain NAME, in nats: of each passage, and
                the mean over its passages
    out_loss    mean over the domains of --data, each counting the same
    in_loss     the same over the domains of `trained`, on sections that were held out of training

`--data` is a YAML file with a list `texts` (`suture.training.documents.TextSource`). Options:

    root      folder that the files of both lists lie below; default: beside the list
    trained   the list a model was pre-trained on, for `in_loss`
    held_out  the share of it that was held out, or less; a model whose `pretraining.json` says
              otherwise is refused
    passages  of each domain, spread evenly over it
    length    characters of a passage, about

An encoder predicts masked tokens, so its numbers stand beside those of encoders only; and losses
per token compare models of one tokenizer (CEA, arXiv 2403.02436, section 9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from suture.checkpoint import read_json
from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.ledger import Better, Row
from suture.progress import note
from suture.suites.common import Answers, thin
from suture.suites.unspoken import Unspoken
from suture.training.documents import TextSource, documents, held_out, sections
from suture.training.packed import source_facts
from suture.training.pretrain import TRAINED_ON, read_texts

if TYPE_CHECKING:
    from suture.inference.reading import Reader
    from suture.suites.scorers import Scorer


class Reading(FrozenConfig):
    """How texts are cut to passages."""

    root: Path | None = None
    held_out: float = Field(0.02, gt=0, lt=1, description="as in the pre-training's recipe")
    passages: int = Field(32, ge=1, description="of each domain")
    length: int = Field(2000, ge=100, description="characters of a passage")


class Asked(Reading):
    """Which text is read."""

    trained: Path | None = None


class Passage(FrozenConfig):
    """Running text of one domain. `inside`: a model was trained on the rest of it."""

    id: str
    prompt: str
    domain: str
    inside: bool = False
    cluster: str | None = None


class BaseCapability(Unspoken[Asked]):
    """Items: `Passage`. Nothing is generated."""

    name = "base-capability"
    options = Asked
    what = "base capability"
    why = "it is the loss on text that the model reads"
    usage = "--data DOMAINS.yaml"

    def __init__(self, asked: Asked | None = None) -> None:
        super().__init__(asked)
        self.metrics: Mapping[str, Better] = {"out_loss": "lower", "in_loss": "lower"}
        self.trained: tuple[Path, ...] = ()

    def read(self, files: Sequence[Path], limit: int | None) -> list[Passage]:
        lists = [(file, False) for file in with_texts(self.name, files)]
        self.trained = () if self.asked.trained is None else (self.asked.trained,)
        lists += [(file, True) for file in self.trained]
        items = thin(passages(lists, self.asked), limit)
        domains = dict.fromkeys(f"{item.domain}_loss" for item in items)
        self.metrics = {name: "lower" for name in ("out_loss", "in_loss", *domains)}
        return items

    def measure(
        self,
        lm: Any,
        items: list[Passage],
        *,
        max_new_tokens: int,
        scorer: Scorer | None = None,
        before: Any = None,
    ) -> Answers:
        check_held_out(lm.source.path, self.trained, self.asked)
        return Answers(losses(lm, items), [])


def with_texts(suite: str, files: Sequence[Path]) -> Sequence[Path]:
    """The files, refused (E950) if there is none."""
    if not files:
        raise SutureError(
            "E950",
            f"the suite {suite} has no text of its own",
            fix="give --data FILE.yaml, a list `texts` like recipes/data/domains.yaml",
        )
    return files


def passages(lists: Sequence[tuple[Path, bool]], asked: Reading) -> list[Passage]:
    """The passages of every domain in the lists (file, whether models were trained on it): of what
    was trained on, the sections that were held out.

    Errors: E951 two domains of one name; E952 a domain has fewer passages than are asked for.
    """
    found: dict[str, list[str]] = {}
    inside: dict[str, bool] = {}
    for file, trained in lists:
        for values in read_texts(file, asked.root):
            source = TextSource.load(values, where=file)
            if source.name in found:
                raise SutureError(
                    "E951",
                    f"two domains are called '{source.name}'",
                    where=str(file),
                    fix="give each its own name",
                )
            texts = [d.text for d in documents(source)]
            if trained:
                share = asked.held_out
                texts = [s for text in texts for s in sections(text) if held_out(s, share)]
            found[source.name] = list(joined(texts, asked.length))
            inside[source.name] = trained
    short = min(found, key=lambda name: len(found[name]))
    if (least := len(found[short])) < asked.passages:
        part = "the held-out part of " if inside[short] else ""
        raise SutureError(
            "E952",
            f"{part}the domain '{short}' has {least} passages of about {asked.length} characters, "
            f"{asked.passages} are asked for",
            why="every domain counts the same, so each needs as many",
            fix=f"use --set passages={least}, a smaller length, or more text"
            if least
            else "use a smaller length, or more text",
        )
    return [
        Passage(id=f"{name}-{i:05d}", prompt=text, domain=name, inside=inside[name])
        for name, texts in found.items()
        for i, text in enumerate(thin(texts, asked.passages))
    ]


def check_held_out(model: Path, trained: Sequence[Path], asked: Reading) -> None:
    """That what is read of the lists was held out when the model was pre-trained; a model that
    does not say so itself is taken at its word, with a note.

    Error E939: it was trained on other text, on the same cut otherwise, or held less of it out.
    """
    if not trained:
        return
    if not (model / TRAINED_ON).is_file():
        note(f"{model} does not say what was held out: {asked.held_out:g} of the text, you say")
        return
    told = read_json(model / TRAINED_ON)
    if asked.held_out > told["held_out"]:
        raise SutureError(
            "E939",
            f"{asked.held_out:g} of the text is read as held out, and the model was trained on all "
            f"but {told['held_out']:g} of it",
            where=str(model / TRAINED_ON),
            fix=f"use --set held_out={told['held_out']:g}",
        )
    known = [{key: source[key] for key in ("reading", "sha256")} for source in told["sources"]]
    for file in trained:
        for values in read_texts(file, asked.root):
            source = TextSource.load(values, where=file)
            if source_facts(source) not in known:
                raise SutureError(
                    "E939",
                    f"the model was not trained on the domain '{source.name}' as it stands here",
                    where=f"{file}, against {model / TRAINED_ON}",
                    why="other files, or files cut otherwise, hold other sections out",
                    fix="give the list of its recipe, or this text as text that was not trained on",
                )


def losses(reader: Reader, items: Sequence[Passage]) -> list[Row]:
    """A row per passage, with its loss under its domain's name and under `in_loss` or `out_loss`.

    A passage in which an encoder was asked for nothing is left out.
    """
    from suture.inference.text_loss import text_losses

    found = text_losses(
        reader, [item.prompt for item in items], mask=masking(reader), label="base capability"
    )
    return [
        Row(
            item.id,
            {f"{item.domain}_loss": one.mean, "in_loss" if item.inside else "out_loss": one.mean},
            item.cluster,
        )
        for item, one in zip(items, found, strict=True)
        if one.tokens
    ]


def masking(reader: Reader) -> Any:
    """How an encoder's windows are masked: by the rule of its pre-training, the same every time."""
    if reader.causal:
        return None
    from suture.lazy import np
    from suture.training.objectives.masked import Ids, Masked

    assert reader.mask is not None
    known = Ids(len(reader.tokenizer), reader.mask, tuple(reader.tokenizer.all_special_ids))

    def mask(ids: Any, number: int) -> Any:
        return Masked().mask(ids, 0, np.asarray([number]), ids=known, seed=0)

    return mask


def joined(texts: Sequence[str], length: int) -> list[str]:
    """Passages of about `length` characters: long texts are cut, short ones follow one another.

    What is left over at the end, less than half a passage, is left out.
    """
    found: list[str] = []
    held = ""
    for text in texts:
        for piece in sections(text, length):
            held = f"{held}\n\n{piece}" if held else piece
            if len(held) >= length:
                found.append(held)
                held = ""
    if len(held) >= length / 2:
        found.append(held)
    return found


SUITE = BaseCapability()
