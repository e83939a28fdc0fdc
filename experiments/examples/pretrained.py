"""A trained network, pruned on real images with the weights it has, and trained on.

    python -m experiments.examples.pretrained

NTK-SAP is made for networks before training: it draws fresh weights for every sample, and noise for
images. With `reinit=False, inputs="data"` it scores the weights that are there on images that are
there. Batch normalisation then takes its statistics from those images; by the network's
`apply_running` they are the running averages of the training instead, as SynFlow has them too.

On one CPU core it takes about a minute and printed at density 0.05 (one seed; a test image is
0.27 %):

    kept by                weights  just pruned  averages anew  trained on
    dense                   23,824       98.6 %         98.6 %      98.4 %
    random                   1,191        9.9 %          8.8 %      67.6 %
    magnitude                1,191       36.3 %         59.1 %      97.3 %
    SynFlow                  1,191       29.7 %         55.2 %      97.0 %
    NTK-SAP, fresh, noise    1,191        9.9 %          9.3 %      94.8 %
    NTK-SAP                  1,191       11.5 %         34.3 %      97.3 %
    NTK-SAP, averages        1,191        9.6 %         33.0 %      95.1 %

What the given weights and images add to NTK-SAP is seen right after pruning; magnitude, which keeps
the function rather than how it trains, is ahead there. After training on, other keys moved the
three rows of NTK-SAP by up to two points, so that nothing separates them, nor them from magnitude.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import ntksap_jax as nts
from experiments import data
from ntksap_jax import criteria, masks, ops, schedules
from ntksap_jax.types import Key, Mask, Params, ScoreFn

Variables = dict[str, Any]


class Run(NamedTuple):
    """A trained network that was pruned (or not) and trained on."""

    method: str
    mask: Mask
    params: Params
    losses: np.ndarray
    pruned_accuracy: float
    """On test images, right after pruning."""
    measured_accuracy: float
    """The same with averages measured anew, on the training images: no weight was changed."""
    accuracy: float
    """After training on."""


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


# -- Training --------------------------------------------------------------------------------------


def make_train(
    model: nn.Module, dataset: data.Dataset, *, steps: int, batch_size: int
) -> Callable[..., Any]:
    """Makes `train(key, variables, mask, rate) -> (variables, losses)`, compiled once for all."""
    images, labels = to_inputs(dataset, dataset.train_images), jnp.asarray(dataset.train_labels)

    @jax.jit
    def train(
        key: Key, variables: Variables, mask: Mask, rate: float
    ) -> tuple[Variables, jax.Array]:
        schedule = optax.cosine_decay_schedule(rate, steps)
        optimizer = nts.constrain_to_mask(optax.sgd(schedule, momentum=0.9), mask)
        params = masks.apply(mask, variables["params"])

        def loss_fn(params: Params, batch_stats: Any, batch: jax.Array) -> tuple[jax.Array, Any]:
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images[batch],
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
            return jnp.mean(losses), updated["batch_stats"]

        def step(state: Any, key: Key) -> tuple[Any, jax.Array]:
            params, batch_stats, opt_state = state
            batch = jax.random.randint(key, (batch_size,), 0, len(labels))
            (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
                params, batch_stats, batch
            )
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), batch_stats, opt_state), loss

        state = (params, variables["batch_stats"], optimizer.init(params))
        (params, batch_stats, _), losses = jax.lax.scan(step, state, jax.random.split(key, steps))
        return {"params": params, "batch_stats": batch_stats}, losses

    return train


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


# -- Pruning ---------------------------------------------------------------------------------------


def make_scores(
    model: nn.Module, image_shape: tuple[int, ...], batch_stats: Any, *, num_samples: int
) -> dict[str, ScoreFn]:
    """Makes the criteria that are compared."""
    network = nts.linen(model, image_shape, batch_stats=batch_stats, train=False)
    running = nts.plain(network.init, network.apply_running, image_shape)
    trained: Any = {"num_samples": num_samples, "reinit": False, "inputs": "data"}
    return {
        "random": criteria.random(),
        "magnitude": criteria.magnitude(),
        "SynFlow": criteria.synflow(network),
        "NTK-SAP, fresh, noise": criteria.ntk_sap(network, num_samples=num_samples),
        "NTK-SAP": criteria.ntk_sap(network, **trained),
        "NTK-SAP, averages": criteria.ntk_sap(running, **trained),
    }


def main(
    *,
    channels: Sequence[int] = (16, 32, 64),
    density: float = 0.05,
    rounds: int = 10,
    num_samples: int = 5,
    per_class: int = 10,
    steps: int = 200,
    batch_size: int = 64,
) -> list[Run]:
    """Trains a network on the digits, prunes it by several criteria, and trains each on."""
    dataset: Any = data.load("digits")
    model = ConvNet(tuple(channels), dataset.num_classes)
    init_key, mask_key, data_key, train_key, tune_key = jax.random.split(jax.random.key(0), 5)
    fresh = jax.jit(model.init)(init_key, jnp.zeros((1, *dataset.image_shape)))
    dense = masks.create(fresh["params"])

    train = make_train(model, dataset, steps=steps, batch_size=batch_size)
    accuracy = make_accuracy(model, dataset)
    trained, _ = train(train_key, fresh, dense, 0.1)

    schedule = schedules.exponential(density, rounds=rounds)
    batch = data.pruning_batch(dataset, data_key, per_class)
    scores = make_scores(
        model, dataset.image_shape, trained["batch_stats"], num_samples=num_samples
    )
    found = {"dense": dense}
    for method, score in scores.items():
        found[method], _ = nts.prune(
            mask_key, trained["params"], score, schedule=schedule, batch=batch
        )

    runs = []
    for method, mask in found.items():
        pruned = {**trained, "params": masks.apply(mask, trained["params"])}
        tuned, losses = train(tune_key, pruned, mask, 0.02)
        accuracies = accuracy(pruned), accuracy(pruned, anew=True), accuracy(tuned)
        runs.append(Run(method, mask, tuned["params"], np.asarray(losses), *accuracies))
    show(runs)
    return runs


def show(runs: Sequence[Run]) -> None:
    """Prints a row a criterion."""
    table = Table("kept by", "weights", "just pruned", "averages anew", "trained on")
    for run in runs:
        accuracies = (run.pruned_accuracy, run.measured_accuracy, run.accuracy)
        table.add_row(
            run.method, f"{masks.num_kept(run.mask):,}", *(f"{each:.1%}" for each in accuracies)
        )
    Console().print(table)


if __name__ == "__main__":
    main()
