"""The networks that the program knows, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from ntksap_jax import models


class Architecture(NamedTuple):
    """A network without its size."""

    make: Callable[..., nn.Module]  # `make(width=..., num_classes=...)`.
    width: int  # Of the source's network: of the hidden layers, or of the first stage.
    is_linear: bool = False  # A product of matrices, whose Jacobian needs no data.


def _mlp(*, width: int, num_classes: int) -> nn.Module:
    return models.mlp((width, width), num_classes=num_classes)


def _resnet(depth: int) -> Architecture:
    return Architecture(functools.partial(models.cifar_resnet, depth, shortcut="pad"), width=16)


ARCHITECTURES: dict[str, Architecture] = {
    "linear_mlp": Architecture(models.linear_mlp, width=100, is_linear=True),
    "mlp": Architecture(_mlp, width=100),
    "resnet8": _resnet(8),
    "resnet20": _resnet(20),
    "resnet56": _resnet(56),
    "vgg19_bn": Architecture(models.vgg19_bn, width=64),
}
"""By the name that `--model` takes. ResNets have option-A shortcuts, without parameters, as TPP's
have."""


def make(name: str, *, width: int | None, num_classes: int) -> nn.Module:
    """Makes one of `ARCHITECTURES`, of the source's width if none is given."""
    architecture = ARCHITECTURES[name]
    return architecture.make(width=width or architecture.width, num_classes=num_classes)
