"""What the runs of one command share: data on the device, the dense network and its channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

from experiments.shell import errors
from experiments.tpp import networks
from experiments.tpp.config import Config
from experiments.training import inputs, steps
from experiments.training.inputs import Inputs
from ntksap_jax import masks, structured
from ntksap_jax.structured import Channels, FilterLayer, tpp_presets


class Keys(NamedTuple):
    """A key for each thing that is drawn at random."""

    init: jax.Array
    pretrain: jax.Array
    search: jax.Array
    pruning_batch: jax.Array
    regularise: jax.Array
    redrawn: jax.Array
    finetune: jax.Array
    measure: jax.Array


class Job(NamedTuple):
    """Data and dense network."""

    keys: Keys  # Of the seed.
    images: Inputs  # What is trained on, of the size that was asked for.
    model: nn.Module  # The dense network.
    channels: Channels  # Those of the dense network.
    is_linear: bool  # Whether it is a product of matrices.


def make(config: Config) -> Job:
    """Loads the data, makes the network and finds its channels; nothing is compiled yet.

    Raises:
        UserError: data that are not there, or options that do not go together.
    """
    images = inputs.load(config, config.batch_size, augmented=config.augment)
    dataset, architecture = images.dataset, networks.ARCHITECTURES[config.model]
    model = networks.make(config.model, width=config.width, num_classes=dataset.num_classes)
    with errors.at(f"--model {config.model} cannot take the images of {config.dataset}"):
        channels = structured.trace(model, dataset.image_shape, train=False)
    keys = Keys(*jax.random.split(jax.random.key(config.seed), len(Keys._fields)))
    return Job(keys, images, model, channels, architecture.is_linear)


def sgd(config: Config, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Makes the optimiser of a stage: SGD as PyTorch has it."""
    return tpp_presets.sgd(
        learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )


def init_variables(job: Job, model: nn.Module, key: jax.Array) -> Any:
    """Draws the weights of the dense network, or of a smaller one with layers of the same paths."""
    variables = steps.init_variables(model, key, job.images.dataset.image_shape)
    if not job.is_linear:
        return variables
    return {**variables, "params": uniform(key, variables["params"], job.channels.layers)}


def uniform(key: jax.Array, params: Any, layers: Mapping[str, FilterLayer]) -> Any:
    """Draws kernels and biases from U(-1/√fan_in, 1/√fan_in): PyTorch's default, and TPP's MLP's.

    The Kaiming-normal weights of `ntksap_jax.models` are made for ReLU: without it, signals grow by
    √2 a layer, and training at TPP's rates diverges.
    """
    leaves = masks.leaf_paths(params)
    bounds: dict[str, float] = {}
    for path, layer in layers.items():
        bounds[path] = math.prod(leaves[path].shape[:-1]) ** -0.5
        if layer.bias is not None:
            bounds[layer.bias] = bounds[path]
    keys = dict(zip(bounds, jax.random.split(key, len(bounds)), strict=True))

    def draw(place: Any, leaf: jax.Array) -> jax.Array:
        path = jax.tree_util.keystr(place, simple=True, separator="/")
        if path not in bounds:
            return leaf
        return jax.random.uniform(keys[path], leaf.shape, leaf.dtype, -bounds[path], bounds[path])

    return jax.tree_util.tree_map_with_path(draw, params)
