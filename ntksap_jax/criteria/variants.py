"""Criteria made of criteria: the score of other weights or inputs, or with its sign reversed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from ntksap_jax import _zeros
from ntksap_jax._draws import random_like, typed_key
from ntksap_jax.criteria import _batches
from ntksap_jax.types import Batch, Key, Mask, Metrics, Network, Params, ScoreFn, Scores


def inverted(score: ScoreFn) -> ScoreFn:
    """Prunes the highest scores first: a sanity check, which should do worse than chance.

    Source: Frankle, Dziugaite, Roy, Carbin, "Pruning neural networks at initialization: why are we
    missing the mark?", ICLR 2021 ("invert").

    Args:
        score: any criterion.

    Returns:
        The criterion with scores -s.

    >>> import jax.numpy as jnp
    >>> from ntksap_jax import criteria
    >>> mask = {"kernel": jnp.array([True, True, False])}
    >>> params = {"kernel": jnp.array([-3.0, 2.0, 7.0])}
    >>> inverted(criteria.magnitude())(None, params, mask, None)[0]["kernel"].tolist()
    [-3.0, -2.0, 0.0]
    """

    @functools.wraps(score)
    def turned(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        scores, metrics = score(key, params, mask, batch)
        return jax.tree.map(jnp.negative, scores), metrics

    return turned


def fresh_weights(score: ScoreFn, network: Network) -> ScoreFn:
    """Scores weights that are drawn anew each time, whatever weights are given.

    Args:
        score: any criterion.
        network: its model; `network.init` draws the weights. Factors that it makes all zero are
            drawn too, as by `ntk_sap`.

    Returns:
        The criterion. (NTK-SAP has this built in, for every one of its samples.)

    Raises:
        ValueError: when called: `network.init` ignores its key.

    >>> import jax, jax.numpy as jnp
    >>> from ntksap_jax import criteria, masks
    >>> import ntksap_jax as nts
    >>> def init(key):
    ...     return {"kernel": jax.random.normal(key, (2, 2))}
    >>> network = nts.plain(init, lambda p, x: x @ p["kernel"], (2,))
    >>> params = {"kernel": jnp.zeros((2, 2))}
    >>> score = fresh_weights(criteria.magnitude(), network)
    >>> scores, _ = score(jax.random.key(0), params, masks.create(params), None)
    >>> bool(jnp.all(scores["kernel"] > 0))
    True
    """
    _batches.check_network(network)
    draws_of = _zeros.of_init(network)

    def fresh_score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        del params
        zeros = draws_of(mask).zeros
        weights_key, score_key = jax.random.split(typed_key(key))
        weights = _zeros.fill(weights_key, network.init(weights_key), zeros)
        return score(score_key, weights, mask, batch)

    return _zeros.says(fresh_score, network, draws_of)


def noise_inputs(score: ScoreFn) -> ScoreFn:
    """Scores on Gaussian noise in the place of the batch's inputs; the labels stay.

    Args:
        score: any criterion.

    Returns:
        The criterion; noise is drawn anew each time.

    >>> import jax, jax.numpy as jnp
    >>> show = lambda key, params, mask, batch: (batch[0].shape, {})
    >>> noise_inputs(show)(jax.random.key(0), None, None, (jnp.ones((4, 3)), None))[0]
    (4, 3)
    """

    @functools.wraps(score)
    def noise_score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        if batch is None:
            raise ValueError(
                "batch: got None, expected (inputs, labels): noise is made like inputs."
            )
        noise_key, score_key = jax.random.split(typed_key(key))
        floats = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
            batch[0],
        )
        return score(score_key, params, mask, (random_like(noise_key, floats), batch[1]))

    return noise_score
