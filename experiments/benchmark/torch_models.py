"""The networks in plain torch.nn, layer for layer those of `ntksap_jax.models`.

Modules carry the names that our params have, so that weights can be copied over. With PyTorch's own
masks, the layers multiply their weight with a mask in every forward pass, as in the authors' code.
"""

# PyTorch is optional: types are checked where it is installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

Layers = OrderedDict[str, nn.Module]


def convolution(in_channels: int, channels: int, size: int, *, stride: int = 1) -> nn.Conv2d:
    """Makes a convolution without bias, which keeps the size of images if the stride is 1."""
    padding = size // 2
    return nn.Conv2d(in_channels, channels, size, stride=stride, padding=padding, bias=False)


def prunable_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Returns the layers whose weights may be pruned, by path."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]


def add_masks(model: nn.Module) -> None:
    """Makes the prunable layers multiply `weight_orig` with `weight_mask`, which keeps all."""
    for _, layer in prunable_layers(model):
        prune.identity(layer, "weight")


def batch_norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Yields the BatchNorm layers."""
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def draw_weights(model: nn.Module) -> None:
    """Draws weights as the authors do: Kaiming-normal by fan-in, gain √2; biases stay."""
    for _, layer in prunable_layers(model):
        nn.init.kaiming_normal_(getattr(layer, "weight_orig", layer.weight))
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
            self.add_module(f"conv{index}", convolution(channels, features, size, stride=stride))
            self.add_module(f"bn{index}", nn.BatchNorm2d(features))
            channels, total_stride = features, total_stride * stride
        self.depth = len(convolutions)
        self.projects = total_stride != 1 or in_channels != channels
        if self.projects:
            self.shortcut_conv = convolution(in_channels, channels, 1, stride=total_stride)
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
        conv=convolution(3, width, 3), bn=nn.BatchNorm2d(width), relu=nn.ReLU()
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
            layers[f"conv_{index}"] = convolution(channels, features, 3)
            layers[f"bn_{index}"] = nn.BatchNorm2d(features)
            layers[f"relu_{index}"] = nn.ReLU()
            channels, index = features, index + 1
    return _classifier(layers, channels, num_classes)


def resnet50(num_classes: int = 1000) -> nn.Sequential:
    """ResNet-50 for large images: 7×7 convolution and max pool first, then bottlenecks."""
    layers: Layers = OrderedDict(
        conv=convolution(3, 64, 7, stride=2),
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
    head = nn.Linear(channels, num_classes)
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=head)
    return nn.Sequential(layers)


MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "resnet20": cifar_resnet,
    "vgg16_bn": vgg16_bn,
    "resnet50": resnet50,
}
"""By the names of `experiments.cifar.choices.MODELS`."""
