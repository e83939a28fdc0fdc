"""Scopes: what one threshold ranges over, and which weights live or die together.

Selection is exact: after a round at density d, round(d · N) of the N prunable weights are kept,
ties included. (The authors' code prunes `score <= threshold`, hence every tie, and quits if the
count is off by five.) The other scopes count in each layer, filter, group or block instead.

A kernel's last axis is its outputs and the one before it its inputs, as in Flax: `(in, out)` for a
dense layer, `(height, width, in, out)` for a convolution. The axes in front are its positions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _checks, _floors, _host_selection, _placement, _scores, _top_ranks, masks
from ntksap_jax.types import Mask, Scores

_Arrays = list[jax.Array]


class Scope:
    """The base of all scopes: keeps the weights with the highest scores.

    A scope with one count for all leaves derives from it, is hashable, and defines `num_kept`,
    `_counts` and `_keep`.

    >>> import jax, jax.numpy as jnp
    >>> mask, scores = {"w": jnp.ones(4, bool)}, {"w": jnp.array([0.1, 0.4, 0.3, 0.2])}
    >>> scope = Scope.of("global")
    >>> scope.select(scores, mask, density=0.5)["w"].tolist()
    [False, True, True, False]
    >>> counts = scope.counts(mask, 0.5)  # the same in two steps, the second traceable
    >>> jax.jit(scope.keep_top)(scores, mask, counts)[0]["w"].tolist()
    [False, True, True, False]
    """

    @staticmethod
    def of(scope: Scope | str) -> Scope:
        """Returns the scope that a shorthand stands for; scopes as they are.

        Raises:
            ValueError: neither of them.
        """
        shorthands = {"global": Global, "layer": Layer, "filter": Filter}
        if isinstance(scope, Scope):
            return scope
        if isinstance(scope, str) and scope in shorthands:
            return shorthands[scope]()
        raise ValueError(
            f"scope: got {scope!r}, expected 'global', 'layer', 'filter' or one of scopes.Global, "
            "Layer, Filter, NofM(n, m) and Block(inputs, outputs)."
        )

    def select(self, scores: Scores, mask: Mask, *, density: float) -> Mask:
        """Keeps the weights with the highest scores, for concrete arrays, which it checks.

        Args:
            scores: shaped like `mask`; higher = keep.
            mask: the current mask; the new one is a subset of it.
            density: fraction of *all* prunable weights to keep, in (0, 1].

        Returns:
            The new mask.

        Raises:
            ValueError: scores that are not finite, or all zero; what `counts` raises; a density
                above that of `mask`, since masks only ever shrink.
        """
        counts = self.counts(mask, density)
        _scores.check(scores, mask)
        self.check_left(counts, mask)
        return self.keep_top_concrete(scores, mask, counts)[0]

    def counts(self, mask: Mask, density: float) -> Any:
        """Turns a density into exact numbers of weights to keep.

        Args:
            mask: only its shapes are used.
            density: fraction of all prunable weights to keep, in (0, 1].

        Returns:
            A Python integer, or where each leaf has a threshold of its own a pytree of them, shaped
            like the mask.

        Raises:
            ValueError: a density outside (0, 1] or one that the scope cannot keep; a leaf that the
                scope does not divide.
        """
        _checks.density(density)
        self.check(mask)
        return self._counts(mask, float(density))

    def keep_top(self, scores: Scores, mask: Mask, counts: Any) -> tuple[Mask, jax.Array]:
        """Keeps the highest-scoring weights among those that the mask still keeps. Traceable.

        Exactly `counts` weights stay (all of them where fewer are left), never one that was pruned
        before. Equal scores are taken in order of position: earlier leaves first (in the order of
        `jax.tree.leaves`), then lower flat index. A NaN ranks lowest.

        The k-th highest score is found by bisection on the bits of the floating-point numbers, in
        as many passes as they have bits. Scores are copied once, as integers, and neither sorted
        nor concatenated. Where they are sharded, devices exchange only counts.

        Args:
            scores: shaped like `mask`, floating point.
            mask: the current mask.
            counts: how many to keep, from `counts` of the same scope; may be traced.

        Returns:
            The new mask, and the lowest score that was kept (+inf where none was); for a `Block`,
            the lowest score of a block.

        Raises:
            TypeError: counts that are no integers, or those of another scope.
            ValueError: a leaf that the scope does not divide.
        """
        self.check(mask)
        structure: Any = jax.tree.structure(mask)
        wanted: Any = structure if isinstance(self, _Groups) else jax.tree.structure(0)
        kinds = {jnp.result_type(count) for count in jax.tree.leaves(counts)}
        if wanted != jax.tree.structure(counts) or not all(
            jnp.issubdtype(kind, jnp.integer) for kind in kinds
        ):
            raise TypeError(
                f"counts: got {counts!r}, expected numbers of weights to keep, not a density. Make "
                "them with counts(mask, density) of the same scope and mask."
            )
        left = jax.tree.leaves(mask)
        dtype = jnp.result_type(jnp.float32, *structure.flatten_up_to(scores))
        scored = [jnp.asarray(score, dtype) for score in structure.flatten_up_to(scores)]
        ranks = [jnp.where(m, _top_ranks.rank(s), 0) for m, s in zip(left, scored, strict=True)]
        kept, lowest = self._keep(ranks, scored, left, counts)
        return jax.tree.unflatten(structure, kept), _top_ranks.unrank(lowest, dtype)

    def keep_top_concrete(self, scores: Scores, mask: Mask, counts: Any) -> tuple[Mask, jax.Array]:
        """Does what `keep_top` does, compiled, for concrete and finite scores.

        The new mask is placed on devices as the old one is.
        """
        return _keep_top(scores, mask, counts, scope=self, layout=_placement.layout(mask))

    def check_left(self, counts: Any, mask: Mask) -> None:
        """Raises a ValueError if a concrete mask has fewer weights left than should be kept."""
        for count, left, place in self._left(counts, mask):
            if count > left:
                raise ValueError(
                    f"density: asks for {count} weights to be kept, but the mask has only {left} "
                    f"left{place}; masks only ever shrink. Pass a lower density, or start from "
                    "masks.create(params)."
                )

    def check_last(self, density: float) -> None:
        """Raises a ValueError if a search cannot end at this density."""

    def check(self, mask: Mask) -> None:
        """Raises a ValueError unless the scope divides every prunable leaf; shapes are enough."""

    def num_kept(self, counts: Any, mask: Mask) -> range:
        """Returns the numbers of weights that may be left after `keep_top` with concrete counts."""
        raise NotImplementedError

    def _counts(self, mask: Mask, density: float) -> Any:
        raise NotImplementedError

    def _keep(
        self, ranks: _Arrays, scores: _Arrays, mask: _Arrays, counts: Any
    ) -> tuple[_Arrays, jax.Array]:
        """Returns what is kept, and the lowest rank that is; pruned weights have rank 0."""
        raise NotImplementedError

    def _left(self, counts: Any, mask: Mask) -> Iterator[tuple[int, int, str]]:
        """Yields how many to keep, how many are left, and where."""
        yield counts, masks.num_kept(mask), ""


ScopeLike = Scope | Literal["global", "layer", "filter"]
"""A scope, or the shorthand of `Global()`, `Layer()` or `Filter()`."""


@functools.partial(jax.jit, static_argnames=("scope", "layout"))
def _keep_top(
    scores: Scores, mask: Mask, counts: Any, *, scope: Scope, layout: _placement.Layout | None
) -> tuple[Mask, jax.Array]:
    new, lowest = scope.keep_top(scores, mask, counts)
    return _placement.constrain(new, layout), lowest


# -- One threshold for all -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Global(Scope):
    """One threshold for all prunable leaves: round(d · N) weights stay.

    Floors keep a layer from being pruned away. The total stays exact: the other weights compete for
    what is left of it.

    Attributes:
        min_weights: each leaf keeps at least this many weights, its best (all, if it has fewer).
        min_channels: in each leaf at least this many output channels keep an incoming weight, and
            this many input channels an outgoing one (all, if there are fewer): the best weights of
            the channels whose scores have the highest sum. (They need not lie on a path through the
            network; see `connectivity`.)

    Raises:
        ValueError: a floor that is no integer of at least 0. From `counts`: floors that take more
            weights than are kept.

    >>> import jax.numpy as jnp
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

    def check(self, mask: Mask) -> None:
        """Raises a ValueError unless leaves have inputs and outputs, if these have a floor."""
        if self.min_channels:
            _check_axes(f"min_channels: {self.min_channels}", mask)

    def num_kept(self, counts: int, mask: Mask) -> range:
        """Returns the one number of weights that are left."""
        return range(counts, counts + 1)

    def keep_top_concrete(self, scores: Scores, mask: Mask, counts: int) -> tuple[Mask, jax.Array]:
        """Does what `keep_top` does, by partition where the host's memory holds the scores.

        The result is the same, ties included, in a third of the time: of scores that are all left,
        only those around the threshold are copied.
        """
        structure: Any = jax.tree.structure(mask)
        left, scored = jax.tree.leaves(mask), structure.flatten_up_to(scores)
        if self != Global() or not all(map(_placement.is_on_host, [*scored, *left])):
            return super().keep_top_concrete(scores, mask, counts)
        dtype = jnp.result_type(jnp.float32, *scored)
        kept, lowest = _host_selection.keep_highest(
            [np.asarray(score, dtype) for score in scored], list(map(np.asarray, left)), int(counts)
        )
        new = jax.tree.unflatten(structure, map(jnp.asarray, kept))
        return _placement.constrain(new, _placement.layout(mask)), jnp.asarray(lowest, dtype)

    def _counts(self, mask: Mask, density: float) -> int:
        total = masks.num_prunable(mask)
        count = round(density * total)
        if count == 0:
            raise ValueError(
                f"density: {density!r} of {total} prunable weights rounds to none. "
                f"Keep at least 1: pass density >= {1 / total:.3g}."
            )
        protected = 0
        for leaf in jax.tree.leaves(mask):
            sides = leaf.shape[-2:] if self.min_channels else ()
            ends = sum(min(self.min_channels, size) for size in sides)
            protected += min(math.prod(leaf.shape), max(self.min_weights, ends))
        if protected > count:
            raise ValueError(
                f"scope: {self}: these floors may take {protected} weights in "
                f"{len(jax.tree.leaves(mask))} leaves, but only {count} are kept. Lower the "
                "floors, or keep more weights."
            )
        return count

    def _keep(
        self, ranks: _Arrays, scores: _Arrays, mask: _Arrays, counts: Any
    ) -> tuple[_Arrays, jax.Array]:
        raised = [_floors.protect(r, s, **vars(self)) for r, s in zip(ranks, scores, strict=True)]
        kept = _top_ranks.keep_highest(raised, counts)
        return kept, _top_ranks.lowest(ranks, kept)


