r"""Scores of which every layer has the same sum, so that one threshold compares layers fairly.

    s_j  →  s_j / Σ_i |s_i|,    the sum over the weights i of j's layer.

Why a trace needs it. Let f be homogeneous of degree one in the weights of each layer, as a network
of ReLUs without biases, shortcuts and normalisation is. In T(m) = tr Θ(m) = Σ_k ‖J_k diag(m_k)‖²
a factor c on the mask m_l of layer l comes out as c² in each term (once through the weights in J_k
for k ≠ l, once through diag(m_l) for k = l), so by Euler's theorem

    Σ_{j in l} m_j ∂T/∂m_j = 2 T    for every layer l.

That is SynFlow's conservation: the fewer weights a layer has left, the higher they score, and a
search of many rounds empties no layer. It holds for each draw of ‖Jᵀu‖², but not for what a search
ranks by: absolute values of noisy derivatives add up to more, and most so in large layers. And
where the output of a layer is normalised (degree zero), bypassed by a shortcut or goes through a
softmax, its scores add up to less, however much the layer matters. Division by the sum restores it.
A mean in the place of the sum would not: it gives all layers the same density, and protects none.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from ntksap_jax import _forms, _known_axes, masks
from ntksap_jax.types import Axes, Batch, Key, Mask, Metrics, Params, ScoreFn, Scores

_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def balanced(score: ScoreFn, *, axes: Axes | None = None) -> ScoreFn:
    """Divides the scores of each layer by the sum of their absolute values.

    Where all weights of a layer score alike, a global threshold then keeps about as many weights in
    each layer, as far as it has them: small ones stay dense, as with `erk`. Within a layer
    nothing changes.

    Args:
        score: any criterion; one of which all scores of a layer are zero keeps them so.
        axes: what the axes of leaves mean, where neither a network of the criterion nor names say
            it: see `axes`. Layers in a stack are balanced one by one.

    Returns:
        The criterion, traceable where the given one is, and with its metrics.

    Raises:
        ValueError: when called: a leaf of which it is not known whether it is a stack of layers.

    >>> import jax.numpy as jnp
    >>> from ntksap_jax import criteria
    >>> params = {"a": {"kernel": jnp.array([[3.0, 1.0]])}, "b": {"kernel": jnp.array([[0.1]])}}
    >>> score = balanced(criteria.magnitude())
    >>> scores, _ = score(None, params, masks.create(params), None)
    >>> scores["a"]["kernel"].tolist(), scores["b"]["kernel"].tolist()
    ([[0.75, 0.25]], [[1.0]])
    """

    @functools.cache  # A criterion's network is traced where names do not tell.
    def forms_of(shapes: _Shapes, prunable: tuple[str, ...]) -> tuple[_forms.Form, ...]:
        words = _known_axes.words(score, dict(shapes), prunable, axes, need="nothing")
        leaves = {path: jax.ShapeDtypeStruct(dict(shapes)[path], bool) for path in prunable}
        known = {path: words[path] for path in prunable}
        return tuple(_forms.forms(leaves, known, need="stacks", what="criteria.balanced"))

    @functools.wraps(score)
    def even(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        leaves, prunable = masks.leaf_paths(params), masks.leaf_paths(mask)
        shapes = tuple((path, tuple(leaf.shape)) for path, leaf in (leaves | prunable).items())
        forms = forms_of(shapes, tuple(prunable))
        scores, metrics = score(key, params, mask, batch)
        return _divide(scores, forms=forms), metrics

    if axes is not None:
        even.axes = axes  # type: ignore[attr-defined]
    return even


@functools.partial(jax.jit, static_argnames="forms")
def _divide(scores: Scores, *, forms: tuple[_forms.Form, ...]) -> Scores:
    leaves, structure = jax.tree.flatten(scores)

    def divide(leaf: jax.Array, form: _forms.Form) -> jax.Array:
        layers = form.by_layer(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)))
        total = jnp.sum(jnp.abs(layers), axis=1 if form.stacked else None, keepdims=True)
        shares = layers / jnp.where(total > 0, total, 1)
        return form.restore_layers(shares) if form.stacked else shares

    return jax.tree.unflatten(structure, list(map(divide, leaves, forms)))
