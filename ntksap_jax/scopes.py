"""Scopes: what one threshold ranges over, and which weights live or die together.

A kernel's last axis is its outputs and the one before it its inputs, as in Flax: `(in, out)` for a
dense layer, `(height, width, in, out)` for a convolution. The axes in front are its positions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ntksap_jax import masks
from ntksap_jax.types import Mask


@dataclasses.dataclass(frozen=True)
class NofM:
    """Of every `m` consecutive weights along the inputs exactly `n` stay, such as 2:4.

    Each kernel position and each output has groups of its own. In a search of many rounds the
    intermediate ones keep round(d · m) of every m; the last density must be n / m.

    Source: Mishra et al., "Accelerating sparse deep neural networks", 2021 (2:4).

    Attributes:
        n: how many stay.
        m: out of how many; divides the number of inputs of every prunable leaf.

    Raises:
        ValueError: unless 1 <= n <= m.

    >>> import jax.numpy as jnp
    >>> from ntksap_jax import selection
    >>> scores, mask = {"w": jnp.array([[1.0], [4.0], [3.0], [2.0]])}, {"w": jnp.ones((4, 1), bool)}
    >>> selection.select(scores, mask, density=0.5, scope=NofM(2, 4))["w"].ravel().tolist()
    [False, True, True, False]
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (_is_size(self.n) and _is_size(self.m)) or self.n > self.m:
            raise ValueError(f"scope: got {self}, expected integers with 1 <= n <= m, as in 2:4.")


@dataclasses.dataclass(frozen=True)
class Block:
    """Blocks of `inputs` x `outputs` weights live or die together, by one global threshold.

    A block's score is the sum of the scores of those of its weights that are left. Blocks are taken
    from the best on, as long as no more than round(d · N) weights are kept; so the number kept
    falls short of that by less than one block. (The first block that does not fit ends it: a worse
    one is never kept for being smaller.)

    `None` takes the whole axis, and with it all kernel positions: `Block(None, 1)` is an output
    channel (a whole filter), `Block(1, None)` an input channel. With two numbers each position of a
    convolution has blocks of its own.

    Attributes:
        inputs: number of inputs, which divides that of every prunable leaf; `None`: all.
        outputs: number of outputs, likewise.

    Raises:
        ValueError: a size that is no positive integer.

    >>> import jax.numpy as jnp
    >>> from ntksap_jax import selection
    >>> scores, mask = {"w": jnp.array([[1.0, 4.0], [3.0, 2.0]])}, {"w": jnp.ones((2, 2), bool)}
    >>> selection.select(scores, mask, density=0.5, scope=Block(None, 1))["w"].tolist()
    [[False, True], [False, True]]
    """

    inputs: int | None
    outputs: int | None

    def __post_init__(self) -> None:
        if not all(size is None or _is_size(size) for size in (self.inputs, self.outputs)):
            raise ValueError(
                f"scope: got {self}, expected positive integers, or None for the whole axis."
            )


Scope = Literal["global", "layer", "filter"] | NofM | Block
"""What one threshold ranges over: all prunable leaves together, each leaf by itself, each filter
(output channel) by itself, each group of m weights, or all blocks together."""


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def check(scope: Scope, mask: Mask) -> None:
    """Raises unless every prunable leaf can be divided as the scope says.

    Args:
        scope: what one threshold ranges over.
        mask: its leaves' shapes are enough.

    Raises:
        ValueError: an unknown scope, or a leaf that it does not divide; the leaf is named.

    >>> import jax.numpy as jnp
    >>> check(NofM(2, 4), {"stem": jnp.ones((3, 8), bool)})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: scope: NofM(n=2, m=4) does not fit leaf 'stem', whose 3 inputs are no multiple of...
    """
    if isinstance(scope, NofM):
        sizes: dict[str, int | None] = {"inputs": scope.m}
    elif isinstance(scope, Block):
        sizes = {"inputs": scope.inputs, "outputs": scope.outputs}
    elif isinstance(scope, str) and scope in ("global", "layer", "filter"):
        sizes = {}
    else:
        raise ValueError(
            f"scope: got {scope!r}, expected 'global', 'layer', 'filter', selection.NofM(n, m) or "
            "selection.Block(inputs, outputs)."
        )
    if scope in ("global", "layer"):
        return
    advice = "Leave it out with masks.create(params, exclude=...), or choose another scope."
    for path, leaf in masks.leaf_paths(mask).items():
        if leaf.ndim < 2:
            raise ValueError(
                f"scope: {scope!r} does not fit leaf {path!r} of shape {leaf.shape}; expected two "
                f"axes or more, the last two inputs and outputs. {advice}"
            )
        found = {"inputs": leaf.shape[-2], "outputs": leaf.shape[-1]}
        for axis, size in sizes.items():
            if size is not None and found[axis] % size:
                raise ValueError(
                    f"scope: {scope!r} does not fit leaf {path!r}, whose {found[axis]} {axis} are "
                    f"no multiple of {size}. {advice}"
                )


