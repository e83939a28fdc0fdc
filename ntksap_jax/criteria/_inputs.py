"""The inputs of a sample of NTK-SAP: noise, data, or what functions draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ntksap_jax import masks
from ntksap_jax._draws import random_like
from ntksap_jax.types import Inputs, Key, Network

Draw = Callable[[Key, int], Any]
"""`draw(key, batch_size)` returns an array with that many examples."""

Source = Literal["noise", "data"] | Draw | Mapping[str, Draw]
"""Where inputs come from; see `criteria.ntk_sap`."""


def draw(network: Network, source: Any, key: Key, size: int) -> Inputs:
    """Draws the inputs of a sample.

    Args:
        network: the model.
        source: `"noise"`, a function, or functions by name of the input.
        key: PRNG key.
        size: number of examples.

    Raises:
        ValueError: a function draws arrays with another number of axes, or of examples, where there
            are several inputs: their sums would be broadcast.
    """
    if callable(source):
        return _checked(network, source(key, size), size)
    noise = network.examples(size)
    drawn = {}
    if source != "noise":
        keys = jax.random.split(key, len(source) + 1)
        drawn = {name: source[name](k, size) for name, k in zip(sorted(source), keys, strict=False)}
        noise = {name: shape for name, shape in noise.items() if name not in source}
        key = keys[-1]
    gaussian = random_like(key, noise) if jax.tree.leaves(noise) else noise
    return _checked(network, {**gaussian, **drawn}, size) if drawn else gaussian


def _checked(network: Network, drawn: Inputs, size: int) -> Inputs:
    if not isinstance(network.input_dtype, (dict, tuple)):
        return drawn
    wanted, given = masks.leaf_paths(network.examples(size)), masks.leaf_paths(drawn)
    for path in wanted | given:
        want, got = (tree[path].shape if path in tree else None for tree in (wanted, given))
        if want is not None and got is not None and got[:1] == want[:1]:
            # Lengths may vary; noise in the place of integers may be embedded.
            embedded = not _is_floating(wanted[path].dtype) and _is_floating(given[path].dtype)
            if len(got) in (len(want), len(want) + embedded):
                continue
        raise ValueError(f"inputs: {path!r} is drawn with shape {got}, expected {want}.")
    return drawn


def check(network: Network, source: Any) -> None:
    """Raises a ValueError unless inputs can be drawn so.

    Args:
        network: the model.
        source: see `draw`, or `"data"`.
    """
    if callable(source) or (isinstance(source, str) and source == "data"):
        return
    several = isinstance(network.input_dtype, dict)
    if isinstance(source, Mapping) and several and all(map(callable, source.values())):
        if unknown := sorted(set(source) - set(network.input_dtype)):
            raise ValueError(
                f"inputs: the network takes no {unknown[0]!r}; its inputs are "
                f"{', '.join(network.input_dtype)}."
            )
    elif not (isinstance(source, str) and source == "noise"):
        raise ValueError(
            f"inputs: got {source!r}, expected 'noise', 'data' or a function"
            + (", or functions by name of the input." if several else ".")
        )
    if not several and not isinstance(network.input_dtype, tuple):
        if not _is_floating(network.input_dtype):
            raise ValueError(
                f"inputs: 'noise' is Gaussian, but the network takes {network.input_dtype}. Draw "
                "such inputs by a function: inputs=lambda key, n: jax.random.randint(key, (n, "
                "length), 0, vocabulary). Or put the noise after the embedding: inputs=lambda key, "
                "n: jax.random.normal(key, (n, length, features)) / features**0.5, which nn.Embed "
                "and nnx.Embed pass on. Or inputs='data'."
            )
        return
    given = source if isinstance(source, Mapping) else {}
    names = network.input_dtype if several else dict(enumerate(network.input_dtype))
    for name, dtype in names.items():
        if name not in given and not all(map(_is_floating, jax.tree.leaves(dtype))):
            way_out = (
                f"inputs={{{name!r}: lambda key, n: ...}}; floating-point ones stay noise"
                if several
                else "a function (key, n) that returns all inputs"
            )
            raise ValueError(
                f"inputs: 'noise' is Gaussian, but the network's input {name!r} is {dtype}. Draw "
                f"it by {way_out}. Or inputs='data'."
            )


def _is_floating(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))
