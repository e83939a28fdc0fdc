"""Training: one jitted step with augmentation inside, for masked and dense networks; evaluation.

There is no compiled loop over steps: between two of them programs report, save and stop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import ntksap_jax as nts
from experiments.processes import distributed
from experiments.training.config import TrainingConfig
from ntksap_jax import masks
from ntksap_jax.types import ConstrainToMaskState

TrainStep = Callable[..., tuple["TrainState", "StepMetrics"]]
EvalStep = Callable[..., "Totals"]


class TrainState(NamedTuple):
    """All that a checkpoint holds."""

    step: jax.Array  # How many were taken.
    params: Any  # The weights.
    batch_stats: Any  # Running statistics; empty if the network has none.
    # Of the optimiser; of a masked network it carries the mask, see `nts.constrain_to_mask`.
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the linen module."""
        statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **statistics}


class StepMetrics(NamedTuple):
    """Mean loss and number of correct answers of one training batch, augmented as it was."""

    loss: jax.Array
    num_correct: jax.Array


class Totals(NamedTuple):
    """Sums over examples, and how many they are."""

    loss: jax.Array
    num_correct: jax.Array
    num_examples: jax.Array


class Score(NamedTuple):
    """Means over examples: cross-entropy in nats, accuracy in [0, 1]."""

    loss: float
    accuracy: float


def learning_rate(config: TrainingConfig, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.lr_schedule == "step":
        main = drops(
            config.learning_rate, config.drop_epochs, steps_per_epoch=steps_per_epoch, done=warmup
        )
    else:
        main = optax.cosine_decay_schedule(
            config.learning_rate, config.epochs * steps_per_epoch - warmup
        )
    if not warmup:
        return main
    # From 1/warmup, not from 0: a first step of length 0 would be wasted.
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup - 1)
    return optax.join_schedules([rise, main], [warmup])


def drops(
    rate: float, epochs: Sequence[int], *, steps_per_epoch: int, done: int = 0
) -> optax.Schedule:
    """Returns the learning rate by step: times 0.1 after each of the epochs.

    Epochs are counted from the beginning of the training, `done` steps before the schedule's.
    """
    boundaries = {epoch * steps_per_epoch - done: 0.1 for epoch in epochs}
    return optax.piecewise_constant_schedule(rate, boundaries)


def make_optimizer(config: TrainingConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Makes SGD as PyTorch has it: the weight decay goes into the gradient, before the momentum."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(
            learning_rate(config, steps_per_epoch),
            momentum=config.momentum or None,
            nesterov=config.nesterov,
        ),
    )


def init_variables(model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]) -> Any:
    """Draws the variables of a linen module, in all processes those of the leader."""
    example = jnp.zeros((1, *image_shape))
    return distributed.arrays_from_leader(
        lambda: _compiled_init(model)(key, example), like=jax.eval_shape(model.init, key, example)
    )


@functools.lru_cache(maxsize=1)
def _compiled_init(model: nn.Module) -> Any:
    """Kept from one seed to the next, for it takes seconds to compile."""
    return jax.jit(model.init)


def init_state(
    variables: Any, optimizer: optax.GradientTransformation, mask: Any = None
) -> TrainState:
    """Makes the state before the first step; the optimiser is the one without the mask."""
    params = variables["params"]
    # As one program: one by one, the zeros of every shape of leaf are compiled for.
    optimizer = optimizer._replace(init=jax.jit(optimizer.init))
    if mask is not None:
        params, optimizer = masks.apply(mask, params), nts.constrain_to_mask(optimizer, mask)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
    )


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
) -> TrainStep:
    """Makes the jitted training step.

    A mask is part of the state and not a constant, so that runs which differ only in their mask
    share one compilation.

    Args:
        model: linen module, called as `model(inputs, train=True)`.
        optimizer: the one that `init_state` was given.
        augment: `augment(key, images) -> inputs`, from uint8 images to what the model takes.

    Returns:
        `train_step(key, state, images, labels) -> (state, StepMetrics)`. The key is that of the
        whole training: the step folds its own number in, so that a resumed run repeats the
        undisturbed one.
    """

    @jax.jit
    def train_step(
        key: jax.Array, state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        inputs = augment(jax.random.fold_in(key, state.step), images)
        rule = optimizer
        if isinstance(state.opt_state, ConstrainToMaskState):
            rule = nts.constrain_to_mask(optimizer, state.opt_state.mask)

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                inputs,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), (logits, updated.get("batch_stats", {}))

        (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        updates, opt_state = rule.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        num_correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
        state = TrainState(state.step + 1, params, batch_stats, opt_state)
        return state, StepMetrics(loss, num_correct)

    return train_step


def make_eval_step(model: nn.Module, normalise: Callable[[jax.Array], jax.Array]) -> EvalStep:
    """Makes the jitted evaluation step: evaluation mode, float32.

    Args:
        model: linen module, called as `model(inputs, train=False)`.
        normalise: `normalise(images) -> inputs`, from uint8 images to what the model takes.

    Returns:
        `eval_step(state, images, labels, is_real) -> Totals` over the examples where `is_real`.
    """

    @jax.jit
    def eval_step(
        state: TrainState, images: jax.Array, labels: jax.Array, is_real: jax.Array
    ) -> Totals:
        with jax.default_matmul_precision("float32"):
            outputs: Any = model.apply(
                {"params": state.params, "batch_stats": state.batch_stats},
                normalise(images),
                train=False,
            )
        logits = outputs.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.argmax(logits, axis=-1) == labels
        return Totals(
            jnp.sum(jnp.where(is_real, losses, 0)), jnp.sum(correct & is_real), jnp.sum(is_real)
        )

    return eval_step
