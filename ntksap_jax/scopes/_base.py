"""What all scopes have in common: counts, checks, and the selection of the highest scores."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from ntksap_jax import _checks, _forms, _placement, _scores, _top_ranks, masks
from ntksap_jax._forms import Form
from ntksap_jax.types import Axes, Mask, Scores

Arrays = list[jax.Array]


class Scope:
    """The base of all scopes: keeps the weights with the highest scores.

    A scope of your own derives from it, is hashable, and defines `_counts`, `_keep` and `num_kept`;
    also `need`, if it depends on what the axes of leaves mean. The forms that these are given say
    that: `form.arrange(leaf)` has the axes (*stacked, *positions, inputs, outputs), and
    `form.restore` brings them back.

    >>> import jax, jax.numpy as jnp
    >>> mask, scores = {"w": jnp.ones(4, bool)}, {"w": jnp.array([0.1, 0.4, 0.3, 0.2])}
    >>> scope = Scope.of("global")
    >>> scope.select(scores, mask, density=0.5)["w"].tolist()
    [False, True, True, False]
    >>> counts = scope.counts(mask, 0.5)  # the same in two steps, the second traceable
    >>> jax.jit(scope.keep_top)(scores, mask, counts)[0]["w"].tolist()
    [False, True, True, False]
    """

    _shorthands: ClassVar[dict[str, type[Scope]]] = {}

    def __init_subclass__(cls, shorthand: str | None = None) -> None:
        """Takes note of the name that a scope without options goes by."""
        if shorthand is not None:
            cls._shorthands[shorthand] = cls

    @staticmethod
    def of(scope: Scope | str) -> Scope:
        """Returns the scope that a shorthand stands for; scopes as they are.

        Raises:
            ValueError: neither of them.
        """
        if isinstance(scope, Scope):
            return scope
        if isinstance(scope, str) and scope in Scope._shorthands:
            return Scope._shorthands[scope]()
        raise ValueError(
            f"scope: got {scope!r}, expected 'global', 'layer', 'filter' or one of scopes.Global, "
            "Layer, Filter, NofM(n, m) and Block(inputs, outputs)."
        )

    def select(
        self, scores: Scores, mask: Mask, *, density: float, axes: Axes | None = None
    ) -> Mask:
        """Keeps the weights with the highest scores, for concrete arrays, which it checks.

        Args:
            scores: shaped like `mask`; higher = keep.
            mask: the current mask; the new one is a subset of it.
            density: fraction of *all* prunable weights to keep, in (0, 1].
            axes: what the axes of leaves mean, where their names do not say it; see `axes`.

        Returns:
            The new mask.

        Raises:
            ValueError: scores that are not finite, or all zero; what `counts` raises; a density
                above that of `mask`, since masks only ever shrink.
        """
        counts = self.counts(mask, density, axes=axes)
        _scores.check(scores, mask)
        self.check_left(counts, mask, axes=axes)
        return self.keep_top_concrete(scores, mask, counts, axes=axes)[0]

    def counts(self, mask: Mask, density: float, *, axes: Axes | None = None) -> Any:
        """Turns a density into exact numbers of weights to keep.

        Args:
            mask: only its shapes are used.
            density: fraction of all prunable weights to keep, in (0, 1].
            axes: as for `select`.

        Returns:
            A Python integer, or where each leaf has thresholds of its own a pytree of them, shaped
            like the mask.

        Raises:
            ValueError: a density outside (0, 1] or one that the scope cannot keep; a leaf that the
                scope does not divide, or whose axes it would have to know.
        """
        _checks.density(density)
        return self._counts(mask, self._forms(mask, axes), float(density))

    def keep_top(
        self, scores: Scores, mask: Mask, counts: Any, *, axes: Axes | None = None
    ) -> tuple[Mask, jax.Array]:
        """Keeps the highest-scoring weights among those that the mask still keeps. Traceable.

        Exactly `counts` weights stay (all of them where fewer are left), never one that was pruned
        before. Equal scores are taken in order of position: earlier leaves first (in the order of
        `jax.tree.leaves`), then earlier layers of a stack, then lower flat index. A NaN ranks
        lowest.

        The k-th highest score is found by bisection on the bits of the floating-point numbers, in
        as many passes as they have bits. Scores are copied once, as integers, and neither sorted
        nor concatenated. Where they are sharded, devices exchange only counts.

        Args:
            scores: shaped like `mask`, floating point.
            mask: the current mask.
            counts: how many to keep, from `counts` of the same scope; may be traced.
            axes: as for `select`.

        Returns:
            The new mask, and the lowest score that was kept (+inf where none was); for a `Block`,
            the lowest score of a block.

        Raises:
            TypeError: counts that are no integers, or those of another scope.
            ValueError: a leaf that the scope does not divide.
        """
        return self._keep_top(scores, mask, counts, self._forms(mask, axes))

    def _keep_top(
        self, scores: Scores, mask: Mask, counts: Any, forms: Sequence[Form]
    ) -> tuple[Mask, jax.Array]:
        structure: Any = jax.tree.structure(mask)
        wanted: Any = structure if self._counts_leaves else jax.tree.structure(0)
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
        kept, lowest = self._keep(ranks, scored, left, forms, counts)
        return jax.tree.unflatten(structure, kept), _top_ranks.unrank(lowest, dtype)

    def keep_top_concrete(
        self, scores: Scores, mask: Mask, counts: Any, *, axes: Axes | None = None
    ) -> tuple[Mask, jax.Array]:
        """Does what `keep_top` does, compiled, for concrete and finite scores.

        The new mask is placed on devices as the old one is.
        """
        forms, layout = tuple(self._forms(mask, axes)), _placement.layout(mask)
        return _compiled(scores, mask, counts, scope=self, forms=forms, layout=layout)

    def check_left(self, counts: Any, mask: Mask, *, axes: Axes | None = None) -> None:
        """Raises a ValueError if a concrete mask has fewer weights left than should be kept."""
        for count, left, place in self._left(counts, mask, self._forms(mask, axes)):
            if count > left:
                raise ValueError(
                    f"density: asks for {count} weights to be kept, but the mask has only {left} "
                    f"left{place}; masks only ever shrink. Pass a lower density, or start from "
                    "masks.create(params)."
                )

    def need(self) -> _forms.Need:
        """Returns what has to be known of leaves: where it is not, that is an error.

        `"nothing"`, which axes run over `"stacks"` of layers, or the `"roles"` of all axes.
        """
        return "nothing"

    def check_last(self, density: float) -> None:
        """Raises a ValueError if a search cannot end at this density."""

    def num_kept(self, counts: Any, mask: Mask, *, axes: Axes | None = None) -> range:
        """Returns the numbers of weights that may be left after `keep_top` with concrete counts."""
        raise NotImplementedError

    _counts_leaves: ClassVar[bool] = False  # a count for each leaf, or one for all

    def _forms(self, mask: Mask, axes: Axes | None) -> list[Form]:
        """Returns the form of each leaf; raises a ValueError where the scope does not divide it."""
        leaves = masks.leaf_paths(mask)
        forms = _forms.forms(leaves, axes, need=self.need(), what=f"scope {self}")
        for path, form in zip(leaves, forms, strict=True):
            self._check(path, form)
        return forms

    def _check(self, path: str, form: Form) -> None:
        """Raises a ValueError unless the scope divides a leaf."""

    def _counts(self, mask: Mask, forms: Sequence[Form], density: float) -> Any:
        raise NotImplementedError

    def _keep(
        self, ranks: Arrays, scores: Arrays, mask: Arrays, forms: Sequence[Form], counts: Any
    ) -> tuple[Arrays, jax.Array]:
        """Returns what is kept, and the lowest rank that is; pruned weights have rank 0."""
        raise NotImplementedError

    def _left(
        self, counts: Any, mask: Mask, forms: Sequence[Form]
    ) -> Iterator[tuple[int, int, str]]:
        """Yields how many to keep, how many are left, and where."""
        yield counts, masks.num_kept(mask), ""


ScopeLike = Scope | Literal["global", "layer", "filter"]
"""A scope, or the shorthand of `Global()`, `Layer()` or `Filter()`."""


@functools.partial(jax.jit, static_argnames=("scope", "forms", "layout"))
def _compiled(
    scores: Scores,
    mask: Mask,
    counts: Any,
    *,
    scope: Scope,
    forms: tuple[Form, ...],
    layout: _placement.Layout | None,
) -> tuple[Mask, jax.Array]:
    new, lowest = scope._keep_top(scores, mask, counts, forms)
    return _placement.constrain(new, layout), lowest


def is_size(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def check_sides(what: str, path: str, form: Form, **sizes: int | None) -> None:
    """Raises a ValueError unless a leaf has inputs and outputs in multiples of the given sizes."""
    advice = "Leave it out with masks.create(params, exclude=...), or choose another scope."
    lengths = {"inputs": form.inputs, "outputs": form.outputs}
    for side, size in sizes.items():
        if size is not None and lengths[side] % size:
            raise ValueError(
                f"{what} does not fit leaf {path!r}, whose {lengths[side]} {side} are no multiple "
                f"of {size}. {advice}"
            )
