r"""SynFlow: keep the connections that carry most of the network's total path strength.

    R = Σ_paths Π |θ|,    s = |θ ∂R/∂θ|,    for `synflow_l2` with θ² in the place of |θ|.

R is the sum of the outputs for inputs of all ones and weights |θ|. Scores add up to R in every
layer that all paths pass ("conservation"), which keeps a search of many rounds from pruning a whole
layer before its last weights: use 100 rounds.

Source: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively
conserving synaptic flow", NeurIPS 2020, Algorithm 1, in evaluation mode (batch statistics
as stored: mean 0 and variance 1 before training). `synflow_l2`: Gebhart, Saxena, Schrater, "A
unified paths perspective for pruning at initialization", 2021. Needs weights only.

R overflows float32 in deep networks. A common factor changes no ranking, so every activation is
kept apart from its power of two (`ntksap_jax._paths`): scores come out as those of R over some
constant, exact at any depth. Biases and running means, on which no path from an input begins, are
left out; before training they are 0. (The released code adds their absolute values.)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ntksap_jax import _networks, _paths, _placement, _zeros, masks
from ntksap_jax._precision import scoring_precision
from ntksap_jax.criteria import _batches
from ntksap_jax.types import Batch, Key, Mask, Metrics, Network, Params, ScoreFn, Scores


def synflow(network: Network) -> ScoreFn:
    """Makes the SynFlow criterion: |θ| ∂R/∂|θ|, R the sum over paths of the products of |θ|.

    Args:
        network: the model, from `ntksap_jax.linen`, `nnx` or `plain`: convolutions, dense layers,
            pools, shortcuts, ReLU-like activations and normalisation by stored statistics.

    Returns:
        The criterion; it ignores the key and the batch.

    Raises:
        TypeError: not a network.
        ValueError: when called: an operation that no path goes through, such as attention.

    >>> import jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> params = {"w": jnp.array([[1.0, -2.0]]), "v": jnp.array([[1.0], [3.0]])}
    >>> network = nts.plain(lambda key: params, lambda p, x: x @ p["w"] @ p["v"], (1,))
    >>> scores, _ = synflow(network)(None, params, masks.create(params, include="w|v"), None)
    >>> (scores["w"] / scores["w"][0, 0]).tolist(), (scores["v"] / scores["v"][0]).tolist()
    ([[1.0, 6.0]], [[1.0], [6.0]])
    """
    return _path_strength(network, jnp.abs)


def synflow_l2(network: Network) -> ScoreFn:
    """Makes the SynFlow-L2 criterion: θ² ∂R/∂θ², R the sum over paths of the products of θ².

    Args:
        network: as for `synflow`.

    Returns:
        The criterion; it ignores the key and the batch.

    >>> import jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> params = {"w": jnp.array([[1.0, -2.0]]), "v": jnp.array([[1.0], [3.0]])}
    >>> network = nts.plain(lambda key: params, lambda p, x: x @ p["w"] @ p["v"], (1,))
    >>> scores, _ = synflow_l2(network)(None, params, masks.create(params, include="w|v"), None)
    >>> (scores["w"] / scores["w"][0, 0]).tolist()
    [[1.0, 36.0]]
    """
    return _path_strength(network, jnp.square)


def _path_strength(network: Network, factor: Callable[[jax.Array], jax.Array]) -> ScoreFn:
    _batches.check_network(network)
    _networks.check_one_output(network)
    _batches.check_is_real(network)

    @jax.jit
    def scores_of(params: Params, mask: Mask) -> Scores:
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), network.examples(1))
        ones = _placement.vary_like(ones, params)
        weights = _batches.kept_weights(mask, params)

        def strength(weights: Params) -> jax.Array:
            merged = masks.merge(weights, params)
            return _paths.total(_paths.evaluate(network.apply_running, merged, ones, factor=factor))

        gradients = jax.grad(strength)(weights)
        return masks.map_prunable(lambda m, w, g: jnp.abs(w * g) * m, mask, weights, gradients)

    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        del key, batch
        masks.check(mask, params)
        with scoring_precision():
            return scores_of(params, mask), {}

    return _zeros.says(score, network)
