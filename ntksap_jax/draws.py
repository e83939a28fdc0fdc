"""Random keys and random pytrees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax.types import Key


def typed_key(key: Key) -> Key:
    """Returns a PRNG key as a typed one, whose array holds keys and not their words.

    Args:
        key: a single key, typed (`jax.random.key`) or legacy (`jax.random.PRNGKey`).

    Raises:
        TypeError: anything else, such as a seed.

    >>> import jax
    >>> typed_key(jax.random.PRNGKey(0)) == jax.random.key(0)
    Array(True, dtype=bool)
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
        return key
    if dtype == jnp.uint32 and shape == jax.random.PRNGKey(0).shape:
        return jax.random.wrap_key_data(key)
    raise TypeError(
        f"key: got {type(key).__name__} of dtype {dtype} and shape {shape}, expected one PRNG key: "
        "jax.random.key(seed)."
    )


def random_like(key: Key, tree: Any, sampler: Callable[..., jax.Array] = jax.random.normal) -> Any:
    """Draws independent random numbers in the shape of a pytree.

    All leaves are cut from one draw: a random generator takes XLA about a second to compile on CPU,
    and networks have dozens of leaves. (So it holds all numbers in one array for a moment; a
    network whose params must be sharded wants a draw for each leaf.)

    Args:
        key: PRNG key.
        tree: pytree of arrays, or of `jax.ShapeDtypeStruct`, of floating-point types.
        sampler: `sampler(key, shape, dtype)`, such as `jax.random.normal` or `jax.random.uniform`.

    Returns:
        A pytree of random arrays with the shapes and types of `tree`.

    >>> import jax
    >>> random_like(jax.random.key(0), {"w": jax.ShapeDtypeStruct((2, 3), "float32")})["w"].shape
    (2, 3)
    """
    leaves, structure = jax.tree.flatten(tree)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    drawn = sampler(key, (sum(sizes),), jnp.result_type(*leaves))
    ends = itertools.accumulate(sizes)
    return jax.tree.unflatten(
        structure,
        [
            drawn[end - size : end].reshape(leaf.shape).astype(leaf.dtype)
            for leaf, size, end in zip(leaves, sizes, ends, strict=True)
        ],
    )
