"""Numbers in the place of leaves that are zero at initialisation, for scoring."""

from __future__ import annotations

from ntksap_jax import _zeros
from ntksap_jax._draws import typed_key
from ntksap_jax.criteria import _batches
from ntksap_jax.types import Key, Network, Params


def fill_zeros(key: Key, params: Params, network: Network) -> Params:
    """Returns params to score in the place of ones with factors that are all zero. Traceable.

    Behind a zero scale at the end of a residual branch, a zero head, gate or adapter no derivative
    arrives, and criteria that score the given params cannot rank what is there. So give them these,
    and train the params that you have:

        mask, _ = prune(key, criteria.fill_zeros(key, params, network), score, density=0.05)

    NTK-SAP with weights of its own, and `fresh_weights`, do so by themselves.

    Args:
        key: PRNG key.
        params: the params; they are left as they are.
        network: their model, whose operations tell factors from biases.

    Returns:
        The params, in which leaves that were all zero are N(0, 2/fan-in) if they are multiplied
        with the features in an inner product, and 1 if entry by entry. Whatever is not a factor,
        such as a bias, stays zero.

    Raises:
        TypeError: not a network, or not a PRNG key.

    >>> import jax, jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> apply = lambda p, x: x + p["scale"] * (x @ p["kernel"] + p["bias"])
    >>> params = {"scale": jnp.zeros(2), "kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    >>> network = nts.plain(lambda key: params, apply, (2,))
    >>> filled = fill_zeros(jax.random.key(0), params, network)
    >>> filled["scale"].tolist(), filled["bias"].tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    _batches.check_network(network)
    return _zeros.fill(typed_key(key), params, _zeros.of_params(network, params))
