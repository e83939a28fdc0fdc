"""Networks that keep statistics by code of their own: what each batch's statistics are.

A training call tells, whatever the layer: the statistics of a batch are the state that training
calls on it converge to. An exponential average is new = a · old + (1 - a) · batch with a the same
for all entries, so two training calls, from two states, give the limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntksap_jax import _jaxprs, masks
from ntksap_jax._networks._checks import ModelError
from ntksap_jax.types import ApplyFn, Inputs, Params

MANY = 2**24
"""Training calls after which sums and counters are taken: no bias of the start is left by then."""

State = Any
"""Pytree of arrays: what a network is called with beside its params and inputs."""

Evaluate = Callable[[Params, State, Inputs], Any]
Train = Callable[[Params, State, Inputs], tuple[Any, State]]


class Functions(NamedTuple):
    """The functions of a `Network`, as `types.Network` describes them."""

    apply: ApplyFn
    apply_train: ApplyFn
    apply_running: ApplyFn
    calibrate: Callable[..., ApplyFn]


def functions(
    evaluate: Evaluate, train: Train, *, initial: Callable[[], State], running: Callable[[], State]
) -> Functions:
    """Makes the functions of a network from its evaluation and its training mode.

    Args:
        evaluate: `evaluate(params, state, inputs) -> outputs`.
        train: `train(params, state, inputs) -> (outputs, state)`.
        initial: returns the state before training.
        running: returns the state that `apply_running` evaluates with.
    """

    def calibrate(params: Params, inputs: Inputs, *, unbiased: bool = False) -> ApplyFn:
        # The variance is the one that the layer itself keeps, biased or not.
        del unbiased
        state = jax.lax.stop_gradient(_of_batch(train, initial(), params, inputs))
        return lambda params, inputs: evaluate(params, state, inputs)

    return Functions(
        apply=lambda params, inputs: calibrate(params, inputs)(params, inputs),
        apply_train=lambda params, inputs: train(params, initial(), inputs)[0],
        apply_running=lambda params, inputs: evaluate(params, running(), inputs),
        calibrate=calibrate,
    )


def _of_batch(train: Train, start: State, params: Params, inputs: Inputs) -> State:
    """Returns the statistics of a batch."""
    new = train(params, start, inputs)[1]
    # Far apart, beside what the batch adds, so that rounding does not hide the decay.
    distances = jax.tree.map(
        lambda n: 1 + 100 * jnp.max(jnp.abs(n), initial=0) if _is_floating(n) else 0, new
    )
    far = jax.tree.map(lambda s, d: s + d if _is_floating(s) else s, start, distances)
    apart = train(params, far, inputs)[1]
    used = dependencies(lambda state: train(params, state, inputs)[1], start)
    itself = [path in found for path, found in zip(masks.leaf_paths(start), used, strict=True)]
    by_itself: Any = jax.tree.unflatten(jax.tree.structure(start), itself)

    def limit(by_itself: bool, old: Any, new: Any, apart: Any, distance: Any) -> Any:
        dtype = jnp.result_type(new)
        if by_itself and dtype in (jnp.int32, jnp.uint32, jnp.int64):
            return old + MANY * (new - old)  # A counter of calls.
        if not (by_itself and _is_floating(new)):
            return new  # Such as an average without the bias of its start: Haiku's.
        decay = (apart - new) / distance
        averages, grows = decay < 1 - 1e-5, jnp.abs(decay - 1) <= 1e-5
        batch = (new - decay * old) / jnp.where(averages, 1 - decay, 1)
        otherwise = jnp.where(grows, old + MANY * (new - old), new)
        return jnp.where(averages, batch, otherwise).astype(dtype)

    return jax.tree.map(limit, by_itself, start, new, apart, distances)


def _is_floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


# -- What depends on what --------------------------------------------------------------------------


def dependencies(fn: Callable[..., Any], state: State, *arguments: Any) -> list[set[str]]:
    """Returns for each leaf of a function's result which leaves of `state` it depends on.

    Args:
        fn: `fn(state, *arguments)`.
        state: pytree of arrays; shapes are enough.
        *arguments: more of them.

    Returns:
        Paths of leaves of `state`. Loops are not looked into, except for `scan`.
    """
    program = jax.make_jaxpr(fn)(state, *arguments)
    none: list[set[str]] = [set() for _ in jax.tree.leaves(arguments)]
    return _jaxprs.dependencies(program, [*({path} for path in masks.leaf_paths(state)), *none])


BY_PLAIN = (
    "State that is of the weights and not of the batch (such as SpectralNorm's) goes into a "
    "function of your own: ntksap_jax.plain(init, apply, input_shape), with apply updating it."
)
TRAINING_DEPENDS = (
    "even when it is called as in training, so these are not the statistics of a batch. Are all "
    "arguments that mean training among those given? " + BY_PLAIN
)
STATISTIC = re.compile(
    r"(?i)stats?(_|$)|statistic|mean|var$|variance|std|running|moving|average|(^|_)ema(_|$)"
)
"""In the name or type of a variable that is no constant, though nothing else says so."""


def check_independent(
    outputs_of: Callable[..., Any], state: State, *arguments: Any, way_out: str
) -> None:
    """Raises a ValueError if a network's outputs depend on a state that nothing replaces.

    Args:
        outputs_of: `outputs_of(state, *arguments)` returns the outputs.
        state: the state, or shapes of it.
        *arguments: likewise.
        way_out: the rest of the message.
    """
    _check_unused(set().union(*dependencies(outputs_of, state, *arguments)), way_out)


def check_training(train: Train, params: Params, state: State, inputs: Inputs) -> None:
    """Raises a ValueError if the training call looks at what it leaves in the state.

    It may look at constants, which it hands on as they are. Averages that it hands on so are of
    layers that are not in training mode.

    Args:
        train: the training call.
        params: shapes, as of the other arguments.
        state: the state.
        inputs: the inputs.
    """
    paths = list(masks.leaf_paths(state))
    program, (_, new) = jax.make_jaxpr(
        lambda state, params, inputs: train(params, state, inputs), return_shape=True
    )(state, params, inputs)
    wanted: Any = jax.tree.structure(state)
    if wanted != jax.tree.structure(new):
        raise ModelError(
            f"train: returns a state of the form {jax.tree.structure(new)}, expected that of the "
            f"state before training: {wanted}."
        )
    others: list[set[str]] = [set() for _ in jax.tree.leaves((params, inputs))]
    found = _jaxprs.dependencies(program, [*({path} for path in paths), *others])
    variables = program.jaxpr.invars[: len(paths)], program.jaxpr.outvars[-len(paths) :]
    constants = {
        path
        for path, old, new in zip(paths, *variables, strict=True)
        if old is new and not STATISTIC.search(path.rpartition("/")[2])
    }
    _check_unused(set().union(*found[: -len(paths)]) - constants, TRAINING_DEPENDS)


def _check_unused(used: set[str], way_out: str) -> None:
    if used:
        more = f" (and {len(used) - 1} more)" if len(used) > 1 else ""
        raise ModelError(f"model: its outputs depend on {min(used)!r}{more}, {way_out}")
