"""What is measured of a network: accuracy, Jacobian singular values, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.processes import distributed
from experiments.training import inputs, steps
from experiments.training.inputs import Inputs
from experiments.training.steps import Score
from ntksap_jax import structured
from ntksap_jax.structured import trainability

LATENCY_BATCH_SIZES = (1, 128)

Jsv = Callable[[Any], dict[str, float]]
"""`jsv(variables)`: mean, std and condition_number of the Jacobian's singular values."""


class Network(NamedTuple):
    """A module and its variables."""

    model: nn.Module
    variables: Any


def evaluate(images: Inputs, network: Network) -> Score:
    """Measures loss and accuracy of a network on the test set; all processes take part."""
    state = steps.init_state(network.variables, optax.identity())
    return inputs.evaluate(
        images,
        distributed.replicate(state, images.mesh),
        eval_step=steps.make_eval_step(network.model, images.normalise),
    )


def linear_jsv(model: nn.Module, images: Inputs) -> Jsv:
    """Measures a linear network exactly: its Jacobian is the same everywhere."""
    channels = structured.trace(model, images.dataset.image_shape, train=False)
    values = jax.jit(
        lambda variables: trainability.linear_singular_values(variables["params"], channels)
    )
    return lambda variables: _summarise(values(variables))


def sampled_jsv(model: nn.Module, images: Inputs, key: jax.Array, num_images: int) -> Jsv:
    """Measures in evaluation mode, over training images that are not augmented."""
    dataset = images.dataset
    number = min(num_images, dataset.num_train)
    indices = np.asarray(jax.random.permutation(key, dataset.num_train)[:number])
    examples = images.normalise(jnp.asarray(dataset.train_images_at(indices)))
    size = min(number, 10)

    @jax.jit
    def of_images(variables: Any, images: jax.Array) -> jax.Array:
        return trainability.jacobian_singular_values(
            lambda variables, x: model.apply(variables, x, train=False), variables, images
        )

    def jsv(variables: Any) -> dict[str, float]:
        # Pieces of one shape, the last one overlapping, so that one program does for all.
        starts = [*range(0, number - size, size), number - size]
        pieces = {start: of_images(variables, examples[start : start + size]) for start in starts}
        rows = np.zeros((number, next(iter(pieces.values())).shape[1]), np.float32)
        for start, piece in pieces.items():
            rows[start : start + size] = piece
        return _summarise(jnp.asarray(rows))

    return jsv


def _summarise(values: jax.Array) -> dict[str, float]:
    summary = trainability.summarise(values)
    return {name: float(getattr(summary, name)) for name in ("mean", "std", "condition_number")}


def latency(
    networks: Mapping[str, Network], input_shape: tuple[int, ...], *, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Times forward passes of several networks, in evaluation mode, taking turns.

    Returns:
        By batch size (as text) and name: lower quartile, median, upper quartile, in seconds.
    """
    return {
        str(batch_size): latency_at(networks, (batch_size, *input_shape), repeats=repeats)
        for batch_size in LATENCY_BATCH_SIZES
    }


def latency_at(
    networks: Mapping[str, Network], shape: tuple[int, ...], *, repeats: int
) -> dict[str, list[float]]:
    """Times forward passes of several networks as `latency` does, on one shape of inputs."""
    inputs = jax.random.normal(jax.random.key(0), shape)
    passes = {name: _forward(network, inputs) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(repeats + 2):
        for name, forward in passes.items():
            started = time.perf_counter()
            forward()
            if repeat >= 2:  # The first ones warm up.
                seconds[name].append(time.perf_counter() - started)
    return {name: np.quantile(times, (0.25, 0.5, 0.75)).tolist() for name, times in seconds.items()}


def _forward(network: Network, inputs: jax.Array) -> Callable[[], Any]:
    def apply(variables: Any, inputs: jax.Array) -> Any:
        return network.model.apply(variables, inputs, train=False)

    compiled = jax.jit(apply).lower(network.variables, inputs).compile()
    return lambda: jax.block_until_ready(compiled(network.variables, inputs))
