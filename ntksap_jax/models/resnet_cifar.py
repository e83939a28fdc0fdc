"""Residual networks for CIFAR: ResNet-20, -32, -56 and any other of depth 6n + 2."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from ntksap_jax.models import _layers

Shortcut = Literal["projection", "pad"]


def pad_shortcut(x: jax.Array, features: int, *, stride: int) -> jax.Array:
    """He et al.'s option A: takes every `stride`-th pixel and pads the channels with zeros.

    The zeros go on both sides of the channel axis, as in TPP's code (the odd one at the end).

    Args:
        x: activations (N, H, W, C), C ≤ `features`.
        features: number of channels of the result.
        stride: step in both spatial axes.
    """
    missing = features - x.shape[-1]
    before = missing // 2
    # As in `_layers.max_pool`, no x[:, ::stride].
    x = jax.lax.slice(x, (0,) * 4, x.shape, (1, stride, stride, 1))
    return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (before, missing - before)])


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is the identity where the shape stays the same.

    Attributes:
        features: number of channels of the result.
        stride: stride of the first convolution and of the shortcut.
        shortcut: see `ResNet`.
    """

    features: int
    stride: int = 1
    shortcut: Shortcut = "projection"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps activations (N, H, W, C) to (N, ⌈H / stride⌉, ⌈W / stride⌉, features)."""
        y = _layers.conv(self.features, 3, stride=self.stride, name="conv1")(x)
        y = jax.nn.relu(_layers.batch_norm(train=train, name="bn1")(y))
        y = _layers.conv(self.features, 3, name="conv2")(y)
        y = _layers.batch_norm(train=train, name="bn2")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            if self.shortcut == "projection":
                x = _layers.conv(self.features, 1, stride=self.stride, name="shortcut_conv")(x)
                x = _layers.batch_norm(train=train, name="shortcut_bn")(x)
            else:
                x = pad_shortcut(x, self.features, stride=self.stride)
        return jax.nn.relu(y + x)


class ResNet(nn.Module):
    """A residual network on small images: 3×3 stem, stages of basic blocks, average, classifier.

    Stage s (from 0) has `width`·2^s channels; every stage but the first halves the resolution in
    its first block. The images may have any size from one pixel on.

    Parameters are `conv`, `bn`, `block_<i>/{conv1,bn1,conv2,bn2,shortcut_conv,shortcut_bn}` with i
    counting blocks through all stages, and `fc`.

    Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2. The
    projection shortcut is that of the lottery-ticket code (open_lth), which NTK-SAP uses.

    Attributes:
        blocks: number of blocks in each stage; (n, n, n) makes a network of depth 6n + 2.
        width: channels of the first stage.
        num_classes: number of outputs.
        shortcut: how a block that changes the shape passes its input on: "projection" (1×1
            convolution and BatchNorm) or "pad" (no parameters: `pad_shortcut`; TPP's ResNet-56).

    Raises:
        ValueError: on construction if a size is below 1 or `shortcut` unknown; on call if the
            inputs are not a batch of images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, images = ResNet(blocks=(1, 1, 1), width=4), jnp.ones((2, 8, 8, 3))
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
        (2, 10)
    """

    blocks: Sequence[int] = (3, 3, 3)
    width: int = 16
    num_classes: int = 10
    shortcut: Shortcut = "projection"

    def __post_init__(self) -> None:
        _layers.check_sizes(blocks=self.blocks, width=self.width, num_classes=self.num_classes)
        _layers.check_choice("shortcut", self.shortcut, get_args(Shortcut))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images (N, H, W, C) to logits (N, num_classes)."""
        _layers.check_images(x)
        x = _layers.conv(self.width, 3, name="conv")(x)
        x = jax.nn.relu(_layers.batch_norm(train=train, name="bn")(x))
        index = 0
        for stage, num_blocks in enumerate(self.blocks):
            for position in range(num_blocks):
                x = BasicBlock(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and position == 0 else 1,
                    shortcut=self.shortcut,
                    name=f"block_{index}",
                )(x, train=train)
                index += 1
        return _layers.dense(self.num_classes, name="fc")(_layers.global_average_pool(x))


def cifar_resnet(
    depth: int, *, width: int = 16, num_classes: int = 10, shortcut: Shortcut = "projection"
) -> ResNet:
    """The CIFAR ResNet of `depth` layers, shortcuts not counted.

    Args:
        depth: 6n + 2, n ≥ 1: 8, 14, 20, 26, 32, ...
        width: channels of the first stage.
        num_classes: number of outputs.
        shortcut: "projection" or "pad", see `ResNet`.

    Raises:
        ValueError: if `depth` is not 6n + 2, or as `ResNet` does.

    Example:
        >>> cifar_resnet(20, width=32).blocks
        (3, 3, 3)
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        nearest = 6 * max(1, round((depth - 2) / 6)) + 2
        raise ValueError(
            f"depth: got {depth}, expected 6n + 2 with n at least 1: 8, 14, 20, 26, 32, ... "
            f"(nearest: {nearest}). ResNet(blocks=...) takes any number of blocks in each stage."
        )
    return ResNet(blocks=(n, n, n), width=width, num_classes=num_classes, shortcut=shortcut)


def resnet20(
    *, width: int = 16, num_classes: int = 10, shortcut: Shortcut = "projection"
) -> ResNet:
    """ResNet-20, NTK-SAP's network for CIFAR-10: 272,474 parameters, 270,896 of them prunable.

    Args:
        width: channels of the first stage.
        num_classes: number of outputs.
        shortcut: "projection" or "pad", see `ResNet`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.zeros((1, 32, 32, 3))
        >>> variables = jax.eval_shape(resnet20().init, jax.random.key(0), images)
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        272474
    """
    return cifar_resnet(20, width=width, num_classes=num_classes, shortcut=shortcut)


def resnet32(
    *, width: int = 16, num_classes: int = 10, shortcut: Shortcut = "projection"
) -> ResNet:
    """ResNet-32: 466,906 parameters.

    Args:
        width: channels of the first stage.
        num_classes: number of outputs.
        shortcut: "projection" or "pad", see `ResNet`.

    Example:
        >>> resnet32().blocks
        (5, 5, 5)
    """
    return cifar_resnet(32, width=width, num_classes=num_classes, shortcut=shortcut)


def resnet56(
    *, width: int = 16, num_classes: int = 10, shortcut: Shortcut = "projection"
) -> ResNet:
    """ResNet-56: 855,770 parameters; with `shortcut="pad"` 853,018, TPP's network for CIFAR-10.

    Args:
        width: channels of the first stage.
        num_classes: number of outputs.
        shortcut: "projection" or "pad", see `ResNet`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = resnet56(shortcut="pad")
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        853018
    """
    return cifar_resnet(56, width=width, num_classes=num_classes, shortcut=shortcut)
