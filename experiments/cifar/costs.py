"""What a network costs to evaluate: floating-point operations, dense and under a mask.

Counted as in TPP's tables: 2 FLOPs for each multiply-add of convolution and dense kernels, per
example; biases, normalisation, activations and pools are free.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ntksap_jax import masks
from ntksap_jax.types import Mask


def flops(model: nn.Module, input_shape: tuple[int, ...], **apply_kwargs: Any) -> dict[str, int]:
    """Counts the FLOPs of each kernel for one example, by tracing the model; nothing is computed.

    Every entry of a kernel is used once at each output position, grouped convolutions included.
    A layer that is called several times counts each time.

    Args:
        model: any linen module built of `nn.Conv` and `nn.Dense`.
        input_shape: shape of one example, without the batch axis.
        **apply_kwargs: passed to the model's call.

    Returns:
        FLOPs by path of the kernel in the params, such as `"block_0/conv1/kernel"`.

    Example:
        >>> flops(nn.Dense(10), (100,))
        {'kernel': 2000}
    """
    counts: dict[str, int] = {}

    def count(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = next_fun(*args, **kwargs)
        module = context.module
        if isinstance(module, nn.Conv | nn.Dense) and context.method_name == "__call__":
            path = "/".join((*module.path, "kernel"))
            positions = math.prod(outputs.shape[1:-1])
            kernel: jax.Array = module.get_variable("params", "kernel")
            counts[path] = counts.get(path, 0) + 2 * kernel.size * positions
        return outputs

    def trace() -> Any:
        return model.init(jax.random.key(0), jnp.zeros((1, *input_shape)), **apply_kwargs)

    with nn.intercept_methods(count):
        jax.eval_shape(trace)
    return counts


def kept_flops(per_kernel: dict[str, int], mask: Mask) -> int:
    """Sums the FLOPs that remain when pruned weights cost nothing.

    That is arithmetic, not time: dense hardware multiplies by the zeros.

    Args:
        per_kernel: result of `flops` for the same model.
        mask: kernels that it does not prune count in full.

    Returns:
        FLOPs for one example.

    Raises:
        ValueError: a pruned leaf that `flops` did not see, so that its cost is unknown.

    Example:
        >>> kept_flops({"kernel": 12}, {"kernel": jnp.array([[True, False, False]]), "bias": None})
        4
    """
    kept = dict(per_kernel)
    for path, keep in masks.leaf_paths(mask).items():
        if path not in per_kernel:
            raise ValueError(
                f"mask: leaf {path!r} is no kernel of an nn.Conv or nn.Dense, so its FLOPs are "
                f"unknown. Expected some of: {', '.join(per_kernel)}."
            )
        kept[path] = per_kernel[path] // keep.size * int(keep.sum())
    return sum(kept.values())
