r"""A two-dimensional convolution whose derivatives, of any order, stay fast inside loops on CPU.

XLA's CPU backend has a fast kernel only for convolutions in canonical order (NHWC inputs, HWIO
kernel), and brings others into that order only outside of loops. JAX's own gradients of a
convolution are in other orders, so that inside `scan`, `while` or `cond` they run 20 to 200 times
slower. Here the three sums that derivatives of a convolution are made of are primitives,

    outputs          y = F(x, w),   y[n, p, o] = Σ_{k, i} x[n, s·p + d·k - a, i] w[k, i, o]
    input gradient   x = G(y, w),   the transpose of F(·, w)
    kernel gradient  w = H(x, y),   the transpose of F(x, ·)

(s: strides, d: dilation, a: padding before). All three are derivatives of the one trilinear form
⟨F(x, w), y⟩, so each is bilinear and its transposes are the other two: whatever is differentiated,
however often, forward or reverse, is made of them again. Each platform gets the form that it is
best at: on CPU that of `ops._onednn` or `ops._cpu`, on TPU and GPU `lax.conv_general_dilated` and
its transposes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ntksap_jax.ops import _cpu, _onednn
from ntksap_jax.ops._geometry import CANONICAL, Geometry, forward
from ntksap_jax.ops._types import needs_no_sharding_rule

Form = Callable[[Any, Any, Geometry], jax.Array]
Padding = str | Sequence[tuple[int, int]]


def conv2d(
    inputs: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Convolves images with a kernel: `lax.conv_general_dilated` to rounding, in every derivative.

    Args:
        inputs: images (N, H, W, I), floating point.
        kernel: (h, w, I / groups, O), of the same dtype.
        strides: step between windows, per spatial axis.
        padding: "SAME", "VALID", or zeros (before, after) per spatial axis.
        dilation: step between the entries of the kernel, per spatial axis.
        groups: the channels are split into so many groups that do not mix.
        precision: as in `lax.conv_general_dilated`.

    Returns:
        The outputs, (N, H', W', O).

    Raises:
        ValueError, TypeError: shapes or dtypes that do not go together.

    >>> import jax.numpy as jnp
    >>> outputs = conv2d(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 2)))
    >>> outputs.shape, outputs[0, :, :, 0].tolist()
    ((1, 3, 3, 2), [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]])
    """
    return conv_general_dilated(
        inputs,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=CANONICAL,
        feature_group_count=groups,
        precision=precision,
    )


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated` by `conv2d` where that applies: `nn.Conv(conv_general_dilated=)`.

    It applies to floating-point images in NHWC order with an HWIO kernel, without dilated inputs,
    groups of batches or negative padding. All else is left to `lax`: also where the mesh has
    Explicit axes, and for what varies between devices inside of a `shard_map` that checks that.

    Args:
        lhs: the inputs.
        rhs: the kernel.
        window_strides: as all that follow, see `lax.conv_general_dilated`.
        padding: "SAME", "VALID", or (before, after) per spatial axis.
        lhs_dilation: step between the inputs.
        rhs_dilation: step between the entries of the kernel.
        dimension_numbers: the order of the axes, such as ("NHWC", "HWIO", "NHWC").
        feature_group_count: number of groups of channels.
        batch_group_count: number of groups of the batch.
        precision: of the products.
        preferred_element_type: dtype to accumulate in.

    Returns:
        The outputs.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> layer = nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))[0].shape
    (2, 8, 8, 4)
    """
    options: dict[str, Any] = {
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
    }
    general: Callable[..., jax.Array] = functools.partial(
        lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options
    )
    # `lax` checks the arguments; its messages name them.
    result = jax.eval_shape(general, lhs, rhs)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    applies = (
        lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, CANONICAL)
        and set(lhs_dilation or [1]) == {1}
        and batch_group_count == 1
        and preferred_element_type in (None, result.dtype)
        and jnp.issubdtype(result.dtype, jnp.floating)
        and 0 not in (*lhs.shape, *rhs.shape, *result.shape)
        and needs_no_sharding_rule(lhs, rhs)
    )
    if not applies:
        return general(lhs, rhs)
    size, window = _pair(lhs.shape[1:3]), _pair(rhs.shape[:2])
    strides, dilation = _pair(window_strides), _pair(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        reach = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
        padding = lax.padtype_to_pads(size, reach, strides, padding)
    (top, bottom), (left, right) = map(_pair, padding)
    if min(top, bottom, left, right) < 0:
        return general(lhs, rhs)
    geometry = Geometry(
        strides=strides,
        padding=((top, bottom), (left, right)),
        dilation=dilation,
        groups=feature_group_count,
        input_size=size,
        kernel_size=window,
        precision=_default_precision() if precision is None else precision,
    )
    return outputs_p.bind(lhs, rhs, geometry=geometry)


def _default_precision() -> Any:
    """Read at the call, as `lax` does: once the operation is lowered, a context may be over."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def _pair(values: Any) -> tuple[int, int]:
    first, second = map(operator.index, values)
    return first, second


# -- The primitives --------------------------------------------------------------------------------
# Their operands have the four axes that the names say. With a fifth in front, they are stacks of
# convolutions with a kernel each, which is what `vmap` over kernels makes.

outputs_p = Primitive("conv2d")
input_gradient_p = Primitive("conv2d_input_gradient")
kernel_gradient_p = Primitive("conv2d_kernel_gradient")


def _outputs_shape(inputs: Any, kernel: Any, geometry: Geometry) -> tuple[int, ...]:
    return (*inputs.shape[:-3], *geometry.output_size, kernel.shape[-1])


def _input_shape(cotangent: Any, kernel: Any, geometry: Geometry) -> tuple[int, ...]:
    return (*cotangent.shape[:-3], *geometry.input_size, kernel.shape[-2] * geometry.groups)


def _kernel_shape(inputs: Any, cotangent: Any, geometry: Geometry) -> tuple[int, ...]:
    channels = inputs.shape[-1] // geometry.groups
    return (*inputs.shape[:-4], *geometry.kernel_size, channels, cotangent.shape[-1])


def _plain_input_gradient(cotangent: Any, kernel: Any, geometry: Geometry) -> jax.Array:
    shape = jax.ShapeDtypeStruct(_input_shape(cotangent, kernel, geometry), cotangent.dtype)
    transpose = jax.linear_transpose(lambda x: forward(x, kernel, geometry), shape)
    return transpose(cotangent)[0]


def _plain_kernel_gradient(inputs: Any, cotangent: Any, geometry: Geometry) -> jax.Array:
    shape = jax.ShapeDtypeStruct(_kernel_shape(inputs, cotangent, geometry), cotangent.dtype)
    transpose = jax.linear_transpose(lambda w: forward(inputs, w, geometry), shape)
    return transpose(cotangent)[0]


def _define(
    primitive: Primitive,
    shape: Callable[[Any, Any, Geometry], tuple[int, ...]],
    plain: Form,
    cpu: Form,
    which: int,
) -> None:
    """Gives a primitive its shape, and its forms on CPU and elsewhere; `which` is oneDNN's."""

    def abstract(left: Any, right: Any, *, geometry: Geometry) -> Any:
        return jax.core.ShapedArray(shape(left, right, geometry), left.dtype)

    def everywhere(left: jax.Array, right: jax.Array, *, geometry: Geometry) -> jax.Array:
        if left.ndim == 4:
            return plain(left, right, geometry)
        return jax.vmap(lambda x, y: plain(x, y, geometry))(left, right)

    def on_cpu(left: jax.Array, right: jax.Array, *, geometry: Geometry) -> jax.Array:
        if left.ndim == 4:
            return cpu(left, right, geometry)
        # Not vmap: a convolution with a group for each kernel is slow on CPU.
        return lax.map(lambda pair: cpu(pair[0], pair[1], geometry), (left, right))

    def by_onednn(left: jax.Array, right: jax.Array, *, geometry: Geometry) -> jax.Array:
        return _onednn.convolve(which, shape(left, right, geometry), left, right, geometry)

    def lower_on_cpu(context: Any, left: Any, right: Any, *, geometry: Geometry) -> Any:
        form = by_onednn if _onednn.applies(context, context.avals_in[0], geometry) else on_cpu
        lower = mlir.lower_fun(form, multiple_results=False)
        return lower(context, left, right, geometry=geometry)

    primitive.def_impl(jax.jit(primitive.bind, static_argnames="geometry"))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(everywhere, multiple_results=False))
    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")


_define(outputs_p, _outputs_shape, forward, _cpu.outputs, 0)
_define(input_gradient_p, _input_shape, _plain_input_gradient, _cpu.input_gradient, 1)
_define(kernel_gradient_p, _kernel_shape, _plain_kernel_gradient, _cpu.kernel_gradient, 2)

ad.defbilinear(
    outputs_p,
    lambda y, x, w, geometry: input_gradient_p.bind(y, w, geometry=geometry),
    lambda y, x, w, geometry: kernel_gradient_p.bind(x, y, geometry=geometry),
)
ad.defbilinear(
    input_gradient_p,
    lambda x, y, w, geometry: outputs_p.bind(x, w, geometry=geometry),
    lambda x, y, w, geometry: kernel_gradient_p.bind(x, y, geometry=geometry),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda w, x, y, geometry: input_gradient_p.bind(y, w, geometry=geometry),
    lambda w, x, y, geometry: outputs_p.bind(x, w, geometry=geometry),
)


# -- Batching --------------------------------------------------------------------------------------


def _batch(
    primitive: Primitive, has_kernel: bool, operands: Any, axes: Any, *, geometry: Geometry
) -> tuple[jax.Array, int]:
    """Folds a mapped axis into the batch where the kernel is shared, else makes a stack."""
    left, right = operands
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    if has_kernel and axes[1] is None:
        # (..., N, H, W, C) with the mapped axis next to the batch: the kernel's own stack, if any,
        # stays in front.
        together = jnp.moveaxis(left, axes[0], -5)
        folded = together.reshape(*together.shape[:-5], -1, *together.shape[-3:])
        result = primitive.bind(folded, right, geometry=geometry)
        return result.reshape(*together.shape[:-3], *result.shape[-3:]), together.ndim - 5
    stacks = [
        jnp.moveaxis(x, a, 0) if a is not None else jnp.broadcast_to(x, (size, *x.shape))
        for x, a in zip(operands, axes, strict=True)
    ]
    flat = [x.reshape(-1, *x.shape[-4:]) for x in stacks]
    result = primitive.bind(*flat, geometry=geometry)
    return result.reshape(*stacks[0].shape[:-4], *result.shape[1:]), 0


for _primitive in (outputs_p, input_gradient_p, kernel_gradient_p):
    batching.primitive_batchers[_primitive] = functools.partial(
        _batch, _primitive, _primitive is not kernel_gradient_p
    )
