"""Gram matrices of filters, and TPP's penalty of them, for one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

GramPenalty = Callable[[jax.Array, Any], jax.Array]
"""`gram(kernel, keep) -> penalty` of one layer."""


def gram_penalty(
    kernel: jax.Array, keep: Any, *, normalise: Literal["mean", "sum"] = "mean"
) -> jax.Array:
    r"""Penalises inner products of pruned filters with all filters, themselves included.

        ‖G ⊙ (1 - k kᵀ)‖² / N²,    G = W Wᵀ the Gram matrix of the N filters.

    The gradient is 4/N² ((1 - k kᵀ) ∘ G) W: kept filters get some from their pruned partners.

    Args:
        kernel: (..., N), filters along the last axis.
        keep: boolean (N,), the k above.
        normalise: `"mean"` over the N² entries (the released code), or `"sum"` (the paper, Eq. 3).

    Returns:
        A scalar, in float32 at least.

    Raises:
        ValueError: shapes that do not fit, an unknown normalisation.

    >>> import jax.numpy as jnp
    >>> kernel = jnp.array([[1.0, 3.0, 0.5], [2.0, -1.0, 0.25]])
    >>> keep = jnp.array([False, True, True])
    >>> float(gram_penalty(kernel, keep, normalise="sum"))  # 5² + 2 (1² + 1²)
    29.0
    """
    if normalise not in ("mean", "sum"):
        raise ValueError(f"normalise: got {normalise!r}, expected 'mean' or 'sum'.")
    gram = gram_matrix(kernel, keep)
    keep = jnp.asarray(keep)
    total = jnp.sum(jnp.where(keep[:, None] & keep, 0, gram) ** 2)
    return total / gram.size if normalise == "mean" else total


def gram_matrix(kernel: jax.Array, keep: Any) -> jax.Array:
    """Returns W Wᵀ (N, N) of the filters of a kernel (..., N), at full precision.

    Raises:
        ValueError: a `keep` that is not one boolean per filter.
    """
    if jnp.shape(keep) != kernel.shape[-1:]:
        raise ValueError(
            f"keep: has shape {jnp.shape(keep)}, expected {kernel.shape[-1:]}, one boolean for "
            f"each filter of a kernel {kernel.shape}."
        )
    columns = kernel.reshape(-1, kernel.shape[-1])
    columns = columns.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    return jnp.matmul(columns.T, columns, precision="highest")
