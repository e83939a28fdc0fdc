"""The models: what each is, where it comes from, and which steps it is known to refuse."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.zoo import (
    equinox_models,
    haiku_models,
    linen_models,
    nnx_models,
    transformers_models,
)
from experiments.zoo.types import Entry


class Model(NamedTuple):
    """A model of the zoo; `refuses` names the steps that are known not to work."""

    family: str
    package: str
    make: Callable[[], Entry]
    refuses: frozenset[str] = frozenset()


# It calls jnp.clip by arguments that JAX no longer has.
TOO_OLD = frozenset({"load"})
# Haiku compares shapes with its own, a KAN has no dense layers, ConvNeXt is one residual stream.
NO_FILTERS = frozenset({"shrink"})
MODELS = {
    "haiku-mlp": Model("MLP", "haiku", haiku_models.mlp, NO_FILTERS),
    "haiku-mobilenet": Model("MobileNet", "haiku", haiku_models.mobilenet, NO_FILTERS),
    "jax-resnet": Model("ResNet", "jax_resnet", linen_models.resnet),
    "jax-models-mixer": Model("MLP-Mixer", "jax_models", linen_models.mixer),
    "transformers-bert": Model("BERT", "transformers", transformers_models.bert),
    "transformers-gpt2": Model("GPT", "transformers", transformers_models.gpt2),
    "transformers-t5": Model("T5", "transformers", transformers_models.t5, TOO_OLD),
    "transformers-vit": Model("ViT", "transformers", transformers_models.vit),
    "transformers-regnet": Model("RegNet", "transformers", transformers_models.regnet),
    "equimo-convnext": Model("ConvNeXt", "equimo", equinox_models.convnext, NO_FILTERS),
    "foundax-fno": Model("neural operator", "foundax", equinox_models.fourier_operator),
    "foundax-unet": Model("U-Net", "foundax", equinox_models.unet),
    "jaxkan": Model("KAN", "jaxkan", nnx_models.kan, NO_FILTERS),
    "attnax-vit": Model("ViT", "attnax", nnx_models.vit),
}


def lines_of_glue(make: Callable[[], Entry]) -> int:
    """Counts the lines of a function, and of those of its own file that it calls."""
    functions: list[Any] = [make]
    functions += [
        value
        for value in inspect.getclosurevars(make).globals.values()
        if inspect.isfunction(value) and value.__module__ == make.__module__
    ]
    return sum(len(inspect.getsource(function).splitlines()) for function in functions)
