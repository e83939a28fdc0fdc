"""The types that all modules share: aliases, and the few records that cross module borders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Key = jax.Array
"""A PRNG key, typed (`jax.random.key`) or legacy (`jax.random.PRNGKey`)."""

Params = Any
"""Pytree of arrays, as the model made it."""

Mask = Any
"""Pytree shaped like the params: a boolean array where the leaf is prunable, `None` elsewhere.

`True` keeps the weight. The same shape with numbers in place of booleans is a relaxed mask, which
is what gradients with respect to a mask are taken at.
"""

Scores = Any
"""Pytree shaped like a mask: a floating-point array per prunable leaf; higher means keep."""

Axes = Mapping[str, str]
"""What the axes of leaves mean, a letter for each axis, by path or by pattern: see `axes`."""

Inputs = Any
"""What the network takes: an array with the examples along axis 0, or a dict or tuple of them.

A model of linen or nnx is called with the entries of a dict by name, with those of a tuple one
after the other.
"""

Batch = Any
"""The data that a criterion may need: `(inputs, labels)`; `None` where it needs none."""

Metrics = dict[str, jax.Array]
"""Scalars that a criterion reports in addition to its scores, such as the estimated trace."""

ApplyFn = Callable[[Params, Inputs], Any]
"""`apply(params, inputs) -> outputs`, pure."""

ScoreFn = Callable[[Key, Params, Mask, Batch], tuple[Scores, Metrics]]
"""A criterion: `score(key, params, mask, batch) -> (scores, metrics)`, pure.

Pruned entries score 0, except with FORCE, where they may come back.
"""


class Network(NamedTuple):
    """A model as pure functions; `linen`, `nnx` and `plain` make one.

    Attributes:
        init: `init(key) -> params`, drawing fresh weights; compiled.
        apply: `apply(params, inputs) -> outputs`. Normalisation uses the batch's own statistics and
            holds them constant under differentiation.
        apply_train: the same values, but derivatives flow through the batch's statistics, as they
            do in training.
        apply_running: normalises with the running statistics that the network came with, or with
            those of a network before training (mean 0, variance 1).
        calibrate: `calibrate(params, inputs, *, unbiased) -> apply`: takes the statistics of
            `inputs` under `params` and returns an `ApplyFn` that normalises with them, whatever
            params it is then given. For a network without batch statistics it returns `apply`.
            `unbiased` stores the n/(n - 1) variance, as PyTorch's running statistics do.
        input_shape: shape of one example, without the batch axis. With several inputs, a dict or
            tuple of shapes.
        input_dtype: type of the inputs, in the same form.
        several_outputs: describes the outputs if there are several and `output_fn` chose none, and
            is empty otherwise. Criteria refuse such a network unless they are told what to look at.

    >>> import jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> network = nts.plain(lambda key: {"w": jnp.ones((2, 1))}, lambda p, x: x @ p["w"], (2,))
    >>> network.apply(network.init(jax.random.key(0)), jnp.array([[3.0, 4.0]])).tolist()
    [[7.0]]
    """

    init: Callable[[Key], Params]
    apply: ApplyFn
    apply_train: ApplyFn
    apply_running: ApplyFn
    calibrate: Callable[..., ApplyFn]
    input_shape: Any
    input_dtype: Any
    several_outputs: str = ""

    def examples(self, count: Any) -> Inputs:
        """Returns the shapes and types of the inputs of `count` examples."""
        return jax.tree.map(
            lambda dtype, shape: jax.ShapeDtypeStruct((count, *shape), dtype),
            self.input_dtype,
            self.input_shape,
        )


class RoundInfo(NamedTuple):
    """What one round of the search did, as Python numbers.

    Attributes:
        round: number of the round, from 1.
        density: fraction of prunable weights kept after the round.
        num_kept: number of prunable weights kept after the round.
        threshold: lowest score that was kept (with one threshold per layer: the lowest of all).
        layer_densities: fraction kept in each prunable leaf, by path.
        metrics: the criterion's own scalars, such as the estimated `"trace"`.
        seconds: wall-clock time of the round; the first one includes compilation.
        notes: what the search has to say once, in the first round done here, such as which leaves
            the criterion did not score as they are initialised, or what looks like a kernel and
            stays dense, with the `include=` that prunes it.

    >>> import jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> params = {"kernel": jnp.array([[3.0, -1.0]])}
    >>> _, history = nts.prune(jax.random.key(0), params, nts.criteria.magnitude(), schedule=[0.5])
    >>> history[0].density, history[0].threshold, history[0].layer_densities
    (0.5, 3.0, {'kernel': 0.5})
    """

    round: int
    density: float
    num_kept: int
    threshold: float
    layer_densities: dict[str, float]
    metrics: dict[str, float]
    seconds: float
    notes: tuple[str, ...] = ()


class ConstrainToMaskState(NamedTuple):
    """The optimiser state of `ntksap_jax.constrain_to_mask`.

    Attributes:
        mask: the mask, so that a checkpoint of the state holds it too.
        inner: the state of the wrapped optimiser.

    >>> import jax.numpy as jnp, optax
    >>> import ntksap_jax as nts
    >>> optimizer = nts.constrain_to_mask(optax.sgd(0.1), {"kernel": jnp.array([True, False])})
    >>> optimizer.init({"kernel": jnp.ones(2)}).mask
    {'kernel': Array([ True, False], dtype=bool)}
    """

    mask: Mask
    inner: Any
