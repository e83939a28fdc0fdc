"""The precision of the products in a score."""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax


def scoring_precision() -> AbstractContextManager[None]:
    """The context in which criteria compute: float32, unless the caller has chosen otherwise.

    TPUs and some GPUs round the factors of products to bfloat16 or tf32 by default. Differences of
    nearly equal outputs do not survive that, and rankings suffer. But float32 costs a TPU six
    passes instead of one, and its compiler as many times the time: whoever sets
    `jax.default_matmul_precision` around the call, or `JAX_DEFAULT_MATMUL_PRECISION`, gets that.

    >>> with jax.default_matmul_precision("high"), scoring_precision():
    ...     print(jax.config.jax_default_matmul_precision)
    high
    """
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return jax.default_matmul_precision(chosen or "highest")
