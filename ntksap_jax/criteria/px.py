r"""PX: keep the connections that matter most to an upper bound of the NTK's trace, on data.

    s = θ² ∂/∂θ² Σ_n Σ_k  z₁(x_n)_k z₂_k,

    z₁: inputs x², every weight 1, ReLUs open where they are for x (how data activates the paths);
    z₂: inputs 1, every weight θ², ReLUs left out (the path kernel: what weights make of the paths).

tr Θ = ‖J_v J_θ‖² ≤ ‖J_v‖² ‖J_θ‖² with v the values of all paths; z₁ z₂ is the bound. All its terms
are positive, so that no layer collapses in a search of many rounds: use 100.

Source: Iurada, Ciccone, Tommasi, "Finding lottery tickets in vision models via data-driven spectral
foresight pruning", CVPR 2024, as corrected in the released code in 2025 (squared inputs,
weights really 1, class-balanced data). Needs weights and data, no labels.

Differences: their code exempts layers whose *name* holds "bn" or "fc" from the substitution; here
every weight takes part, the classifier's too, and normalisation by stored statistics counts as the
weight that it is, scale over deviation. Biases and running means, on which no path from an input
begins, are left out (theirs normalise z₁ and z₂ by their own batch statistics).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax import _networks, _paths, _placement, _zeros, masks
from ntksap_jax._precision import scoring_precision
from ntksap_jax.criteria import _batches
from ntksap_jax.types import Batch, Inputs, Key, Mask, Metrics, Network, Params, ScoreFn, Scores


def px(network: Network, *, micro_batch_size: int | None = None) -> ScoreFn:
    """Makes the PX criterion on the given weights and the inputs of the batch.

    Args:
        network: the model, as for `synflow`; for pretrained weights, made with their running
            statistics: `ntksap_jax.linen(..., batch_stats=...)`.
        micro_batch_size: examples at once, to save memory; the score is that of the whole batch.

    Returns:
        The criterion; it ignores the key and the labels.

    Raises:
        ValueError, TypeError: an option out of range. When called: no batch; an operation that no
            path goes through.

    >>> import jax, jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> apply = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"]
    >>> params = {"w": jnp.array([[1.0, -2.0]]), "v": jnp.array([[1.0], [3.0]])}
    >>> network = nts.plain(lambda key: params, apply, (1,))
    >>> batch = (jnp.array([[1.0], [3.0]]), None)
    >>> scores, _ = px(network)(None, params, masks.create(params, include="w|v"), batch)
    >>> (scores["w"] / scores["w"][0, 0]).tolist()  # (1·1)², (-2·3)²: all paths, gated or not
    [[1.0, 36.0]]
    """
    _batches.check_network(network)
    _networks.check_one_output(network)
    _batches.check_is_real(network)
    _batches.check_micro_batch_size(micro_batch_size)

    @jax.jit
    def activation(params: Params, mask: Mask, inputs: Inputs) -> Any:
        """Σ_n z₁(x_n) with its power of two."""
        masked = masks.apply(mask, params)
        maps = iter(_paths.gates(network.apply_running, masked, inputs))
        # Integer images too: their squares would wrap around.
        squares = jax.tree.map(
            lambda x: jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))), inputs
        )
        outputs = _paths.evaluate(
            network.apply_running,
            masked,
            squares,
            factor=lambda constant: (constant != 0).astype(constant.dtype),
            gate=lambda values: values * next(maps),
        )
        return _each(lambda z: _paths.Path(jnp.sum(z.array, axis=0), z.exponent), outputs)

    def path_kernel(params: Params) -> Any:
        """z₂ with its power of two."""
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), network.examples(1))
        ones = _placement.vary_like(ones, params)
        return _paths.evaluate(network.apply_running, params, ones, factor=jnp.square)

    @jax.jit
    def scores_of(params: Params, mask: Mask, activations: Any) -> Scores:
        weights = _batches.kept_weights(mask, params)

        def bound(weights: Params) -> jax.Array:
            kernel = path_kernel(masks.merge(weights, params))
            return _paths.total(_each(_times, kernel, activations))

        gradients = jax.grad(bound)(weights)
        return masks.map_prunable(lambda m, w, g: jnp.abs(w * g) * m, mask, weights, gradients)

    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        del key
        masks.check(mask, params)
        _batches.check_batch(network, batch, labels=False, why="PX looks at real inputs")
        # Of the network's own type of inputs, which squares are not: so the first complaint is
        # about what the network does with tokens, not about squares of them.
        jax.eval_shape(path_kernel, params)
        total = None
        with scoring_precision():
            for part in _batches.micro_batches(batch[0], micro_batch_size):
                part_total = activation(params, mask, part)
                total = part_total if total is None else _each(_plus, total, part_total)
            return scores_of(params, mask, total), {}

    return _zeros.says(score, network)


def _each(fn: Any, *trees: Any) -> Any:
    return jax.tree.map(fn, *trees, is_leaf=lambda node: isinstance(node, _paths.Path))


def _times(kernel: _paths.Path, activation: _paths.Path) -> _paths.Path:
    return _paths.Path(kernel.array * activation.array, kernel.exponent + activation.exponent)


def _plus(left: _paths.Path, right: _paths.Path) -> _paths.Path:
    largest = jnp.maximum(left.exponent, right.exponent)
    parts = (_paths.scale(path.array, path.exponent - largest) for path in (left, right))
    return _paths.Path(sum(parts, jnp.zeros(())), largest)
