"""One threshold for each layer, each filter, or each group of a few weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ntksap_jax import _forms, _top_ranks, masks
from ntksap_jax._forms import Form
from ntksap_jax.scopes._base import Arrays, Scope, check_sides, is_size
from ntksap_jax.types import Axes, Mask


class _Groups(Scope):
    """One threshold for each group of a leaf's weights; all groups of a leaf are bisected at once.

    A low density empties no group: at least one weight stays.
    """

    name = "a group of "
    _counts_leaves = True

    def need(self) -> _forms.Need:
        """Returns what the groups are made by."""
        return "roles"

    def num_kept(self, counts: Any, mask: Mask, *, axes: Axes | None = None) -> range:
        """Returns the one number of weights that are left."""
        forms = self._forms(mask, axes)
        pairs = zip(forms, jax.tree.leaves(counts), strict=True)
        total = sum(
            count * math.prod(form.shape) // self._grouped(form)[-2] for form, count in pairs
        )
        return range(total, total + 1)

    def _grouped(self, form: Form) -> tuple[int, ...]:
        """Returns the shape of an arranged leaf in which axis -2 runs over a group.

        The layers of a stack are the slowest part of the axes in front.
        """
        raise NotImplementedError

    def _count(self, density: float, size: int) -> int:
        return max(1, round(density * size))

    def _counts(self, mask: Mask, forms: Sequence[Form], density: float) -> Any:
        counts = [self._count(density, self._grouped(form)[-2]) for form in forms]
        return jax.tree.unflatten(jax.tree.structure(mask), counts)

    def _keep_leaf(self, rank: jax.Array, form: Form, count: Any) -> jax.Array:
        arranged = form.arrange(rank)
        groups = arranged.reshape(self._grouped(form))
        [top] = _top_ranks.keep_highest([groups], count, axis=-2)
        return form.restore(top.reshape(arranged.shape))

    def _fewest(self, leaf: np.ndarray, form: Form) -> np.ndarray:
        """The number of weights left in the group of each layer that has the fewest."""
        left = np.sum(form.arrange(leaf).reshape(self._grouped(form)), axis=-2)
        return left.reshape(form.layers, -1).min(axis=1)

    def _keep(
        self, ranks: Arrays, scores: Arrays, mask: Arrays, forms: Sequence[Form], counts: Any
    ) -> tuple[Arrays, jax.Array]:
        leaves = zip(ranks, forms, jax.tree.leaves(counts), strict=True)
        kept = [self._keep_leaf(rank, form, count) for rank, form, count in leaves]
        return kept, _top_ranks.lowest(ranks, kept)

    def _left(
        self, counts: Any, mask: Mask, forms: Sequence[Form]
    ) -> Iterator[tuple[int, int, str]]:
        leaves = masks.leaf_paths(mask).items()
        for (path, leaf), form, count in zip(leaves, forms, jax.tree.leaves(counts), strict=True):
            fewest = self._fewest(np.asarray(leaf), form)
            for layer, left in zip(form.names(path), fewest, strict=True):
                yield count, int(left), f" in {self.name}leaf {layer!r}"


@dataclasses.dataclass(frozen=True)
class Layer(_Groups, shorthand="layer"):
    """A threshold for each layer: round(d · n) of its n weights stay, but at least one.

    >>> import jax.numpy as jnp
    >>> Layer().counts({"a": jnp.ones((10, 10), bool), "b": jnp.ones((5, 4), bool)}, 0.05)
    {'a': 5, 'b': 1}
    >>> Layer().counts({"a": jnp.ones((3, 5, 4), bool)}, 0.1, axes={"a": "sio"})  # of each of three
    {'a': 2}
    """

    name = ""

    def need(self) -> _forms.Need:
        """Returns what has to be known: which axes run over layers."""
        return "stacks"

    def _grouped(self, form: Form) -> tuple[int, ...]:
        return form.layers, form.size, 1

    def _keep_leaf(self, rank: jax.Array, form: Form, count: Any) -> jax.Array:
        axis = -1 if form.stacked else None  # A single layer is not reshaped: it may be sharded.
        [top] = _top_ranks.keep_highest([form.by_layer(rank)], count, axis=axis)
        return form.restore_layers(top)

    def _fewest(self, leaf: np.ndarray, form: Form) -> np.ndarray:
        return form.by_layer(leaf).reshape(form.layers, -1).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Filter(_Groups, shorthand="filter"):
    """A threshold for each filter: round(d · fan_in) weights of each output, but at least one.

    An output is a channel, a unit, or a feature of a head.

    >>> import jax.numpy as jnp
    >>> mask = {"a": {"kernel": jnp.ones((10, 10), bool)}, "b": {"kernel": jnp.ones((5, 4), bool)}}
    >>> Filter().counts(mask, 0.3)
    {'a': {'kernel': 3}, 'b': {'kernel': 2}}
    >>> Filter().counts(mask, 0.3, axes={"b": "oi"})
    {'a': {'kernel': 3}, 'b': {'kernel': 1}}
    """

    name = "a filter of "

    def _grouped(self, form: Form) -> tuple[int, ...]:
        return form.layers, math.prod(form.positions) * form.inputs, form.outputs


@dataclasses.dataclass(frozen=True)
class NofM(_Groups):
    """Of every `m` consecutive weights along the inputs exactly `n` stay, such as 2:4.

    Each kernel position and each output has groups of its own. In a search of many rounds the
    intermediate ones keep round(d · m) of every m; the last density must be n / m.

    Source: Mishra et al., "Accelerating sparse deep neural networks", 2021 (2:4).

    Attributes:
        n: how many stay.
        m: out of how many; divides the number of inputs of every prunable leaf.

    Raises:
        ValueError: unless 1 <= n <= m.

    >>> import jax.numpy as jnp
    >>> scores, mask = {"w": jnp.array([[1.0], [4.0], [3.0], [2.0]])}, {"w": jnp.ones((4, 1), bool)}
    >>> NofM(2, 4).select(scores, mask, density=0.5)["w"].ravel().tolist()
    [False, True, True, False]
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (is_size(self.n) and is_size(self.m)) or self.n > self.m:
            raise ValueError(f"scope: got {self}, expected integers with 1 <= n <= m, as in 2:4.")

    def _check(self, path: str, form: Form) -> None:
        check_sides(f"scope: {self}", path, form, inputs=self.m)

    def check_last(self, density: float) -> None:
        """Raises a ValueError unless the density is n / m."""
        if not math.isclose(density, self.n / self.m, rel_tol=1e-6):
            raise ValueError(
                f"density: the search ends at {density:.6g}, but scope {self} keeps {self.n} of "
                f"every {self.m} weights. End it at {self.n / self.m:.6g}."
            )

    def _grouped(self, form: Form) -> tuple[int, ...]:
        groups = math.prod(form.positions) * form.inputs // self.m
        return form.layers * groups, self.m, form.outputs

    def _count(self, density: float, size: int) -> int:
        if density < self.n / self.m and not math.isclose(density, self.n / self.m):
            raise ValueError(
                f"density: got {density!r}, but {self} keeps {self.n / self.m:.6g} of the weights. "
                f"Pass density={self.n / self.m:.6g} (or more, in an earlier round)."
            )
        return max(self.n, round(density * size))
