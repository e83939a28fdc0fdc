"""The three sums of a convolution in the forms that XLA's CPU backend runs fast, in loops or not.

What was found on jax 0.10 to 0.12, and what is done about it:

 - It has a fast kernel for canonical convolutions only: NHWC by HWIO, nothing reversed, no groups
   of batches. Others it reorders outside of loops and runs by a slow one inside. So all here are.
 - It swaps the operands where the kernel has more pixels than the image, which makes any such
   convolution a slow one. Instead: a matrix product for each tap of the kernel.
 - It takes up to twice as long over fewer than eight features as over eight. `_widened` adds zeros.
 - It computes cheap operations again for every use. An activation that is transposed for the kernel
   gradient would be computed anew in the wrong order of memory, with the whole residual stream
   before it. `_computed_once` keeps it from that: half the time of a ResNet-20.
 - It transposes activations for the kernel gradient in the forward pass, if a core is free then,
   and holds both until the backward pass comes by. That saves a ResNet-20 a fifth of its time, but
   a VGG-16 none: its layers keep all cores busy. `_computed_after` makes such layers wait, which
   saves 100 of the 569 MB that a finite-difference sample of 100 images takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from ntksap_jax.ops._geometry import Geometry, Pair, canonical, forward

Window = tuple[slice, slice]

_FAST_FEATURES = 8

_LARGE_WORK = 1e9
"""Floating-point operations of a kernel gradient that keeps all cores busy (found on two)."""


def outputs(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """F(x, w)."""
    if _is_subsampling(geometry):
        return forward(_subsample(inputs, geometry), kernel, _unit_steps(geometry))
    if math.prod(geometry.kernel_size) > math.prod(geometry.input_size):
        return _outputs_by_taps(inputs, kernel, geometry)
    kernel, features = _widened(kernel, geometry), kernel.shape[-1]
    return forward(_computed_once(inputs), kernel, geometry)[..., :features]


def input_gradient(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """G(y, w): the outputs, spread out by the strides, convolved with the kernel turned around."""
    if _is_subsampling(geometry):
        return _spread(input_gradient(cotangent, kernel, _unit_steps(geometry)), geometry)
    if math.prod(geometry.kernel_size) > math.prod(geometry.output_size):
        return _input_gradient_by_taps(cotangent, kernel, geometry)
    reach = _reach(geometry)
    before = [r - p for r, (p, _) in zip(reach, geometry.padding, strict=True)]
    after = [
        size + r - spread - b
        for size, r, spread, b in zip(
            geometry.input_size, reach, _spread_size(geometry), before, strict=True
        )
    ]
    cotangent, steps = _computed_once(cotangent), geometry.strides
    if min(before + after) < 0:  # more padding than the kernel reaches over
        cotangent, steps = _pad(cotangent, before, after, interior=steps), (1, 1)
        before, after = [0, 0], [0, 0]
    turned = _turned(kernel, geometry.groups)
    channels = turned.shape[-1]
    gradient = canonical(
        cotangent,
        _widened(turned, geometry),
        padding=((before[0], after[0]), (before[1], after[1])),
        lhs_dilation=steps,
        rhs_dilation=geometry.dilation,
        groups=geometry.groups,
        precision=geometry.precision,
    )
    return gradient[..., :channels]


def kernel_gradient(inputs: jax.Array, cotangent: jax.Array, geometry: Geometry) -> jax.Array:
    """H(x, y): the inputs convolved with the outputs as a kernel, over the batch as channels."""
    if _is_subsampling(geometry):
        return kernel_gradient(_subsample(inputs, geometry), cotangent, _unit_steps(geometry))
    if math.prod(geometry.output_size) > math.prod(geometry.input_size):
        return _kernel_gradient_by_taps(inputs, cotangent, geometry)
    before = [p for p, _ in geometry.padding]
    after = [
        r + spread - size - b
        for r, spread, size, b in zip(
            _reach(geometry), _spread_size(geometry), geometry.input_size, before, strict=True
        )
    ]
    if _work(inputs, cotangent, geometry) > _LARGE_WORK:
        inputs, cotangent = _computed_after(inputs, cotangent), _computed_after(cotangent, inputs)
    else:
        inputs, cotangent = _computed_once(inputs), _computed_once(cotangent)
    if min(after) < 0:  # rows or columns at the end that no window reaches
        inputs = _pad(inputs, [0, 0], [min(a, 0) for a in after])
        after = [max(a, 0) for a in after]
    as_kernel = jnp.transpose(cotangent, (1, 2, 0, 3))  # (H', W', N, O)
    batch, height, width, channels = inputs.shape
    if geometry.groups == 1 and geometry.dilation[1] == 1:
        # The channels as part of the columns, C steps of the kernel apart: (1, H, W·C, N). All that
        # moves is the batch, to the end: one transpose of a matrix.
        turned = inputs.reshape(batch, -1).T.reshape(1, height, width * channels, batch)
        gradient = canonical(
            turned,
            as_kernel,
            padding=((before[0], after[0]), (before[1] * channels, after[1] * channels)),
            strides=(geometry.dilation[0], 1),
            rhs_dilation=(geometry.strides[0], geometry.strides[1] * channels),
            precision=geometry.precision,
        )
        return gradient.reshape(*geometry.kernel_size, channels, -1)
    # The channels as the batch, a group of features for each group of channels: (C/G, H, W, G·N).
    grouped = inputs.reshape(batch, height, width, geometry.groups, -1)
    turned = jnp.transpose(grouped, (4, 1, 2, 3, 0)).reshape(
        -1, height, width, geometry.groups * batch
    )
    gradient = canonical(
        turned,
        as_kernel,
        padding=((before[0], after[0]), (before[1], after[1])),
        strides=geometry.dilation,
        rhs_dilation=geometry.strides,
        groups=geometry.groups,
        precision=geometry.precision,
    )
    return jnp.transpose(gradient, (1, 2, 0, 3))


def _computed_once(x: jax.Array) -> jax.Array:
    """The identity, in a form that XLA neither simplifies nor computes again for every use.

    Its fusion copies operations of one large operand into all that use them; this has two.
    (`lax.optimization_barrier` does not help: it is removed before.)
    """
    return jnp.maximum(x, jnp.minimum(x, 0))


def _computed_after(x: jax.Array, other: jax.Array) -> jax.Array:
    """As `_computed_once`, but not before the other factor of the gradient is there.

    Between several CPU devices that is one number to exchange.
    """
    any_number = jnp.nan_to_num(other[(0,) * other.ndim])
    return jnp.maximum(x, jnp.minimum(x, any_number.astype(x.dtype)))


def _widened(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The kernel with features of zeros, so that there are enough for XLA's fast product."""
    missing = _FAST_FEATURES - kernel.shape[-1]
    if geometry.groups > 1 or missing <= 0:
        return kernel
    return jnp.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, missing)))


