"""What suites share that read running text: how domains are cut to passages, and the checks.

`--data` is a YAML file with a list `texts` (`suture.training.documents.TextSource`). Of texts that
a model was pre-trained on, the sections that were held out of its training are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from suture.checkpoint import read_json
from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.ledger import Row
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

    def lists(self, files: Sequence[Path]) -> list[tuple[Path, bool]]:
        """The lists of texts, and whether models were pre-trained on them: --data, and not."""
        return [(file, False) for file in files]


class Domains(Reading):
    """Which text is read: --data, and the held-out sections of what models were trained on."""

    trained: Path | None = None

    def lists(self, files: Sequence[Path]) -> list[tuple[Path, bool]]:
        inside = [] if self.trained is None else [(self.trained, True)]
        return super().lists(files) + inside


class Passage(FrozenConfig):
    """Running text of one domain. `inside`: a model was trained on the rest of it."""

    id: str
    prompt: str
    domain: str
    inside: bool = False
    cluster: str | None = None


R = TypeVar("R", bound=Reading)


class OfPassages(Unspoken[R]):
    """A suite whose items are passages. `trained`: the lists that models were pre-trained on,
    known once they have been read."""

    trained: tuple[Path, ...] = ()

    def rows(self, lm: Any, items: list[Passage]) -> list[Row]:
        """What the model `lm` makes of the passages."""
        raise NotImplementedError

    def read(self, files: Sequence[Path], limit: int | None) -> list[Passage]:
        """The passages of --data, and of what the options name beside it.

        Error E950: no list is given.
        """
        if not files:
            raise SutureError(
                "E950",
                f"the suite {self.name} has no text of its own",
                fix="give --data FILE.yaml, a list `texts` like recipes/data/domains.yaml",
            )
        lists = self.asked.lists(files)
        self.trained = tuple(file for file, inside in lists if inside)
        return thin(passages(lists, self.asked), limit)

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
        return Answers(self.rows(lm, items), [])


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
