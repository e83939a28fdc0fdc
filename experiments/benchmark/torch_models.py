"""The networks in plain torch.nn, layer for layer those of `ntksap_jax.models`.

Modules carry the names that our params have, so that weights can be copied over. As in the authors'
code, the layers that are pruned multiply their weight with a mask in every forward pass.
"""

# PyTorch is optional: types are checked where it is installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layers = OrderedDict[str, nn.Module]


class MaskedConv2d(nn.Conv2d):
    """A convolution without bias; `mask` is of the weight's shape, and counts if `is_masked`."""

    mask: Tensor
    is_masked = True

    def __init__(self, in_channels: int, out_channels: int, size: int, *, stride: int = 1) -> None:
        super().__init__(
            in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False
        )
        self.register_buffer("mask", torch.ones_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Convolves images (N, C, H, W)."""
        return self._conv_forward(x, masked_weight(self), None)


class MaskedLinear(nn.Linear):
    """A dense layer with bias; `mask` is of the weight's shape, and counts if `is_masked`."""

    mask: Tensor
    is_masked = True

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("mask", torch.ones_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_features) to (N, out_features)."""
        return F.linear(x, masked_weight(self), self.bias)


Masked = MaskedConv2d | MaskedLinear


def masked_weight(layer: Masked) -> Tensor:
    """Returns what the layer multiplies its inputs with."""
    return layer.weight * layer.mask if layer.is_masked else layer.weight


def masked_layers(model: nn.Module) -> list[tuple[str, Masked]]:
    """Returns the layers that are pruned, by path."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, Masked)]


def batch_norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Yields the BatchNorm layers."""
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def draw_weights(model: nn.Module) -> None:
    """Draws weights as the authors do: Kaiming-normal by fan-in, gain √2; biases stay."""
    for _, layer in masked_layers(model):
        nn.init.kaiming_normal_(layer.weight)
    for norm in batch_norms(model):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)


class Block(nn.Module):
    """Convolutions, the last without activation, and a shortcut.

    Args:
        in_channels: of the images.
        convolutions: of each channels out, size and stride.
    """

    def __init__(self, in_channels: int, *convolutions: tuple[int, int, int]) -> None:
        super().__init__()
        channels, total_stride = in_channels, 1
        for index, (features, size, stride) in enumerate(convolutions, start=1):
            self.add_module(f"conv{index}", MaskedConv2d(channels, features, size, stride=stride))
            self.add_module(f"bn{index}", nn.BatchNorm2d(features))
            channels, total_stride = features, total_stride * stride
        self.depth = len(convolutions)
        self.projects = total_stride != 1 or in_channels != channels
        if self.projects:
            self.shortcut_conv = MaskedConv2d(in_channels, channels, 1, stride=total_stride)
            self.shortcut_bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, C, H, W) to images."""
        y = x
        for index in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(y))
            y = F.relu(y) if index < self.depth else y
        if self.projects:
            x = self.shortcut_bn(self.shortcut_conv(x))
        return F.relu(y + x)


def cifar_resnet(
    blocks: tuple[int, ...] = (3, 3, 3), width: int = 16, num_classes: int = 10
) -> nn.Sequential:
    """ResNet for small images; by default ResNet-20, with projection shortcuts."""
    layers: Layers = OrderedDict(
        conv=MaskedConv2d(3, width, 3), bn=nn.BatchNorm2d(width), relu=nn.ReLU()
    )
    channels, index = width, 0
    for stage, number in enumerate(blocks):
        for position in range(number):
            stride = 2 if stage > 0 and position == 0 else 1
            features = width * 2**stage
            layers[f"block_{index}"] = Block(channels, (features, 3, stride), (features, 3, 1))
            channels, index = features, index + 1
    return _classifier(layers, channels, num_classes)


def vgg16_bn(num_classes: int = 100) -> nn.Sequential:
    """VGG-16-BN for small images; the convolutions have no bias, as ours."""
    layers: Layers = OrderedDict()
    channels, index = 3, 0
    for group, (number, features) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        if group > 0:
            layers[f"pool_{group}"] = nn.MaxPool2d(2)
        for _ in range(number):
            layers[f"conv_{index}"] = MaskedConv2d(channels, features, 3)
            layers[f"bn_{index}"] = nn.BatchNorm2d(features)
            layers[f"relu_{index}"] = nn.ReLU()
            channels, index = features, index + 1
    return _classifier(layers, channels, num_classes)


def resnet50(num_classes: int = 1000) -> nn.Sequential:
    """ResNet-50 for large images: 7×7 convolution and max pool first, then bottlenecks."""
    layers: Layers = OrderedDict(
        conv=MaskedConv2d(3, 64, 7, stride=2),
        bn=nn.BatchNorm2d(64),
        relu=nn.ReLU(),
        max_pool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    channels = 64
    for stage, number in enumerate((3, 4, 6, 3), start=1):
        for index in range(number):
            features, stride = 32 * 2**stage, 2 if stage > 1 and index == 0 else 1
            layers[f"stage_{stage}_block_{index}"] = Block(
                channels, (features, 1, 1), (features, 3, stride), (4 * features, 1, 1)
            )
            channels = 4 * features
    return _classifier(layers, channels, num_classes)


def _classifier(layers: Layers, channels: int, num_classes: int) -> nn.Sequential:
    """Ends a network by the mean over the pixels and a linear layer."""
    head = MaskedLinear(channels, num_classes)
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=head)
    return nn.Sequential(layers)


MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "resnet20": cifar_resnet,
    "vgg16_bn": vgg16_bn,
    "resnet50": resnet50,
}
"""By the names of `experiments.cifar.choices.MODELS`."""