def _turned(kernel: jax.Array, groups: int) -> jax.Array:
    """Each group's kernel turned by 180 degrees, its inputs and outputs exchanged."""
    height, width, _, features = kernel.shape
    grouped = kernel.reshape(height, width, -1, groups, features // groups)
    turned = jnp.transpose(grouped[::-1, ::-1], (0, 1, 4, 3, 2))
    return turned.reshape(height, width, features // groups, -1)


# -- Sizes -----------------------------------------------------------------------------------------


def _work(inputs: jax.Array, cotangent: jax.Array, geometry: Geometry) -> int:
    """Floating-point operations of the kernel gradient."""
    channels = inputs.shape[-1] // geometry.groups
    return 2 * cotangent.size * math.prod(geometry.kernel_size) * channels


def _reach(geometry: Geometry) -> Pair:
    """How far a window reaches beyond its first pixel."""
    (k0, k1), (d0, d1) = geometry.kernel_size, geometry.dilation
    return d0 * (k0 - 1), d1 * (k1 - 1)


def _spread_size(geometry: Geometry) -> Pair:
    """Size of the outputs with their strides between them."""
    (o0, o1), (s0, s1) = geometry.output_size, geometry.strides
    return (o0 - 1) * s0 + 1, (o1 - 1) * s1 + 1


def _pad(
    x: jax.Array, before: list[int], after: list[int], *, interior: Pair = (1, 1)
) -> jax.Array:
    """Pads, or crops where negative, the two spatial axes; `interior` spreads the pixels out."""
    spatial = [(b, a, step - 1) for b, a, step in zip(before, after, interior, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


# -- 1x1 kernels with strides: most pixels are never looked at -------------------------------------


def _is_subsampling(geometry: Geometry) -> bool:
    return (
        geometry.kernel_size == (1, 1)
        and geometry.strides != (1, 1)
        and geometry.padding == ((0, 0), (0, 0))
    )


def _unit_steps(geometry: Geometry) -> Geometry:
    return geometry._replace(strides=(1, 1), input_size=geometry.output_size)


def _subsample(inputs: jax.Array, geometry: Geometry) -> jax.Array:
    rows, columns = geometry.strides
    return _computed_once(lax.slice(inputs, (0,) * 4, inputs.shape, (1, rows, columns, 1)))


def _spread(small: jax.Array, geometry: Geometry) -> jax.Array:
    after = [
        size - spread
        for size, spread in zip(geometry.input_size, _spread_size(geometry), strict=True)
    ]
    return _pad(small, [0, 0], after, interior=geometry.strides)


# -- Images smaller than the kernel: a matrix product for each tap ---------------------------------


def _taps(geometry: Geometry) -> Iterator[tuple[Pair, Window, Window]]:
    """Yields (tap, the inputs that it meets, the outputs that these add to); both as slices."""
    axes = []
    for axis in range(2):
        stride, last_input = geometry.strides[axis], geometry.input_size[axis] - 1
        reached = []
        for tap in range(geometry.kernel_size[axis]):
            # Output p meets input stride · p + offset.
            offset = tap * geometry.dilation[axis] - geometry.padding[axis][0]
            first = max(0, -(offset // stride))
            last = min(geometry.output_size[axis] - 1, (last_input - offset) // stride)
            if first <= last:
                met = slice(stride * first + offset, stride * last + offset + 1, stride)
                reached.append((tap, met, slice(first, last + 1)))
        axes.append(reached)
    for (a, rows_in, rows_out), (b, columns_in, columns_out) in itertools.product(*axes):
        yield (a, b), (rows_in, columns_in), (rows_out, columns_out)


def _outputs_by_taps(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    channels, taps = _by_group(inputs, geometry), _by_group(kernel, geometry)
    total = jnp.zeros((inputs.shape[0], *geometry.output_size, *taps.shape[3:]), inputs.dtype)
    for tap, met, added_to in _taps(geometry):
        product = _einsum("nhwgi,igo->nhwgo", channels[:, *met], taps[tap], geometry)
        total = total.at[:, *added_to].add(product)
    return total.reshape(*total.shape[:3], -1)


def _input_gradient_by_taps(
    cotangent: jax.Array, kernel: jax.Array, geometry: Geometry
) -> jax.Array:
    features, taps = _by_group(cotangent, geometry), _by_group(kernel, geometry)
    channels = (*features.shape[3:-1], taps.shape[2])
    total = jnp.zeros((cotangent.shape[0], *geometry.input_size, *channels), cotangent.dtype)
    for tap, met, added_to in _taps(geometry):
        product = _einsum("nhwgo,igo->nhwgi", features[:, *added_to], taps[tap], geometry)
        total = total.at[:, *met].add(product)
    return total.reshape(*total.shape[:3], -1)


def _kernel_gradient_by_taps(
    inputs: jax.Array, cotangent: jax.Array, geometry: Geometry
) -> jax.Array:
    channels, features = _by_group(inputs, geometry), _by_group(cotangent, geometry)
    shape = (*geometry.kernel_size, channels.shape[-1], *features.shape[3:])
    total = jnp.zeros(shape, inputs.dtype)
    for tap, met, added_to in _taps(geometry):
        product = _einsum("nhwgi,nhwgo->igo", channels[:, *met], features[:, *added_to], geometry)
        total = total.at[tap].set(product)
    return total.reshape(*shape[:3], -1)


def _by_group(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Splits the last axis into groups, (..., C) to (..., G, C / G), if there are any."""
    return x if geometry.groups == 1 else x.reshape(*x.shape[:-1], geometry.groups, -1)


def _einsum(subscripts: str, left: jax.Array, right: jax.Array, geometry: Geometry) -> jax.Array:
    """`jnp.einsum`; g is the axis that `_by_group` makes. One of length 1 would cost much time."""
    if geometry.groups == 1:
        subscripts = subscripts.replace("g", "")
    return jnp.einsum(subscripts, left, right, precision=geometry.precision)
