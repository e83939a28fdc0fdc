"""A pruned network as a program of its own: `jax.export` of its function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.export

from ntksap_jax import masks
from ntksap_jax.types import Inputs, Mask, Network, Params


def export(
    network: Network,
    params: Params | None = None,
    *,
    mask: Mask | None = None,
    platforms: Sequence[str] | None = None,
) -> jax.export.Exported:
    """Exports what a network computes in evaluation, for any number of examples at once.

    The result's `call` runs it; `serialize` makes bytes of it (this needs the package flatbuffers)
    and `jax.export.deserialize` a function again, on other machines and in later versions of JAX,
    without the model's code. With the weights in it, the program is as large as the dense network.
    With the weights as an argument it is small, and `save_packed` stores those in little space.

    Args:
        network: the network. Its running statistics are part of the program, so make it with
            `ntksap_jax.linen(..., batch_stats=...)` after training.
        params: the weights to put into the program; by default they are its first argument.
        mask: the program's weights are those that it keeps, whatever it is given; by default all
            are used as they are.
        platforms: what the program can run on, of `"cpu"`, `"tpu"`, `"cuda"` and `"rocm"`; by
            default what JAX runs on here. The others need not be there.

    Returns:
        `call(inputs)`, or `call(params, inputs)` if no params were given.

    Raises:
        ValueError, TypeError: a mask that does not fit the params; the leaf is named. Or a model
            whose code depends on the number of examples.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> network = nts.linen(nn.Dense(2), (3,))
    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    >>> mask = masks.create(params)
    >>> exported = export(network, params, mask=mask, platforms=("cpu", "tpu"))
    >>> exported.in_avals[0].shape, exported.call(jnp.ones((5, 3))).shape
    ((batch, 3), (5, 2))
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0)) if params is None else params
    if mask is not None:
        masks.check(mask, shapes)
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = network.examples(batch)

    def apply(params: Params, inputs: Inputs) -> Any:
        return network.apply_running(params if mask is None else masks.apply(mask, params), inputs)

    if params is None:
        return jax.export.export(jax.jit(apply), platforms=platforms)(shapes, inputs)
    return jax.export.export(jax.jit(lambda inputs: apply(params, inputs)), platforms=platforms)(
        inputs
    )
