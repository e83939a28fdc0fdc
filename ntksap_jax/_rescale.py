"""Weights for a mask: as large as few inputs need them."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from ntksap_jax import _forms, _mask_trees
from ntksap_jax.types import Axes, Mask, Params


def rescale(params: Params, mask: Mask, *, axes: Axes | None = None) -> Params:
    """Prunes, and scales the weights that each output keeps by sqrt(fan-in / fan-in kept).

    An initialisation draws weights with a variance of about 1 / fan-in, so that features neither
    grow nor vanish from layer to layer. Of n inputs with weights of variance σ², which give an
    output of variance n σ² for white inputs, a mask leaves k and k σ²; the scale √(n / k) brings
    n σ² back, for a mask that does not depend on the weights. One that keeps the largest weights
    leaves more than k σ², and is scaled up too far.

    Source: Evci, Ioannou, Keskin, Dauphin, "Gradient flow in sparse neural networks and how lottery
    tickets win", AAAI 2022, section 3.1, which draws the weights with that variance.

    Args:
        params: pytree of arrays.
        mask: the mask.
        axes: which axes of a leaf are its outputs, where its name does not say it:
            `axes.of(network)`. Layers of a stack have outputs of their own.

    Returns:
        Params with pruned weights at 0; leaves that are not prunable are as they were. Traceable.

    Raises:
        ValueError: a leaf of which it is not known which axes are outputs.

    >>> import jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([[True, False]] + 3 * [[False, False]]), "bias": None}
    >>> rescale({"kernel": jnp.full((4, 2), 3.0), "bias": jnp.ones(2)}, mask)["kernel"].tolist()
    [[6.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    leaves, structure = jax.tree.flatten(mask)
    prunable = _mask_trees.leaf_paths(mask)
    shapes = {p: leaf.shape for p, leaf in (_mask_trees.leaf_paths(params) | prunable).items()}
    words = _forms.words_of(shapes, axes)
    known = {path: words[path] for path in prunable}
    forms = _forms.forms(prunable, known, need="roles", what="masks.rescale")
    factors = _factors(leaves, forms=tuple(forms))
    return _mask_trees.merge(
        _mask_trees.map_prunable(
            lambda m, p, f: jnp.where(m, p * f.astype(jnp.finfo(p.dtype).dtype), 0).astype(p.dtype),
            mask,
            params,
            jax.tree.unflatten(structure, factors),
        ),
        params,
    )


@functools.partial(jax.jit, static_argnames="forms")
def _factors(leaves: list[jax.Array], *, forms: tuple[_forms.Form, ...]) -> list[jax.Array]:
    """What each weight is multiplied with; 1 at outputs that keep none."""

    def of_leaf(leaf: jax.Array, form: _forms.Form) -> jax.Array:
        kernels = form.arrange(leaf)
        inputs = tuple(range(len(form.stacked), kernels.ndim - 1))
        fan_in = math.prod(kernels.shape[axis] for axis in inputs)
        kept = jnp.sum(kernels, axis=inputs, keepdims=True, dtype=jnp.float32)
        factor = jnp.sqrt(fan_in / jnp.where(kept > 0, kept, fan_in))
        return form.restore(jnp.broadcast_to(factor, kernels.shape))

    return list(map(of_leaf, leaves, forms))
