"""Noise after the embedding: how models of integer inputs take floating-point ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ntksap_jax._networks._checks import ModelError


def is_embedded(inputs: jax.Array, features: int, name: str) -> bool:
    """Whether the inputs of an embedding are embedded already, so that it passes them on.

    Flax refuses floating-point inputs there, so no valid model changes its meaning.

    Args:
        inputs: what the embedding is given.
        features: how many numbers it embeds each integer into.
        name: its path, for the message.

    Raises:
        ValueError: floating-point inputs of another size.
    """
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        return False
    if inputs.shape[-1:] != (features,):
        raise ModelError(
            f"inputs: the embedding {name!r} is given {inputs.dtype} of shape {inputs.shape}. "
            "It takes integers: make the network with dtype=jnp.int32. Or, in their embedding's "
            f"place, floating-point inputs whose last axis is its {features} features, such as "
            f"noise of shape (N, length, {features})."
        )
    return True
