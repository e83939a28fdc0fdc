"""Models in `flax.nnx` of jaxkan and attnax."""

from typing import Any

from flax import nnx

import ntksap_jax as nts
from experiments.zoo.types import CLASSES, Entry, labelled


def kan() -> Entry:
    """The Kolmogorov-Arnold network of jaxkan, of Chebyshev polynomials."""
    from jaxkan.models.KAN import KAN

    def make(rngs):  # It hands its seed to nnx.Rngs, which takes a key as well.
        return KAN([20, 16, CLASSES], "chebyshev", {"D": 3}, seed=rngs.params())

    return Entry(nts.nnx(make, (20,)), labelled(20), include="c_basis$")


def vit() -> Entry:
    """The vision transformer of attnax, of two layers."""
    from attnax.config import VisionTransformerConfig
    from attnax.vision import VisionTransformer

    config = VisionTransformerConfig(
        **{"image_size": 32, "patch_size": 8, "num_classes": CLASSES},
        **{"d_model": 32, "num_heads": 4, "num_layers": 2, "d_ff": 64},
    )
    mode: Any = {"deterministic": True}

    def make(rngs):
        return VisionTransformer(rngs, config)

    network = nts.nnx(make, (32, 32, 3), **mode)
    return Entry(network, labelled(32, 32, 3), module=make(nnx.Rngs(0)), mode=mode)
