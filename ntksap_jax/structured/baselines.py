r"""What TPP is compared with: orthogonality penalties and growing L2 regularisation.

 - L1: `l1`, `select`, `shrink`, fine-tune.
 - L1 + OrthP: the same, with `trainability.orthp` between shrinking and fine-tuning.
 - KernOrth and OrthConv: `kernel_orthogonality` and `conv_orthogonality`, summed over the layers
   with weight 0.1 and added to the loss, before L1 pruning ("X + L1", 50,000 steps of SGD at rate
   0.001) or while fine-tuning after it ("L1 + X"); `add_penalty` makes that an optimiser.
 - GReg-1: `GREG1`, settings for `tpp.regularise`.
 - From scratch: the shrunk model with fresh weights, `small_model.init`.

Sources: the authors' scripts for "Trainability preserving neural pruning", ICLR 2023; Xie, Xiong,
Pu, "All you need is beyond a good init", CVPR 2017 (KernOrth); Wang, Chen, Chakraborty, Yu,
"Orthogonal convolutional neural networks", CVPR 2020 (OrthConv); Wang, Qin, Zhang, Fu, "Neural
pruning via growing regularization", ICLR 2021 (GReg-1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ntksap_jax.structured import _leaves, tpp
from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.gram import gram_matrix
from ntksap_jax.types import Params

GREG1 = tpp.Settings(gram_weight=0.0, l2=("kernel",), zero_out_interval=None)
"""GReg-1 as `tpp.Settings`: growing L2 on the pruned filters' weights and nothing else.