def grouped_shape(scope: Scope, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in which axis -2 runs over a group, for scopes with a threshold a group.

    Args:
        scope: `"layer"`, `"filter"` or a `NofM`.
        shape: that of the leaf.

    >>> shape = (3, 3, 8, 16)
    >>> [grouped_shape(scope, shape) for scope in ("layer", "filter", NofM(2, 4))]
    [(1152, 1), (72, 16), (18, 4, 16)]
    """
    size = math.prod(shape)
    if scope == "layer":
        return size, 1
    outputs = shape[-1]
    if scope == "filter":
        return size // outputs, outputs
    if isinstance(scope, NofM):
        return size // (scope.m * outputs), scope.m, outputs
    raise ValueError(f"scope: {scope!r} has no threshold a group.")


def largest_block(block: Block, mask: Mask) -> tuple[str, int]:
    """Returns the path of the leaf that has the largest blocks, and how many weights they have.

    Args:
        block: the scope.
        mask: its leaves' shapes are enough.

    >>> import jax.numpy as jnp
    >>> largest_block(Block(None, 1), {"a": jnp.ones((3, 3, 2, 8)), "b": jnp.ones((8, 4))})
    ('a', 18)
    """
    sizes = {}
    for path, leaf in masks.leaf_paths(mask).items():
        split = _split(block, leaf.shape)
        sizes[path] = math.prod(split[axis] for axis in _within(block))
    path = max(sizes, key=lambda path: sizes[path])
    return path, sizes[path]


def sum_blocks(block: Block, leaf: jax.Array) -> jax.Array:
    """Sums a leaf over each block; the axes that were summed over remain, with length 1.

    Args:
        block: the scope.
        leaf: array (..., inputs, outputs).

    >>> import jax.numpy as jnp
    >>> sum_blocks(Block(2, 1), jnp.ones((4, 3))).ravel().tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    return jnp.sum(leaf.reshape(_split(block, leaf.shape)), axis=_within(block), keepdims=True)


def spread_blocks(block: Block, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Gives every weight of a leaf the value of its block.

    Args:
        block: the scope.
        values: a value for each block, in the shape that `sum_blocks` returns.
        shape: that of the leaf.

    >>> import jax.numpy as jnp
    >>> spread_blocks(Block(2, 1), jnp.array([5, 6]).reshape(1, 1, 1, 2, 1), (2, 2)).tolist()
    [[5, 6], [5, 6]]
    """
    return jnp.broadcast_to(values, _split(block, shape)).reshape(shape)


def _split(block: Block, shape: tuple[int, ...]) -> tuple[int, ...]:
    """(positions, blocks of inputs, inputs in a block, blocks of outputs, outputs in a block)."""
    *positions, inputs, outputs = shape
    size_in, size_out = block.inputs or inputs, block.outputs or outputs
    return math.prod(positions), inputs // size_in, size_in, outputs // size_out, size_out


def _within(block: Block) -> tuple[int, ...]:
    """The axes of `_split` that lie within a block."""
    return (0, 2, 4) if block.inputs is None or block.outputs is None else (2, 4)
