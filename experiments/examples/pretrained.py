"""A trained network, pruned on real images with the weights it has, and trained on.

    python -m experiments.examples.pretrained

NTK-SAP is made for networks before training: it draws fresh weights for every sample, and noise for
images. With `reinit=False, inputs="data"` it scores the weights that are there on images that are
there. Batch normalisation then takes its statistics from those images; by the network's
`apply_running` they are the running averages of the training instead, as SynFlow has them too.

What came out is in docs/results/other-models.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntksap_jax as nts
from experiments import data
from experiments.examples import shared
from ntksap_jax import criteria, masks, ops, schedules
from ntksap_jax.types import Key, Params

Variables = dict[str, Any]


# `nts.linen` puts this function into every convolution for scoring. The training below, which
# needs the running averages, calls the model itself; on CPU, loops over JAX's own are slow.
convolution = functools.partial(
    nn.Conv, kernel_size=(3, 3), use_bias=False, conv_general_dilated=ops.conv_general_dilated
)


class ConvNet(nn.Module):
    """Convolutions with batch normalisation, each but the first halving the image; a head."""

    channels: Sequence[int]
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images (N, height, width, channels) to logits (N, num_classes)."""
        for index, features in enumerate(self.channels):
            strides = 1 if index == 0 else 2
            x = convolution(features, strides=strides, name=f"conv_{index}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


def make_train(
    model: nn.Module, dataset: data.Dataset, *, steps: int, batch_size: int
) -> shared.Train:
    """Makes the training; its state are the running averages of batch normalisation."""
    images, labels = to_inputs(dataset, dataset.train_images), jnp.asarray(dataset.train_labels)

    def loss_fn(params: Params, batch_stats: Any, key: Key) -> tuple[jax.Array, Any]:
        batch = jax.random.randint(key, (batch_size,), 0, len(labels))
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images[batch], train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
        return jnp.mean(losses), updated["batch_stats"]

    decay = functools.partial(optax.cosine_decay_schedule, decay_steps=steps)
    return shared.make_train(loss_fn, lambda rate: optax.sgd(decay(rate), 0.9), steps=steps)


def make_accuracy(model: nn.Module, dataset: data.Dataset) -> Callable[..., float]:
    """Makes `accuracy(variables, anew=False)`, over all test images, in [0, 1].

    Batch normalisation uses the running averages, or `anew` those over all training images.
    """
    network = nts.linen(model, dataset.image_shape, train=False)
    train_images = to_inputs(dataset, dataset.train_images)
    images, labels = to_inputs(dataset, dataset.test_images), jnp.asarray(dataset.test_labels)

    @functools.partial(jax.jit, static_argnames="anew")
    def share_correct(variables: Variables, anew: bool) -> jax.Array:
        params = variables["params"]
        if anew:
            logits: Any = network.calibrate(params, train_images)(params, images)
        else:
            logits = model.apply(variables, images, train=False)
        return jnp.mean(jnp.argmax(logits, axis=-1) == labels)

    return lambda variables, anew=False: float(share_correct(variables, anew=anew))


def to_inputs(dataset: data.Dataset, images: np.ndarray) -> jax.Array:
    """Normalises uint8 images."""
    return data.normalise(jnp.asarray(images), mean=dataset.mean, std=dataset.std)


def main(
    *,
    channels: Sequence[int] = (16, 32, 64),
    density: float = 0.05,
    rounds: int = 10,
    num_samples: int = 5,
    per_class: int = 10,
    steps: int = 200,
    batch_size: int = 64,
) -> list[shared.Run]:
    """Trains a network on the digits, prunes it by several criteria, and trains each on."""
    dataset: Any = data.load("digits")
    model = ConvNet(tuple(channels), dataset.num_classes)
    init_key, mask_key, data_key, train_key, tune_key = jax.random.split(jax.random.key(0), 5)
    fresh = jax.jit(model.init)(init_key, jnp.zeros((1, *dataset.image_shape)))
    dense = masks.create(fresh["params"])

    train = make_train(model, dataset, steps=steps, batch_size=batch_size)
    accuracy = make_accuracy(model, dataset)
    params, stats, _ = train(train_key, fresh["params"], dense, 0.1, fresh["batch_stats"])

    schedule = schedules.exponential(density, rounds=rounds)
    batch = data.pruning_batch(dataset, data_key, per_class)
    network = nts.linen(model, dataset.image_shape, batch_stats=stats, train=False)
    running = nts.plain(network.init, network.apply_running, dataset.image_shape)
    trained: Any = {"num_samples": num_samples, "reinit": False, "inputs": "data"}
    scores = {
        "random": criteria.random(),
        "magnitude": criteria.magnitude(),
        "SynFlow": criteria.synflow(network),
        "NTK-SAP, fresh, noise": criteria.ntk_sap(network, num_samples=num_samples),
        "NTK-SAP": criteria.ntk_sap(network, **trained),
        "NTK-SAP, averages": criteria.ntk_sap(running, **trained),
    }
    to_tune = shared.make_masks(mask_key, params, scores, schedule=schedule, batch=batch)

    def measure(params: Params, stats: Any) -> dict[str, float]:
        return {"trained on": accuracy({"params": params, "batch_stats": stats})}

    runs = shared.train_each(train, tune_key, params, to_tune, 0.02, state=stats, measure=measure)
    for run in runs:
        pruned = {"params": masks.apply(run.mask, params), "batch_stats": stats}
        run.results["just pruned"] = accuracy(pruned)
        # Averages measured on the training images; no weight is changed.
        run.results["averages anew"] = accuracy(pruned, anew=True)
    columns = ("just pruned", "averages anew", "trained on")
    rows = [
        (run.method, f"{masks.num_kept(run.mask):,}", *(f"{run.results[c]:.1%}" for c in columns))
        for run in runs
    ]
    shared.show(("kept by", "weights", *columns), rows)
    return runs


if __name__ == "__main__":
    main()
