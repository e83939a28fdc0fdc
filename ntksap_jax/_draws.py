"""Random keys and random pytrees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax.types import Key

LARGE = 2**24
"""Numbers from which on an array is drawn in its own shape, so that devices which hold parts of it
draw these only. Smaller ones are drawn as vectors, which XLA compiles much faster on CPU."""


def typed_key(key: Key) -> Key:
    """Returns a PRNG key as a typed one, whose array holds keys and not their words.

    Args:
        key: a single key, typed (`jax.random.key`) or legacy (`jax.random.PRNGKey`).

    Raises:
        TypeError: anything else, such as a seed.
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


def normal(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Draws standard normal numbers, as `jax.random.normal` does, in half the time.

    A block of threefry is two random words, of which `jax.random.bits` makes one; `split` returns
    both. On CPU drawing the weights and the probe of a VGG-16 is a tenth of a sample of its score.

    Args:
        key: PRNG key.
        shape: shape of the result.
        dtype: its type. Others than float32 are left to `jax.random.normal`, as are keys that are
            not threefry's, and arrays of `LARGE` numbers and more.

    Returns:
        Array of shape `shape`.
    """
    key = typed_key(key)
    size = math.prod(shape)
    if size >= LARGE:
        return jax.random.normal(key, shape, dtype)
    if dtype != jnp.float32 or str(jax.random.key_impl(key)) != "threefry2x32" or size < 2:
        return jax.random.normal(key, (size,), dtype).reshape(shape)
    words = jax.random.key_data(jax.random.split(key, (size + 1) // 2))
    bits = jnp.concatenate([words[:, 0], words[:, 1]])[:size]
    # 23 random bits as the mantissa of a number in [1, 2), then uniform in (-1, 1).
    unit = jax.lax.bitcast_convert_type((bits >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(unit * (1 - lowest) + lowest, lowest)
    return (math.sqrt(2) * jax.lax.erf_inv(uniform)).reshape(shape)


def random_like(key: Key, tree: Any, sampler: Callable[..., jax.Array] = normal) -> Any:
    """Draws independent random numbers in the shape of a pytree.

    Leaves are cut from one draw of up to `LARGE` numbers: a random generator takes XLA about a
    second to compile on CPU, and networks have dozens of leaves. Larger ones are drawn by
    themselves, each part on the device that holds it where params are sharded. The numbers depend
    on neither.

    Args:
        key: PRNG key.
        tree: pytree of arrays, or of `jax.ShapeDtypeStruct`, of floating-point types.
        sampler: `sampler(key, shape, dtype)`, such as `normal` or `jax.random.uniform`.

    Returns:
        A pytree of random arrays with the shapes and types of `tree`. Complex ones have such
        numbers as real and as imaginary parts.
    """
    if any(map(jnp.iscomplexobj, jax.tree.leaves(tree))):
        return _complex_like(key, tree, sampler)
    leaves, structure = jax.tree.flatten(tree)
    dtype = jnp.result_type(*leaves)
    groups = _groups([math.prod(leaf.shape) for leaf in leaves])
    keys = [key] if len(groups) == 1 else jax.random.split(key, len(groups))
    drawn = []
    for group_key, group in zip(keys, groups, strict=True):
        drawn += _draw_together(group_key, [leaves[i] for i in group], sampler, dtype)
    return jax.tree.unflatten(structure, drawn)


def _complex_like(key: Key, tree: Any, sampler: Callable[..., jax.Array]) -> Any:
    def parts(leaf: Any) -> Any:
        """The shape of a leaf, or of its two parts."""
        if not jnp.iscomplexobj(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return (jax.ShapeDtypeStruct(leaf.shape, jnp.finfo(leaf.dtype).dtype),) * 2

    leaves, structure = jax.tree.flatten(tree)
    drawn = random_like(key, list(map(parts, leaves)), sampler)
    joined = [jax.lax.complex(*each) if isinstance(each, tuple) else each for each in drawn]
    return jax.tree.unflatten(structure, joined)


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Puts consecutive leaves together whose numbers are drawn at once: up to `LARGE`, or one."""
    groups: list[list[int]] = [[]]
    total = 0
    for i, size in enumerate(sizes):
        if groups[-1] and total + size > LARGE:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += size
    return groups


def _draw_together(
    key: Key, leaves: Sequence[Any], sampler: Callable[..., jax.Array], dtype: Any
) -> list[jax.Array]:
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    if sum(sizes) >= LARGE and len(leaves) == 1:
        return [sampler(key, leaves[0].shape, dtype).astype(leaves[0].dtype)]
    drawn = sampler(key, (sum(sizes),), dtype)
    ends = itertools.accumulate(sizes)
    return [
        drawn[end - size : end].reshape(leaf.shape).astype(leaf.dtype)
        for leaf, size, end in zip(leaves, sizes, ends, strict=True)
    ]
