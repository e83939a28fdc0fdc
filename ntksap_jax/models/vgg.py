"""VGG networks with BatchNorm for CIFAR: VGG-16-BN and VGG-19-BN."""

from collections.abc import Sequence
from typing import Literal

import jax
from flax import linen as nn

from ntksap_jax.models import _layers

Plan = Sequence[int | Literal["M"]]


def vgg_plan(convs: Sequence[int], *, width: int = 64) -> Plan:
    """Groups of equally wide convolutions, a max pool between any two.

    The width doubles from group to group up to 8 times the first.

    Args:
        convs: number of convolutions in each group.
        width: channels of the first group.

    Example:
        >>> vgg_plan((2, 1, 1), width=4)
        (4, 4, 'M', 8, 'M', 16)
    """
    _layers.check_sizes(convs=convs, width=width)
    plan: list[int | Literal["M"]] = []
    for group, repeats in enumerate(convs):
        plan += ["M"] if group > 0 else []
        plan += [width * min(2**group, 8)] * repeats
    return tuple(plan)


class VGG(nn.Module):
    """3×3 convolutions with BatchNorm and ReLU, max pools between them, average, classifier.

    The final global average is the 2×2 average pool of the sources on 32×32 images. Each "M"
    halves the resolution, rounding down, so a plan with p of them needs 2^p pixels a side.

    Parameters are `conv_<i>`, `bn_<i>` with i counting convolutions from 0, and `fc`.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition" (ICLR 2015), in the form of the lottery-ticket code (open_lth), which NTK-SAP uses.
    That code leaves a bias in the convolutions, which the BatchNorm after them cancels: here, as in
    TPP, there is none.

    Attributes:
        plan: the layers in order: a number is a convolution of that many channels, "M" a 2×2 max
            pool.
        num_classes: number of outputs.

    Raises:
        ValueError: on construction if `plan` holds anything else or a size is below 1; on call if
            the inputs are not a batch of images, or smaller than the pools need.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, images = VGG(plan=(4, "M", 8), num_classes=5), jnp.zeros((2, 8, 8, 3))
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
        (2, 5)
    """

    plan: Plan = vgg_plan((2, 2, 3, 3, 3))
    num_classes: int = 100

    def __post_init__(self) -> None:
        _layers.check_sizes(num_classes=self.num_classes)
        _layers.check_sizes(plan=[entry for entry in self.plan if entry != "M"])
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images (N, H, W, C) to logits (N, num_classes)."""
        _layers.check_images(x)
        needed = 2 ** self.plan.count("M")
        if min(x.shape[1:3]) < needed:
            raise ValueError(
                f"inputs: got shape {x.shape}, expected at least {needed}x{needed} pixels for the "
                f'max pools of this plan. Give larger images or a plan with fewer "M".'
            )
        index = 0
        for entry in self.plan:
            if entry == "M":
                x = _layers.max_pool(x, 2, stride=2)
            else:
                x = _layers.conv(entry, 3, name=f"conv_{index}")(x)
                x = jax.nn.relu(_layers.batch_norm(train=train, name=f"bn_{index}")(x))
                index += 1
        return _layers.dense(self.num_classes, name="fc")(_layers.global_average_pool(x))


def vgg16_bn(*, width: int = 64, num_classes: int = 100) -> VGG:
    """VGG-16-BN, NTK-SAP's network for CIFAR-100: 14,770,212 parameters, 14,761,664 prunable.

    Args:
        width: channels of the first group.
        num_classes: number of outputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.zeros((1, 32, 32, 3))
        >>> variables = jax.eval_shape(vgg16_bn().init, jax.random.key(0), images)
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        14770212
    """
    return VGG(plan=vgg_plan((2, 2, 3, 3, 3), width=width), num_classes=num_classes)


def vgg19_bn(*, width: int = 64, num_classes: int = 100) -> VGG:
    """VGG-19-BN, TPP's network for CIFAR-100: 20,081,188 parameters, 20,070,180 without BatchNorm.

    Args:
        width: channels of the first group.
        num_classes: number of outputs.

    Example:
        >>> vgg19_bn().plan[-6:]
        (512, 'M', 512, 512, 512, 512)
    """
    return VGG(plan=vgg_plan((2, 2, 4, 4, 4), width=width), num_classes=num_classes)
