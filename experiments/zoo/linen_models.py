"""Models in `flax.linen` of jax-resnet and jax-models."""

from typing import Any

import flax.linen as nn

import ntksap_jax as nts
from experiments.zoo.types import CLASSES, Entry, labelled

IMAGES = (32, 32, 3)


def resnet() -> Entry:
    """ResNet of jax-resnet, of four narrow blocks."""
    from jax_resnet import ResNet18

    def norm(*, use_running_average, **options):  # The package takes no argument for evaluation.
        del use_running_average
        return nn.BatchNorm(use_running_average=True, **options)

    sizes = {"hidden_sizes": (8, 16, 16, 32), "stage_sizes": (1, 1, 1, 1)}
    model = ResNet18(n_classes=CLASSES, norm_cls=norm, **sizes)
    return Entry(nts.linen(model, IMAGES), labelled(*IMAGES), module=model)


def mixer() -> Entry:
    """MLP-Mixer of jax-models, of two layers, without its head, which ends in a softmax."""
    from jax_models.models.mlp_mixer import MLPMixer

    features = MLPMixer(patch_size=8, hidden_size=32, channels_dim=64, tokens_dim=32)
    model = nn.Sequential([features, lambda x: x.mean(1), nn.Dense(CLASSES)])
    mode: Any = {"deterministic": True}
    network = nts.linen(model, IMAGES, **mode)
    return Entry(network, labelled(*IMAGES), module=model, mode=mode)
