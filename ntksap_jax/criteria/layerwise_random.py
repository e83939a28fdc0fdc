r"""Random pruning with given densities of the layers, among them those of Erdős-Rényi kernels.

A global threshold keeps, at any total density d, in layer l exactly the fraction min(1, c·d_l) of
its weights, with c such that the total is right (and counts rounded to whole weights): each layer's
weights get a random order r = 0, 1, ... and the scores

    s = d_l n_l / (r + 1/2),    n_l the size of the layer.

Needs nothing but the shapes. `erk` is the strong baseline among random ones: Evci, Gale, Menick,
Castro, Elsen, "Rigging the lottery: making all tickets winners", ICML 2020, section 3 (after Mocanu
et al. 2018), with

    d_l ∝ (inputs + outputs + kernel height + kernel width) / (inputs · outputs · height · width).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _forms, masks
from ntksap_jax import axes as axes_
from ntksap_jax._draws import typed_key
from ntksap_jax.types import Axes, Batch, Key, Mask, Metrics, Params, ScoreFn, Scores


def layerwise_random(densities: Mapping[str, float], *, axes: Axes | None = None) -> ScoreFn:
    """Keeps weights at random, with layer densities in proportion to the given ones.

    To get exactly these densities, search for the total density that they amount to. Another total
    scales them by a common factor; a layer that reaches 1 is dense, and the others share the rest.

    Args:
        densities: fraction to keep in each prunable layer, by path, in [0, 1], such as
            `masks.layer_densities(mask)` of a mask that another criterion found.
        axes: what the axes of leaves mean (see `axes`), which names the layers of stacks as
            `masks.layer_densities(mask, axes=axes)` does.

    Returns:
        The criterion; it ignores the values of the params, and the batch.

    Raises:
        ValueError: a density that is negative or not finite; when called: layers without a density,
            or densities for layers that do not exist.

    >>> import jax, jax.numpy as jnp
    >>> from ntksap_jax import scopes
    >>> mask = {"a": jnp.ones((10, 10), bool), "b": jnp.ones((10, 30), bool)}
    >>> score = layerwise_random({"a": 0.5, "b": 0.1})
    >>> scores, _ = score(jax.random.key(0), None, mask, None)
    >>> masks.layer_densities(scopes.Global().select(scores, mask, density=0.2))
    {'a': 0.5, 'b': 0.1}
    """
    for path, density in densities.items():
        if not (math.isfinite(density) and density >= 0):
            raise ValueError(
                f"densities: got {density!r} for leaf {path!r}, expected a fraction of its weights."
            )

    @axes_.known(axes)
    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        del batch
        forms = _forms_of(params, mask, axes, need="nothing", what="layerwise_random")
        return _scores(typed_key(key), mask, forms, dict(densities)), {}

    return score


def erk(*, axes: Axes | None = None) -> ScoreFn:
    """Keeps weights at random, with the layer densities of an Erdős-Rényi kernel.

    Small layers stay dense, large ones become sparse: the density falls with the product of the
    layer's dimensions while the number of weights grows with their sum.

    Args:
        axes: what the axes of leaves mean, where their names do not say it: `axes.of(network)`.

    Returns:
        The criterion; it ignores the values of the params, and the batch.

    Raises:
        ValueError: when called: a leaf of which it is not known what its axes mean.

    >>> import jax, jax.numpy as jnp
    >>> from ntksap_jax import scopes
    >>> mask = {"small": jnp.ones((10, 10), bool), "large": jnp.ones((30, 30), bool)}
    >>> scores, _ = erk()(jax.random.key(0), None, mask, None)
    >>> kept = scopes.Global().select(scores, mask, density=0.08)  # 20 and 60: sums of sides
    >>> {name: int(leaf.sum()) for name, leaf in kept.items()}
    {'large': 60, 'small': 20}
    """

    @axes_.known(axes)
    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        del batch
        leaves = masks.leaf_paths(mask)
        forms = _forms_of(params, mask, axes, need="stacks", what="erk")
        densities = {
            name: _sum_of_sides(form) / form.size
            for path, form in zip(leaves, forms, strict=True)
            for name in form.names(path)
        }
        return _scores(typed_key(key), mask, forms, densities), {}

    return score


def _forms_of(
    params: Params, mask: Mask, axes: Axes | None, *, need: _forms.Need, what: str
) -> list[_forms.Form]:
    """The forms of the prunable leaves: the names and shapes of others, of biases, tell as well."""
    leaves = masks.leaf_paths(mask)
    shapes = {p: tuple(leaf.shape) for p, leaf in (masks.leaf_paths(params) | leaves).items()}
    words = _forms.words_of(shapes, axes)
    return _forms.forms(leaves, {path: words[path] for path in leaves}, need=need, what=what)


def _sum_of_sides(form: _forms.Form) -> int:
    if "?" in form.word:  # Two axes: which are the inputs does not matter.
        return sum(form.shape)
    return sum(form.positions) + form.inputs + form.outputs


def _scores(key: Key, mask: Mask, forms: list[_forms.Form], densities: dict[str, float]) -> Scores:
    leaves = masks.leaf_paths(mask)
    names = [form.names(path) for path, form in zip(leaves, forms, strict=True)]
    known = dict.fromkeys(itertools.chain(*names))
    for path in known | densities:
        if path not in densities or path not in known:
            raise ValueError(
                f"densities: leaf {path!r} has no density."
                if path in known
                else f"densities: {path!r} is no prunable leaf. They are: {', '.join(known)}."
            )
    # A density of 0 gets scores below all others, yet not 0, which would say that nothing is known.
    wanted = [
        max(densities[name], 1e-30) * form.size
        for form, of_leaf in zip(forms, names, strict=True)
        for name in of_leaf
    ]
    layers_of = [
        list(form.by_layer(leaf)) if form.stacked else [leaf]
        for form, leaf in zip(forms, leaves.values(), strict=True)
    ]
    scored = iter(_layer_scores(key, list(itertools.chain(*layers_of)), wanted))
    scores = [
        form.restore_layers(jnp.stack([next(scored) for _ in layers]))
        if form.stacked
        else next(scored)
        for form, layers in zip(forms, layers_of, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(mask), scores)


@jax.jit
def _layer_scores(key: Key, leaves: list[jax.Array], wanted: list[float]) -> list[jax.Array]:
    """Returns, in each layer, the wanted number of weights over rank + 1/2 in a random order.

    One sort ranks all layers: XLA takes about a second to compile a sort of each shape.
    """
    sizes = [leaf.size for leaf in leaves]
    starts = np.cumsum([0, *sizes[:-1]])
    layer = jnp.concatenate([jnp.full(size, i) for i, size in enumerate(sizes)])
    kept = jnp.concatenate([leaf.ravel() for leaf in leaves])
    # The kept ones come first in the random order, so that rounds nest.
    order = jnp.lexsort((jax.random.bits(key, kept.shape), ~kept, layer))
    places = jnp.arange(len(order), dtype=jnp.int32)
    ranks = jnp.zeros_like(places).at[order].set(places)
    return [
        # Integers until here: float32 has gaps above 16 million weights.
        number / (ranks[start : start + leaf.size].reshape(leaf.shape) - start + 0.5) * leaf
        for leaf, start, number in zip(leaves, starts.tolist(), wanted, strict=True)
    ]
