"""What the runs of one command share: data on the device, the dense network and its channels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.shell.errors import UserError
from experiments.tpp import networks
from experiments.tpp.config import Config
from ntksap_jax import masks
from ntksap_jax.structured import tracing
from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.filters import Layers


class Job(NamedTuple):
    """Data and dense network.

    Attributes:
        dataset: with images of the size that was asked for.
        images: the training images on the device, uint8.
        labels: theirs.
        augment: `augment(key, images) -> inputs`, for training.
        normalise: `normalise(images) -> inputs`, for evaluation.
        model: the dense network.
        channels: its channels.
        is_linear: whether it is a product of matrices.
        is_scanned: whether several steps run as one compiled loop.
        steps_per_epoch: full batches of the training set.
    """

    dataset: data.Dataset
    images: jax.Array
    labels: jax.Array
    augment: Callable[[jax.Array, jax.Array], jax.Array]
    normalise: Callable[[jax.Array], jax.Array]
    model: nn.Module
    channels: Channels
    is_linear: bool
    is_scanned: bool
    steps_per_epoch: int


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


def make_keys(seed: int) -> Keys:
    """Makes the keys of a seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def make(config: Config) -> Job:
    """Loads the data, makes the network and finds its channels; nothing is compiled yet.

    Raises:
        UserError: data that are not there, or options that do not go together.
    """
    dataset = _load(config)
    if config.batch_size > dataset.num_train:
        raise UserError(
            f"--batch-size: {config.batch_size} is more than the {dataset.num_train} training "
            "images"
        )
    model = networks.make(config.model, width=config.width, num_classes=dataset.num_classes)
    try:
        channels = tracing.trace(model, dataset.image_shape, train=False)
    except ValueError as error:
        raise UserError(
            f"--model {config.model} cannot take the images of {config.dataset}: {error}"
        ) from error
    normalise = functools.partial(data.normalise, mean=dataset.mean, std=dataset.std)
    augment = functools.partial(
        data.augment,
        mean=dataset.mean,
        std=dataset.std,
        crop_padding=dataset.crop_padding if config.augment else 0,
        flip=dataset.flip and config.augment,
    )
    has_convolutions = any(len(channels.shapes[f"params/{path}"]) > 2 for path in channels.layers)
    return Job(
        dataset=dataset,
        images=jnp.asarray(dataset.train_images),
        labels=jnp.asarray(dataset.train_labels),
        augment=augment,
        normalise=normalise,
        model=model,
        channels=channels,
        is_linear=networks.ARCHITECTURES[config.model].is_linear,
        # On CPU, gradients of convolutions are slow inside a loop (see `training.steps`).
        is_scanned=not has_convolutions or jax.default_backend() != "cpu",
        steps_per_epoch=dataset.num_train // config.batch_size,
    )


def _load(config: Config) -> data.Dataset:
    """Images larger than asked for are averaged down, smaller ones interpolated."""
    size = config.image_size
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    assert isinstance(dataset, data.Dataset)
    if size is None or size == dataset.image_shape[0]:
        return dataset
    if size < dataset.image_shape[0]:
        averaged = data.load(config.dataset, data_dir=config.data_dir, image_size=size)
        assert isinstance(averaged, data.Dataset)
        return averaged
    return dataset._replace(
        train_images=enlarge(dataset.train_images, size),
        test_images=enlarge(dataset.test_images, size),
        note="; ".join(filter(None, (dataset.note, f"interpolated to {size}x{size}"))),
    )


def enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Interpolates square images bilinearly, as Pillow does: pixels are areas, borders repeat.

    Args:
        images: uint8, (N, side, side, channels).
        size: pixels a side, at least as many.

    Returns:
        uint8, (N, size, size, channels).
    """
    rows = _interpolation(images.shape[1], size)
    pieces = [
        np.rint(np.einsum("ab,nbcd,ec->naed", rows, piece, rows, optimize=True)).astype(np.uint8)
        for piece in np.array_split(images, max(1, len(images) // 5000))
    ]
    return np.concatenate(pieces)


def _interpolation(side: int, size: int) -> np.ndarray:
    """The matrix (size, side) of weights that interpolates a line of pixels."""
    places = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    distances = np.abs(places[:, None] - np.arange(side))
    return np.maximum(0, 1 - distances).astype(np.float32)


def init_variables(config: Config, job: Job, model: nn.Module, key: jax.Array) -> Any:
    """Draws the weights of the dense network, or of a smaller one with layers of the same paths."""
    variables = jax.jit(model.init)(key, jnp.zeros((1, *job.dataset.image_shape)))
    if not networks.ARCHITECTURES[config.model].is_linear:
        return variables
    return {**variables, "params": uniform(key, variables["params"], job.channels.layers)}


def uniform(key: jax.Array, params: Any, layers: Layers) -> Any:
    """Draws kernels and biases from U(-1/√fan_in, 1/√fan_in): PyTorch's default, and TPP's MLP's.

    The Kaiming-normal weights of `ntksap_jax.models` are made for ReLU: without it, signals grow by
    √2 a layer, and training at TPP's rates diverges.

    Args:
        key: PRNG key.
        params: whose shapes count.
        layers: the layers that are drawn anew.
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
