"""Blocks of weights that live or die together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax import _forms, _top_ranks, masks
from ntksap_jax._forms import Form
from ntksap_jax.scopes._base import Arrays, Scope, check_sides, is_size
from ntksap_jax.types import Axes, Mask


@dataclasses.dataclass(frozen=True)
class Block(Scope):
    """Blocks of `inputs` x `outputs` weights live or die together, by one global threshold.

    A block's score is the sum of the scores of those of its weights that are left. Blocks are taken
    from the best on, as long as no more than round(d · N) weights are kept; so the number kept
    falls short of that by less than one block. (The first block that does not fit ends it: a worse
    one is never kept for being smaller.)

    `None` takes the whole axis, and with it all kernel positions: `Block(None, 1)` is an output
    channel (a whole filter), `Block(1, None)` an input channel. With two numbers each position of a
    convolution has blocks of its own.

    Attributes:
        inputs: number of inputs, which divides that of every prunable leaf; `None`: all.
        outputs: number of outputs, likewise.

    Raises:
        ValueError: a size that is no positive integer.

    >>> import jax.numpy as jnp
    >>> scores, mask = {"w": jnp.array([[1.0, 4.0], [3.0, 2.0]])}, {"w": jnp.ones((2, 2), bool)}
    >>> Block(None, 1).select(scores, mask, density=0.5)["w"].tolist()
    [[False, True], [False, True]]
    """

    inputs: int | None
    outputs: int | None

    def __post_init__(self) -> None:
        if not all(size is None or is_size(size) for size in (self.inputs, self.outputs)):
            raise ValueError(
                f"scope: got {self}, expected positive integers, or None for the whole axis."
            )

    def need(self) -> _forms.Need:
        """Returns what blocks are made by."""
        return "roles"

    def _check(self, path: str, form: Form) -> None:
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        check_sides(f"scope: {self}", path, form, **sides)

    def num_kept(self, counts: int, mask: Mask, *, axes: Axes | None = None) -> range:
        """Returns the numbers of weights that may be left: blocks may not fill the count."""
        largest = max(map(self._block_size, self._forms(mask, axes)))
        return range(counts - largest + 1, counts + 1)

    def _counts(self, mask: Mask, forms: Sequence[Form], density: float) -> int:
        total = masks.num_prunable(mask)
        sizes = dict(zip(masks.leaf_paths(mask), map(self._block_size, forms), strict=True))
        path, size = max(sizes.items(), key=lambda item: item[1])
        count = round(density * total)
        if count < size:
            raise ValueError(
                f"density: {density!r} of {total} prunable weights is {count}, which is less than "
                f"one block of leaf {path!r} ({size} weights). Pass density >= {size / total:.3g}, "
                "smaller blocks, or leave the leaf out with masks.create(params, exclude=...)."
            )
        return count

    def _keep(
        self, ranks: Arrays, scores: Arrays, mask: Arrays, forms: Sequence[Form], counts: Any
    ) -> tuple[Arrays, jax.Array]:
        # A pruned weight adds nothing to its block's score or size.
        left = list(zip(mask, scores, forms, strict=True))
        sizes = [self._sum(m.astype(jnp.int32), form) for m, _, form in left]
        sums = [self._sum(jnp.where(m, s, 0), form) for m, s, form in left]
        ranks = [jnp.where(n > 0, _top_ranks.rank(s), 0) for n, s in zip(sizes, sums, strict=True)]
        chosen = _top_ranks.keep_highest(ranks, counts, sizes=sizes)
        kept = [self._whole(c, form) & m for c, (m, _, form) in zip(chosen, left, strict=True)]
        return kept, _top_ranks.lowest(ranks, chosen)

    def _split(self, form: Form) -> tuple[int, ...]:
        """(layers, positions, blocks of inputs, inputs in one, the same of outputs)."""
        inputs, outputs = self.inputs or form.inputs, self.outputs or form.outputs
        blocks = (form.inputs // inputs, inputs, form.outputs // outputs, outputs)
        return form.layers, math.prod(form.positions), *blocks

    @property
    def _within(self) -> tuple[int, ...]:
        """The axes of `_split` that lie within a block."""
        return (1, 3, 5) if self.inputs is None or self.outputs is None else (3, 5)

    def _sum(self, leaf: jax.Array, form: Form) -> jax.Array:
        split = form.arrange(leaf).reshape(self._split(form))
        return jnp.sum(split, axis=self._within, keepdims=True)

    def _whole(self, blocks: jax.Array, form: Form) -> jax.Array:
        return form.restore(jnp.broadcast_to(blocks, self._split(form)))

    def _block_size(self, form: Form) -> int:
        """The number of weights of a block."""
        return math.prod(self._split(form)[axis] for axis in self._within)
