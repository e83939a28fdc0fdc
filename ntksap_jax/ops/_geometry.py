"""The static part of a two-dimensional convolution: its sizes and steps."""

from __future__ import annotations

from typing import Any, NamedTuple

from jax import lax

Pair = tuple[int, int]

CANONICAL = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """The static part of a convolution of NHWC inputs with an HWIO kernel.

    Attributes:
        strides: step between the windows, per spatial axis.
        padding: zeros before and after, per spatial axis; none is negative.
        dilation: step between the entries of the kernel.
        groups: number of groups of channels that do not mix (`feature_group_count`).
        input_size: height and width of the inputs.
        kernel_size: height and width of the kernel.
        precision: as in `lax.conv_general_dilated`.
    """

    strides: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    input_size: Pair
    kernel_size: Pair
    precision: Any = None

    @property
    def output_size(self) -> Pair:
        """Height and width of the outputs."""
        rows, columns = (
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, (before, after), dilation, kernel, stride in zip(
                self.input_size,
                self.padding,
                self.dilation,
                self.kernel_size,
                self.strides,
                strict=True,
            )
        )
        return rows, columns


def canonical(
    lhs: Any,
    rhs: Any,
    *,
    padding: tuple[Pair, Pair],
    strides: Pair = (1, 1),
    lhs_dilation: Pair = (1, 1),
    rhs_dilation: Pair = (1, 1),
    groups: int = 1,
    precision: Any = None,
) -> Any:
    """A convolution in the order that XLA's CPU backend has a kernel for, wherever it stands."""
    return lax.conv_general_dilated(
        lhs,
        rhs,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=CANONICAL,
        feature_group_count=groups,
        precision=precision,
    )


def forward(inputs: Any, kernel: Any, geometry: Geometry) -> Any:
    """The convolution itself, as `lax` has it."""
    return canonical(
        inputs,
        kernel,
        strides=geometry.strides,
        padding=geometry.padding,
        rhs_dilation=geometry.dilation,
        groups=geometry.groups,
        precision=geometry.precision,
    )
