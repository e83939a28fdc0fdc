"""Compiled training steps: one after the other, or many in one compiled loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.training import steps as training
from experiments.training.steps import StepMetrics, TrainState

TakeSteps = Callable[..., tuple[TrainState, StepMetrics]]
"""`take_steps(key, state, images, labels, batches) -> (state, sums of the metrics)`.

`images` are all of the training set, `batches` (number of steps, batch size) indices into them. The
state is donated: the caller's is gone afterwards.
"""


def init_state(variables: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Makes the state before the first step, of copies: the caller's variables are not donated."""

    @jax.jit  # As one program: one by one, every shape of leaf is compiled for.
    def make(variables: Any) -> TrainState:
        params, batch_stats = copy((variables["params"], variables.get("batch_stats", {})))
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))

    return make(variables)


@jax.jit
def copy(tree: Any) -> Any:
    """Copies all arrays of a tree."""
    return jax.tree.map(jnp.copy, tree)


def variables_of(state: TrainState) -> dict[str, Any]:
    """Returns the variables of a linen module."""
    statistics = {"batch_stats": state.batch_stats} if state.batch_stats else {}
    return {"params": state.params, **statistics}


def make_take_steps(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    is_scanned: bool,
) -> TakeSteps:
    """Makes the function that takes some steps of training with cross-entropy.

    The key is that of the whole training: each step folds its own number in, so that a resumed run
    repeats the undisturbed one.

    Args:
        model: linen module, called as `model(inputs, train=True)`.
        optimizer: penalties included.
        augment: `augment(key, images) -> inputs`.
        is_scanned: one compiled loop over the steps.
    """

    def step(
        key: jax.Array, state: TrainState, images: jax.Array, labels: jax.Array, batch: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        inputs = augment(jax.random.fold_in(key, state.step), images[batch])
        return training.take_step(model, optimizer, state, inputs, labels[batch])

    @functools.partial(jax.jit, donate_argnames="state")
    def scan(
        key: jax.Array, state: TrainState, images: jax.Array, labels: jax.Array, batches: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        state, metrics = jax.lax.scan(
            lambda state, batch: step(key, state, images, labels, batch), state, batches
        )
        return state, jax.tree.map(jnp.sum, metrics)

    one = jax.jit(step, donate_argnames="state")

    def loop(
        key: jax.Array, state: TrainState, images: jax.Array, labels: jax.Array, batches: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        found = []
        for batch in batches:
            state, metrics = one(key, state, images, labels, batch)
            found.append(metrics)
        return state, jax.tree.map(lambda *parts: sum(parts), *found)

    return scan if is_scanned else loop
