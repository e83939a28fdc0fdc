"""Residual networks for ImageNet and Tiny-ImageNet: ResNet-18, -34, -50."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
from flax import linen as nn

from ntksap_jax.models import _layers
from ntksap_jax.models.resnet_cifar import BasicBlock

Stem = Literal["imagenet", "small"]


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut; the stride is in the 3×3 one (version 1.5).

    Attributes:
        features: number of channels inside; the result has `expansion` = 4 times as many.
        stride: stride of the 3×3 convolution and of the shortcut.
        project: 1×1 convolution and BatchNorm in the shortcut, needed where the block changes the
            shape. (A field, so that the block stays what it is when `structured` takes channels.)
    """

    features: int
    stride: int = 1
    project: bool = False

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps activations (N, H, W, C) to (N, ⌈H / stride⌉, ⌈W / stride⌉, 4·features)."""
        out_features = self.expansion * self.features
        y = _layers.conv(self.features, 1, name="conv1")(x)
        y = jax.nn.relu(_layers.batch_norm(train=train, name="bn1")(y))
        y = _layers.conv(self.features, 3, stride=self.stride, name="conv2")(y)
        y = jax.nn.relu(_layers.batch_norm(train=train, name="bn2")(y))
        y = _layers.conv(out_features, 1, name="conv3")(y)
        y = _layers.batch_norm(train=train, name="bn3")(y)
        if self.project:
            x = _layers.conv(out_features, 1, stride=self.stride, name="shortcut_conv")(x)
            x = _layers.batch_norm(train=train, name="shortcut_bn")(x)
        return jax.nn.relu(y + x)


class ImageNetResNet(nn.Module):
    """A residual network on large images, as torchvision has it.

    Stage s (from 1) has `width`·2^(s−1) channels (times 4 after a bottleneck); every stage but the
    first halves the resolution in its first block. The images may have any size from one pixel on.

    Parameters are `conv`, `bn`, `stage_<s>_block_<i>/{conv1,bn1,conv2,bn2[,conv3,bn3],
    shortcut_conv,shortcut_bn}` with s from 1 (torchvision's layer1 to layer4) and i from 0 in
    each stage, and `fc`.

    Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.1.

    Attributes:
        blocks: number of blocks in each stage.
        bottleneck: bottleneck blocks instead of basic ones.
        width: channels of the stem and of the first stage.
        num_classes: number of outputs.
        stem: "imagenet" (7×7 convolution of stride 2, 3×3 max pool of stride 2; NTK-SAP keeps it
            for the 64×64 images of Tiny-ImageNet) or "small" (3×3 convolution of stride 1, no pool;
            on Tiny-ImageNet some ten points more accurate, so compare only within one stem).

    Raises:
        ValueError: on construction if a size is below 1 or `stem` unknown; on call if the inputs
            are not a batch of images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = ImageNetResNet(blocks=(1, 1), bottleneck=True, width=4, num_classes=5)
        >>> images = jnp.zeros((1, 32, 32, 3))
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
        (1, 5)
    """

    blocks: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    num_classes: int = 1000
    stem: Stem = "imagenet"

    def __post_init__(self) -> None:
        _layers.check_sizes(blocks=self.blocks, width=self.width, num_classes=self.num_classes)
        _layers.check_choice("stem", self.stem, get_args(Stem))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images (N, H, W, C) to logits (N, num_classes)."""
        _layers.check_images(x)
        large = self.stem == "imagenet"
        x = _layers.conv(self.width, 7 if large else 3, stride=2 if large else 1, name="conv")(x)
        x = jax.nn.relu(_layers.batch_norm(train=train, name="bn")(x))
        if large:
            x = _layers.max_pool(x, 3, stride=2, padding=1)
        for stage, num_blocks in enumerate(self.blocks, start=1):
            for index in range(num_blocks):
                block: Callable[..., Any] = BasicBlock
                if self.bottleneck:
                    block = functools.partial(Bottleneck, project=index == 0)
                x = block(
                    features=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and index == 0 else 1,
                    name=f"stage_{stage}_block_{index}",
                )(x, train=train)
        return _layers.dense(self.num_classes, name="fc")(_layers.global_average_pool(x))


def resnet18(
    *, width: int = 64, num_classes: int = 1000, stem: Stem = "imagenet"
) -> ImageNetResNet:
    """ResNet-18, NTK-SAP's network for Tiny-ImageNet and ImageNet: 11,689,512 parameters.

    With the small stem 11,681,832.

    Args:
        width: channels of the stem and of the first stage.
        num_classes: number of outputs.
        stem: "imagenet" or "small", see `ImageNetResNet`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.zeros((1, 224, 224, 3))
        >>> variables = jax.eval_shape(resnet18().init, jax.random.key(0), images)
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        11689512
    """
    return ImageNetResNet(blocks=(2, 2, 2, 2), width=width, num_classes=num_classes, stem=stem)


def resnet34(
    *, width: int = 64, num_classes: int = 1000, stem: Stem = "imagenet"
) -> ImageNetResNet:
    """ResNet-34: 21,797,672 parameters.

    Args:
        width: channels of the stem and of the first stage.
        num_classes: number of outputs.
        stem: "imagenet" or "small", see `ImageNetResNet`.

    Example:
        >>> resnet34().blocks
        (3, 4, 6, 3)
    """
    return ImageNetResNet(blocks=(3, 4, 6, 3), width=width, num_classes=num_classes, stem=stem)


def resnet50(
    *, width: int = 64, num_classes: int = 1000, stem: Stem = "imagenet"
) -> ImageNetResNet:
    """ResNet-50, with bottlenecks; NTK-SAP's second network for ImageNet: 25,557,032 parameters.

    Args:
        width: channels of the stem and of the first stage.
        num_classes: number of outputs.
        stem: "imagenet" or "small", see `ImageNetResNet`.

    Example:
        >>> resnet50(stem="small").bottleneck
        True
    """
    return ImageNetResNet(
        blocks=(3, 4, 6, 3), bottleneck=True, width=width, num_classes=num_classes, stem=stem
    )
