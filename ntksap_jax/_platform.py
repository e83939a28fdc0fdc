"""A warning for processes whose CPU backend would compute wrong numbers.

From jaxlib 0.10.2 on, XLA hands some products and reductions on CPU to the YNNPACK library. Two of
the patterns that it takes come out wrong, silently:

- the sum of squares of a vmapped matrix-vector product, `jit(vmap(lambda r: sum((M @ r) ** 2)))`:
  jaxlib 0.10.2 (jax-ml/jax#39103);
- a batched matrix product with a broadcast operand, multiplied and summed, which is what reverse
  mode makes of `sum(f(E))`: every jaxlib from 0.10.2 to 0.12.0.1.

Trace estimators consist of such expressions. Both are right with YNNPACK off. To see whether a new
jaxlib is still affected, run their tests in `tests/test_platform.py` without the flag.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import warnings

import jax

YNNPACK_FLAG = "--xla_cpu_experimental_ynn_fusion_type"

_FIRST_AFFECTED = (0, 10, 2)
_FIRST_UNKNOWN = (0, 13, 0)


def miscompiles(jaxlib_version: str) -> bool:
    """Whether this jaxlib's CPU backend is known to compute wrong numbers by default."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", jaxlib_version)
    if numbers is None:
        return False
    return _FIRST_AFFECTED <= tuple(map(int, numbers.groups())) < _FIRST_UNKNOWN


@functools.cache  # once a process
def warn_if_miscompiling() -> None:
    """Warns, once, if the default backend is a CPU that computes wrong numbers.

    Starts the JAX backend. So it belongs where the library is about to compute, not where it is
    imported: users call `jax.distributed.initialize` or set `jax_num_cpu_devices` after that.
    """
    version = importlib.metadata.version("jaxlib")
    if not miscompiles(version) or YNNPACK_FLAG in os.environ.get("XLA_FLAGS", ""):
        return
    if jax.default_backend() != "cpu":
        return
    warnings.warn(
        f"jaxlib {version} silently computes wrong numbers on CPU, in expressions that pruning "
        f"scores consist of (github.com/jax-ml/jax/issues/39103). Before JAX starts, set the "
        f"environment variable XLA_FLAGS='{YNNPACK_FLAG}=' (nothing after the equals sign), or "
        f"append that to the flags you set already.",
        RuntimeWarning,
        stacklevel=3,
    )
