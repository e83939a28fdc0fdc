"""One threshold for all prunable leaves, and floors below which it takes nothing from a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _checks, _forms, _placement, _top_ranks, masks
from ntksap_jax._forms import Form
from ntksap_jax.scopes import _floors, _host_selection
from ntksap_jax.scopes._base import Arrays, Scope
from ntksap_jax.types import Axes, Mask, Scores


@dataclasses.dataclass(frozen=True)
class Global(Scope, shorthand="global"):
    """One threshold for all prunable leaves: round(d · N) weights stay.

    Floors keep a layer from being pruned away. The total stays exact: the other weights compete for
    what is left of it.

    Attributes:
        min_weights: each layer keeps at least this many weights, its best (all, if it has fewer).
        min_channels: in each layer at least this many output channels keep an incoming weight, and
            this many input channels an outgoing one (all, if there are fewer): the best weights of
            the channels whose scores have the highest sum. (They need not lie on a path through the
            network; see `connectivity`.)

    Raises:
        ValueError: a floor that is no integer of at least 0. From `counts`: floors that take more
            weights than are kept.

    >>> import jax.numpy as jnp
    >>> from ntksap_jax import masks
    >>> mask = {"a": jnp.ones((2, 2), bool), "b": jnp.ones((2, 2), bool)}
    >>> scores = {"a": 4 + jnp.arange(4.0).reshape(2, 2), "b": jnp.arange(4.0).reshape(2, 2)}
    >>> [masks.layer_densities(Global(floor).select(scores, mask, density=0.5)) for floor in (0, 1)]
    [{'a': 1.0, 'b': 0.0}, {'a': 0.75, 'b': 0.25}]
    """

    min_weights: int = 0
    min_channels: int = 0

    def __post_init__(self) -> None:
        for name, floor in vars(self).items():
            _checks.integer(name, floor, at_least=0)

    def need(self) -> _forms.Need:
        """Returns what the floors depend on."""
        return "roles" if self.min_channels else "stacks" if self.min_weights else "nothing"

    def num_kept(self, counts: int, mask: Mask, *, axes: Axes | None = None) -> range:
        """Returns the one number of weights that are left."""
        return range(counts, counts + 1)

    def keep_top_concrete(
        self, scores: Scores, mask: Mask, counts: int, *, axes: Axes | None = None
    ) -> tuple[Mask, jax.Array]:
        """Does what `keep_top` does, by partition where the host's memory holds the scores.

        The result is the same, ties included, in a third of the time: of scores that are all left,
        only those around the threshold are copied.
        """
        structure: Any = jax.tree.structure(mask)
        left, scored = jax.tree.leaves(mask), structure.flatten_up_to(scores)
        if self != Global() or not all(map(_placement.is_on_host, [*scored, *left])):
            return super().keep_top_concrete(scores, mask, counts, axes=axes)
        dtype = jnp.result_type(jnp.float32, *scored)
        kept, lowest = _host_selection.keep_highest(
            [np.asarray(score, dtype) for score in scored], list(map(np.asarray, left)), int(counts)
        )
        new = jax.tree.unflatten(structure, map(jnp.asarray, kept))
        return _placement.constrain(new, _placement.layout(mask)), jnp.asarray(lowest, dtype)

    def _counts(self, mask: Mask, forms: Sequence[Form], density: float) -> int:
        total = masks.num_prunable(mask)
        count = round(density * total)
        if count == 0:
            raise ValueError(
                f"density: {density!r} of {total} prunable weights rounds to none. "
                f"Keep at least 1: pass density >= {1 / total:.3g}."
            )
        protected = 0
        for form in forms:
            sides = (form.inputs, form.outputs) if self.min_channels else ()
            ends = sum(min(self.min_channels, side) for side in sides)
            protected += form.layers * min(form.size, max(self.min_weights, ends))
        if protected > count:
            raise ValueError(
                f"scope: {self}: these floors may take {protected} weights in "
                f"{sum(form.layers for form in forms)} layers, but only {count} are kept. Lower "
                "the floors, or keep more weights."
            )
        return count

    def _keep(
        self, ranks: Arrays, scores: Arrays, mask: Arrays, forms: Sequence[Form], counts: Any
    ) -> tuple[Arrays, jax.Array]:
        if self.need() == "nothing":
            kept = _top_ranks.keep_highest(ranks, counts)
            return kept, _top_ranks.lowest(ranks, kept)
        raised = [
            form.by_layer(_floors.protect(rank, score, form, **vars(self)))
            for rank, score, form in zip(ranks, scores, forms, strict=True)
        ]
        tops = zip(forms, _top_ranks.keep_highest(raised, counts), strict=True)
        kept = [form.restore_layers(top) for form, top in tops]
        return kept, _top_ranks.lowest(ranks, kept)
