"""What pre-training minimises: the next token, or tokens that were masked out (BERT).

Devlin et al., NAACL 2019, arXiv 1810.04805: 15% of the tokens are to be predicted; of these 80%
are read as the mask token, 10% as a random token and 10% as themselves. Here every token is drawn
by itself, and drawn anew every epoch, from (seed, epoch, block) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.lazy import np
from suture.rng import uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from suture.training.packed import Prepare

IGNORED = -100


@dataclass(frozen=True)
class Ids:
    """What masking must know of a tokenizer. `special`: ids that are never masked."""

    vocabulary: int
    mask: int
    special: tuple[int, ...]


class Causal(FrozenConfig):
    """Mean −log p of every token of a block but its first, given those before it."""

    name: Literal["causal"] = "causal"

    def prepare(self, ids: Ids | None, seed: int) -> Prepare | None:
        """Every token is its own label; the model shifts them."""
        return None


class Masked(FrozenConfig):
    """Mean −log p of the masked tokens, given all that is read around them."""

    name: Literal["masked"] = "masked"
    share: float = Field(0.15, gt=0, lt=1, description="of the tokens, to be predicted")
    as_mask: float = Field(0.8, ge=0, le=1, description="of these, read as the mask token")
    as_random: float = Field(0.1, ge=0, le=1, description="of these, read as a random token")

    def prepare(self, ids: Ids | None, seed: int) -> Prepare | None:
        """The function that masks blocks; `ids` is needed."""
        assert ids is not None

        def masked(
            blocks: NDArray[np.int64], epoch: int, numbers: NDArray[np.int64]
        ) -> NDArray[np.int64]:
            return self.mask(blocks, epoch, numbers, ids=ids, seed=seed)

        return masked

    def mask(
        self,
        blocks: NDArray[np.int64],
        epoch: int,
        numbers: NDArray[np.int64],
        *,
        ids: Ids,
        seed: int,
    ) -> NDArray[np.int64]:
        """Change `blocks` (rows, length) to what is read; gives the labels, −100 where none is.

        Depends on (seed, epoch, number of the block) and on nothing else. A block in which nothing
        was drawn has no label, which a mean over a batch does not mind.
        """
        rows, length = blocks.shape
        draws = np.stack(
            [uniform(seed, f"mask {epoch}", int(n) * 3 * length, 3 * length) for n in numbers]
        ).reshape(rows, 3, length)
        special = np.isin(blocks, np.asarray(ids.special, dtype=np.int64))
        chosen = (draws[:, 0] < self.share) & ~special
        labels = np.where(chosen, blocks, IGNORED)
        how = draws[:, 1]
        hidden = chosen & (how < self.as_mask)
        random = chosen & ~hidden & (how < self.as_mask + self.as_random)
        words = (draws[:, 2] * ids.vocabulary).astype(np.int64)
        blocks[hidden] = ids.mask
        blocks[random] = words[random]
        return labels


PretrainObjective = Annotated[Causal | Masked, Field(discriminator="name")]


def by_name(value: Any) -> Any:
    """`causal` for `{name: causal}`."""
    return {"name": value} if isinstance(value, str) else value
