"""Training of a masked network: one jitted step with augmentation inside, and evaluation.

Every function is pure, or a loop in Python over a jitted step. There is no scan over steps:
between two of them programs report, save and stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntksap_jax as nts
from experiments.training import failures as faults
from experiments.training.config import TrainingConfig
from ntksap_jax import masks
from ntksap_jax.types import ConstrainToMaskState

CHECK_EVERY = 50
"""Steps between two looks at the losses: each look waits for the device."""

TrainStep = Callable[..., tuple["TrainState", "StepMetrics"]]
EvalStep = Callable[..., "Totals"]


class TrainState(NamedTuple):
    """All that a checkpoint holds; `opt_state` carries the mask (see `nts.constrain_to_mask`)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: ConstrainToMaskState


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


class EpochSums(NamedTuple):
    """Sums over the steps of an epoch, in their order."""

    loss: float = 0.0
    num_correct: int = 0
    num_examples: int = 0
    num_steps: int = 0


class Diverged(Exception):
    """The loss became infinite or NaN.

    Attributes:
        step: the number of the first such step, from 1 over the whole training.
        state: before that step or one a little earlier; `state.step` says which.
        cause: what was found, in words.
    """

    def __init__(self, step: int, state: TrainState, cause: str = "the loss is not finite") -> None:
        super().__init__(f"{cause} at step {step}")
        self.step, self.state, self.cause = step, state, cause


# -- Optimiser -----------------------------------------------------------------------------------


def learning_rate(config: TrainingConfig, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.lr_schedule == "step":
        drops = {epoch * steps_per_epoch - warmup: 0.1 for epoch in config.drop_epochs}
        main = optax.piecewise_constant_schedule(config.learning_rate, drops)
    else:
        main = optax.cosine_decay_schedule(
            config.learning_rate, config.epochs * steps_per_epoch - warmup
        )
    if not warmup:
        return main
    # From 1/warmup, not from 0: a first step of length 0 would be wasted.
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup - 1)
    return optax.join_schedules([rise, main], [warmup])


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


def init_state(
    params: Any, batch_stats: Any, mask: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """Makes the state before the first step: the original weights, with the mask applied.

    Args:
        params: the weights as the model drew them.
        batch_stats: the `batch_stats` collection as the model drew it; empty if there is none.
        mask: what to keep.
        optimizer: from `make_optimizer`; the mask is imposed on it from outside.
    """
    params = masks.apply(mask, params)
    opt_state = nts.constrain_to_mask(optimizer, mask).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state)


# -- Steps ---------------------------------------------------------------------------------------


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
) -> TrainStep:
    """Makes the jitted training step.

    The mask is part of the state and not a constant, so that runs which differ only in their mask
    share one compilation.

    Args:
        model: linen module, called as `model(inputs, train=True)`.
        optimizer: from `make_optimizer`.
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
        constrained = nts.constrain_to_mask(optimizer, state.opt_state.mask)
        return take_step(model, constrained, state, inputs, labels)

    return train_step


def take_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    inputs: jax.Array,
    labels: jax.Array,
) -> tuple[TrainState, StepMetrics]:
    """Takes one step down the gradient of the mean cross-entropy of a batch. Traceable."""

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
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    num_correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
    state = TrainState(state.step + 1, params, batch_stats, opt_state)
    return state, StepMetrics(loss, num_correct)


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


# -- Loops ---------------------------------------------------------------------------------------


def train_epoch(
    key: jax.Array,
    state: TrainState,
    batches: Iterable[tuple[Any, Any]],
    *,
    train_step: TrainStep,
    sums: EpochSums = EpochSums(),  # noqa: B008 (it cannot be changed)
    on_step: Callable[[TrainState, Callable[[], EpochSums]], None] = lambda state, sums: None,
) -> tuple[TrainState, Score]:
    """Takes one step a batch.

    Args:
        key: the key of the whole training.
        state: from `init_state`, a checkpoint, or the epoch before.
        batches: (images, labels) pairs, all of one size; of the rest of an epoch that a checkpoint
            is in the middle of.
        train_step: from `make_train_step`.
        sums: over the steps of the epoch that were taken before.
        on_step: called after every step, with the state and a function that returns the sums up to
            there; to call it is to wait for the device.

    Returns:
        The new state, and loss and accuracy on the training batches as they went by.

    Raises:
        Diverged: a loss that is not finite, or what `jax.debug_nans` found.
    """
    step = int(state.step)
    # For the failure report: up to this state all losses were finite. It costs a copy in memory.
    checked = state
    pending: list[StepMetrics] = []

    def look() -> EpochSums:
        nonlocal sums, checked, step
        for metrics in jax.device_get(pending):
            step += 1
            if not np.isfinite(metrics.loss):
                raise Diverged(step, checked)
            sums = EpochSums(
                sums.loss + float(metrics.loss),
                sums.num_correct + int(metrics.num_correct),
                sums.num_examples + batch_size,
                sums.num_steps + 1,
            )
        pending.clear()
        checked = state
        return sums

    for images, labels in batches:
        batch_size = len(labels)
        try:
            state, metrics = train_step(key, state, images, labels)
        except FloatingPointError as error:
            found = f"--debug-nans found an {faults.operation(error)},"
            raise Diverged(step + len(pending) + 1, state, found) from error
        pending.append(metrics)
        if len(pending) == CHECK_EVERY:
            look()
        on_step(state, look)
    look()
    return state, Score(sums.loss / sums.num_steps, sums.num_correct / sums.num_examples)


def evaluate(
    state: TrainState, batches: Iterable[tuple[Any, Any, Any]], *, eval_step: EvalStep
) -> Score:
    """Measures loss and accuracy in evaluation mode.

    Args:
        state: the trained state.
        batches: (images, labels, is_real) of one size each; those that are not real do not count.
        eval_step: from `make_eval_step`.
    """
    totals = [eval_step(state, *batch) for batch in batches]
    sums = jax.tree.map(lambda *parts: float(np.sum(parts)), *jax.device_get(totals))
    return Score(sums.loss / sums.num_examples, sums.num_correct / sums.num_examples)