The authors also stop when every layer's kept filters are a thousand times as large as its pruned
ones (by a moving average): see `tpp.magnitudes`.
"""

ORTHOGONALITY_WEIGHT = 0.1
"""What the authors multiply the sums of `kernel_orthogonality` and `conv_orthogonality` by."""


# -- One layer -----------------------------------------------------------------------------------


def orthogonality_for_pruning(kernel: jax.Array, keep: Any) -> jax.Array:
    r"""Drives kept filters to orthonormal, pruned ones to zero: the mean of (G - diag(k))².

    TPP's ablation, which also regularises products of two kept filters. For `tpp.Settings(gram=)`.

    Args:
        kernel: (..., N), filters along the last axis.
        keep: boolean (N,), the k above.

    Returns:
        A scalar.

    >>> import jax.numpy as jnp
    >>> kernel = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> float(orthogonality_for_pruning(kernel, jnp.array([True, True])))
    2.25
    """
    gram = gram_matrix(kernel, keep)
    return jnp.mean((gram - jnp.diag(jnp.asarray(keep).astype(gram.dtype))) ** 2)


def kernel_orthogonality(kernel: jax.Array) -> jax.Array:
    r"""KernOrth: ‖A - I‖, A the smaller of the Gram matrices W Wᵀ and Wᵀ W.

    The norm is not squared. Its gradient where it is 0 is taken to be 0.

    Args:
        kernel: (..., N), filters along the last axis; W has a row for each.

    Returns:
        A scalar.

    >>> import jax.numpy as jnp
    >>> float(kernel_orthogonality(jnp.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])))
    3.0
    """
    columns = kernel.reshape(-1, kernel.shape[-1])
    smaller = columns if columns.shape[1] < columns.shape[0] else columns.T
    gram = gram_matrix(smaller, jnp.ones(smaller.shape[1], bool))
    return _norm(gram - jnp.eye(len(gram), dtype=gram.dtype))


def conv_orthogonality(kernel: jax.Array, *, stride: int, padding: int = 1) -> jax.Array:
    r"""OrthConv: ‖conv(K, K) - I₀‖, the filters convolved with one another.

    I₀ is 1 at the centre of the map of a filter with itself, pixel ⌊width/2⌋, and 0 elsewhere.
    Dense and 1×1 kernels take `kernel_orthogonality`, as in the source.

    The published baseline convolves with stride 2 and padding 1 *whatever the layer's stride*; for
    3×3 kernels the shift 0 is then never looked at and the identity is asked of the shift (1, 1).
    With stride 1, the layers' own, the centre is the shift 0. Say which you used.

    Args:
        kernel: (H, W, in, N), or (in, N).
        stride: of the convolution of filters with filters: 2 for the published baseline.
        padding: zeros on each side.

    Returns:
        A scalar.

    Raises:
        ValueError: a kernel of another number of axes.

    >>> import jax.numpy as jnp
    >>> kernel = jnp.zeros((3, 3, 1, 2)).at[1, 1, 0].set(jnp.array([3.0, 0.0]))
    >>> float(conv_orthogonality(kernel, stride=1))  # ‖diag(9, 0) - I‖
    8.0622
    """
    if kernel.ndim == 2 or kernel.shape[:-2] == (1, 1):
        return kernel_orthogonality(kernel)
    if kernel.ndim != 4:
        raise ValueError(f"kernel: got shape {kernel.shape}, expected (H, W, in, N) or (in, N).")
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    overlaps = jax.lax.conv_general_dilated(
        jnp.moveaxis(kernel, -1, 0),  # the filters as a batch of N images (H, W, in)
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    rows, columns = overlaps.shape[1:3]
    identity = jnp.eye(kernel.shape[-1], dtype=kernel.dtype)
    return _norm(overlaps.at[:, rows // 2, columns // 2].add(-identity))


def _norm(array: jax.Array) -> jax.Array:
    squared = jnp.sum(array**2)
    safe = jnp.where(squared > 0, squared, 1)
    return jnp.where(squared > 0, jnp.sqrt(safe), 0)


# -- The network ---------------------------------------------------------------------------------


def kernorth(params: Params, channels: Channels) -> jax.Array:
    """Sums `kernel_orthogonality` over all layers, the first and the last one included.

    Args:
        params: the weights.
        channels: the model's channels.

    Returns:
        A scalar; the authors' weight is `ORTHOGONALITY_WEIGHT`.

    >>> import flax.linen as nn
    >>> from ntksap_jax import structured
    >>> channels = structured.trace(nn.Sequential([nn.Dense(2), nn.Dense(2)]), (2,))
    >>> params = {"layers_0": {"kernel": 2 * jnp.eye(2)}, "layers_1": {"kernel": jnp.eye(2)}}
    >>> float(kernorth(params, channels))
    4.2426
    """
    kernels = _leaves.kernels(params, channels)
    return sum(map(kernel_orthogonality, kernels.values()), jnp.zeros(()))


def orthconv(
    params: Params, channels: Channels, *, stride: int | Mapping[str, int] = 2, padding: int = 1
) -> jax.Array:
    """Sums `conv_orthogonality` over all layers but the first (of index 0).

    Args:
        params: the weights.
        channels: the model's channels.
        stride: as for `conv_orthogonality`; one for all (by default the published baseline's), or
            by path of the kernel, for all layers with kernels larger than 1×1.
        padding: zeros on each side.

    Returns:
        A scalar; the authors' weight is `ORTHOGONALITY_WEIGHT`.

    Raises:
        ValueError: a convolution without a stride.

    >>> import flax.linen as nn
    >>> from ntksap_jax import structured
    >>> model = nn.Sequential([nn.Conv(2, (1, 1)), nn.Conv(1, (1, 1))])
    >>> channels = structured.trace(model, (4, 4, 1))
    >>> params = {"layers_0": {"kernel": jnp.ones((1, 1, 1, 2))},
    ...           "layers_1": {"kernel": 3 * jnp.eye(2, 1)[None, None]}}
    >>> float(orthconv(params, channels, stride=1))  # the second layer's |9 - 1|
    8.0
    """
    total = jnp.zeros(())
    for path, kernel in _leaves.kernels(params, channels).items():
        if channels.layers[path].index == 0:
            continue
        of_layer = stride.get(path) if isinstance(stride, Mapping) else stride
        if of_layer is None:
            if kernel.ndim != 2 and kernel.shape[:-2] != (1, 1):
                raise ValueError(f"stride: has none for the convolution {path!r}. Add it.")
            of_layer = 1
        total += conv_orthogonality(kernel, stride=of_layer, padding=padding)
    return total


def add_penalty(penalty: Callable[[Params], jax.Array]) -> optax.GradientTransformation:
    """Makes an optax transformation that adds the gradient of a function of the params.

    For `optax.chain(add_penalty(...), optimizer)`: training with a penalty in a loop that only
    knows the loss.

    Args:
        penalty: `penalty(params) -> scalar`.

    Returns:
        The transformation; its `update` needs `params`.

    Raises:
        ValueError: in `update`, no params.

    >>> import jax.numpy as jnp
    >>> optimizer = add_penalty(lambda params: jnp.sum(params["w"] ** 2))
    >>> params = {"w": jnp.array([3.0])}
    >>> optimizer.update({"w": jnp.array([1.0])}, optimizer.init(params), params)[0]
    {'w': Array([7.], dtype=float32)}
    """

    def update(
        updates: Any, state: optax.EmptyState, params: Params | None = None
    ) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError(
                "params: got None; the penalty is one of the current params. Call "
                "optimizer.update(grads, state, params)."
            )
        return jax.tree.map(jnp.add, updates, jax.grad(penalty)(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