# -- One threshold for each group ------------------------------------------------------------------


class _Groups(Scope):
    """One threshold for each group of a leaf's weights; all groups of a leaf are bisected at once.

    A low density empties no group: at least one weight stays.
    """

    name = "a group of "

    def num_kept(self, counts: Any, mask: Mask) -> range:
        """Returns the one number of weights that are left."""
        totals = masks.map_prunable(
            lambda m, count: count * m.size // self._grouped(m.shape)[-2], mask, counts
        )
        total = sum(jax.tree.leaves(totals))
        return range(total, total + 1)

    def _grouped(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a leaf in which axis -2 runs over a group."""
        raise NotImplementedError

    def _count(self, density: float, size: int) -> int:
        return max(1, round(density * size))

    def _counts(self, mask: Mask, density: float) -> Any:
        return masks.map_prunable(lambda m: self._count(density, self._grouped(m.shape)[-2]), mask)

    def _keep_leaf(self, rank: jax.Array, count: Any) -> jax.Array:
        groups = rank.reshape(self._grouped(rank.shape))
        [top] = _top_ranks.keep_highest([groups], count, axis=-2)
        return top.reshape(rank.shape)

    def _keep(
        self, ranks: _Arrays, scores: _Arrays, mask: _Arrays, counts: Any
    ) -> tuple[_Arrays, jax.Array]:
        pairs = zip(ranks, jax.tree.leaves(counts), strict=True)
        kept = [self._keep_leaf(rank, count) for rank, count in pairs]
        return kept, _top_ranks.lowest(ranks, kept)

    def _left(self, counts: Any, mask: Mask) -> Iterator[tuple[int, int, str]]:
        per_leaf = masks.leaf_paths(counts)
        for path, leaf in masks.leaf_paths(mask).items():
            left = np.sum(np.reshape(leaf, self._grouped(leaf.shape)), axis=-2)
            yield per_leaf[path], int(left.min()), f" in {self.name}leaf {path!r}"


@dataclasses.dataclass(frozen=True)
class Layer(_Groups):
    """A threshold for each leaf: round(d · n) of its n weights stay, but at least one.

    >>> import jax.numpy as jnp
    >>> Layer().counts({"a": jnp.ones((10, 10), bool), "b": jnp.ones((5, 4), bool)}, 0.05)
    {'a': 5, 'b': 1}
    """

    name = ""

    def _grouped(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return math.prod(shape), 1

    def _keep_leaf(self, rank: jax.Array, count: Any) -> jax.Array:
        [top] = _top_ranks.keep_highest([rank], count)  # Not reshaped: it may be sharded.
        return top


@dataclasses.dataclass(frozen=True)
class Filter(_Groups):
    """A threshold for each filter: round(d · fan_in) weights of each output channel, at least one.

    >>> import jax.numpy as jnp
    >>> Filter().counts({"a": jnp.ones((10, 10), bool), "b": jnp.ones((5, 4), bool)}, 0.3)
    {'a': 3, 'b': 2}
    """

    name = "a filter of "

    def check(self, mask: Mask) -> None:
        """Raises a ValueError unless leaves have inputs and outputs."""
        _check_axes(f"scope: {self}", mask)

    def _grouped(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return math.prod(shape[:-1]), shape[-1]


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
        if not (_is_size(self.n) and _is_size(self.m)) or self.n > self.m:
            raise ValueError(f"scope: got {self}, expected integers with 1 <= n <= m, as in 2:4.")

    def check(self, mask: Mask) -> None:
        """Raises a ValueError unless m divides the inputs of every leaf."""
        _check_axes(f"scope: {self}", mask, inputs=self.m)

    def check_last(self, density: float) -> None:
        """Raises a ValueError unless the density is n / m."""
        if not math.isclose(density, self.n / self.m, rel_tol=1e-6):
            raise ValueError(
                f"schedule: ends at density {density:.6g}, but scope {self} keeps {self.n} of "
                f"every {self.m} weights. End it at {self.n / self.m:.6g}."
            )

    def _grouped(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return math.prod(shape) // (self.m * shape[-1]), self.m, shape[-1]

    def _count(self, density: float, size: int) -> int:
        if density < self.n / self.m and not math.isclose(density, self.n / self.m):
            raise ValueError(
                f"density: got {density!r}, but {self} keeps {self.n / self.m:.6g} of the weights. "
                f"Pass density={self.n / self.m:.6g} (or more, in an earlier round)."
            )
        return max(self.n, round(density * size))


# -- Blocks ----------------------------------------------------------------------------------------


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
        if not all(size is None or _is_size(size) for size in (self.inputs, self.outputs)):
            raise ValueError(
                f"scope: got {self}, expected positive integers, or None for the whole axis."
            )

    def check(self, mask: Mask) -> None:
        """Raises a ValueError unless whole blocks fill every leaf."""
        _check_axes(f"scope: {self}", mask, inputs=self.inputs, outputs=self.outputs)

    def num_kept(self, counts: int, mask: Mask) -> range:
        """Returns the numbers of weights that may be left: blocks may not fill the count."""
        return range(counts - self._largest(mask)[1] + 1, counts + 1)

    def _counts(self, mask: Mask, density: float) -> int:
        total = masks.num_prunable(mask)
        count, (path, size) = round(density * total), self._largest(mask)
        if count < size:
            raise ValueError(
                f"density: {density!r} of {total} prunable weights is {count}, which is less than "
                f"one block of leaf {path!r} ({size} weights). Pass density >= {size / total:.3g}, "
                "smaller blocks, or leave the leaf out with masks.create(params, exclude=...)."
            )
        return count

    def _keep(
        self, ranks: _Arrays, scores: _Arrays, mask: _Arrays, counts: Any
    ) -> tuple[_Arrays, jax.Array]:
        # A pruned weight adds nothing to its block's score or size.
        sizes = [self._sum(m.astype(jnp.int32)) for m in mask]
        sums = [self._sum(jnp.where(m, s, 0)) for m, s in zip(mask, scores, strict=True)]
        ranks = [jnp.where(n > 0, _top_ranks.rank(s), 0) for n, s in zip(sizes, sums, strict=True)]
        chosen = _top_ranks.keep_highest(ranks, counts, sizes=sizes)
        kept = [
            jnp.broadcast_to(c, self._split(m.shape)).reshape(m.shape) & m
            for c, m in zip(chosen, mask, strict=True)
        ]
        return kept, _top_ranks.lowest(ranks, chosen)

    def _split(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(positions, blocks of inputs, inputs in a block, blocks of outputs, outputs in one)."""
        *positions, inputs, outputs = shape
        size_in, size_out = self.inputs or inputs, self.outputs or outputs
        return math.prod(positions), inputs // size_in, size_in, outputs // size_out, size_out

    @property
    def _within(self) -> tuple[int, ...]:
        """The axes of `_split` that lie within a block."""
        return (0, 2, 4) if self.inputs is None or self.outputs is None else (2, 4)

    def _sum(self, leaf: jax.Array) -> jax.Array:
        return jnp.sum(leaf.reshape(self._split(leaf.shape)), axis=self._within, keepdims=True)

    def _largest(self, mask: Mask) -> tuple[str, int]:
        """Returns the path of the leaf that has the largest blocks, and their number of weights."""
        sizes = {
            path: math.prod(self._split(leaf.shape)[axis] for axis in self._within)
            for path, leaf in masks.leaf_paths(mask).items()
        }
        return max(sizes.items(), key=lambda item: item[1])


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _check_axes(what: str, mask: Mask, **sizes: int | None) -> None:
    """Raises unless every leaf has inputs and outputs, in multiples of the given sizes."""
    advice = "Leave it out with masks.create(params, exclude=...), or choose another scope."
    for path, leaf in masks.leaf_paths(mask).items():
        if leaf.ndim < 2:
            raise ValueError(
                f"{what} does not fit leaf {path!r} of shape {leaf.shape}; expected two axes or "
                f"more, the last two inputs and outputs. {advice}"
            )
        lengths = {"inputs": leaf.shape[-2], "outputs": leaf.shape[-1]}
        for axis, size in sizes.items():
            if size is not None and lengths[axis] % size:
                raise ValueError(
                    f"{what} does not fit leaf {path!r}, whose {lengths[axis]} {axis} are no "
                    f"multiple of {size}. {advice}"
                )
