"""The precision of the products in a score."""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax


def scoring_precision() -> AbstractContextManager[None]:
    """The context in which criteria compute: float32, unless the caller has chosen otherwise.

    TPUs and some GPUs round the factors of products to bfloat16 or TF32 by default. Differences of
    nearly equal outputs do not survive that, and rankings suffer. But float32 takes a TPU six
    passes instead of one, and takes its compiler six times as long. A precision that the caller
    sets, by `jax.default_matmul_precision` or `JAX_DEFAULT_MATMUL_PRECISION`, is therefore kept.
    """
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return jax.default_matmul_precision(chosen or "highest")
