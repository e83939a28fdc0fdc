"""What is done with each model, and what came of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import ntksap_jax as nts
from experiments.zoo.types import Entry
from ntksap_jax import criteria, masks, schedules, structured

DENSITY = 0.1
ROUNDS = 3
TRAINING_STEPS = 20
LEARNING_RATE = 1e-2
SHARE_OF_FLOPS = 0.5
KEY = jax.random.key(0)


class Outcome(NamedTuple):
    """What came of a step: what it says if it worked, or the first line of its error."""

    seconds: float
    said: str = ""
    refused: str = ""


def attempt(step: Callable[[], tuple[str, Any]]) -> tuple[Outcome, Any]:
    """Takes a step; an error is its outcome, whatever the error: models are other people's."""
    start = time.perf_counter()
    try:
        said, result = step()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        refused = f"{type(error).__name__}: {first}"
        return Outcome(time.perf_counter() - start, refused=refused), None
    return Outcome(time.perf_counter() - start, said), result


def take_all(make: Callable[[], Entry]) -> dict[str, Outcome]:
    """Takes all steps that a model can take, one after the other; returns them by name."""
    outcomes: dict[str, Outcome] = {}
    outcomes["load"], loaded = attempt(functools.partial(load, make))
    if loaded is None:
        return outcomes
    entry, params = loaded
    found: dict[str, Any] = {}
    for name, score in scores(entry).items():
        step = functools.partial(prune, entry, params, score, fill=name == "SNIP")
        outcomes[name], found[name] = attempt(step)
    mask = found["NTK-SAP"]
    if mask is not None:
        outcomes["train"], _ = attempt(functools.partial(train, entry, params, mask))
    outcomes["shrink"], _ = attempt(functools.partial(shrink, entry, params))
    return outcomes


def load(make: Callable[[], Entry]) -> tuple[str, Any]:
    """Makes a model and draws its weights."""
    entry = make()
    params = entry.network.init(KEY)
    mask = masks.create(params, include=entry.include, exclude=entry.exclude)
    return f"{masks.num_prunable(mask):,}", (entry, params)


def scores(entry: Entry) -> dict[str, nts.types.ScoreFn]:
    """Returns the criteria: NTK-SAP, one that only reads weights, one that looks at data."""
    return {
        "NTK-SAP": criteria.ntk_sap(entry.network, inputs=entry.draw, num_samples=2, batch_size=8),
        "magnitude": criteria.magnitude(),
        "SNIP": criteria.snip(entry.network, loss_fn=entry.loss_fn),
    }


def prune(entry: Entry, params: Any, score: nts.types.ScoreFn, *, fill: bool) -> tuple[str, Any]:
    """Prunes to a tenth in three rounds, and checks that exactly so many weights are left.

    `fill` is for criteria that score the given params by derivatives, which say nothing of what
    stands before a factor of zero.
    """
    if fill:
        params = criteria.fill_zeros(KEY, params, entry.network)
    dense = masks.create(params, include=entry.include, exclude=entry.exclude)
    schedule = schedules.exponential(DENSITY, rounds=ROUNDS)
    mask, history = nts.prune(KEY, params, score, schedule=schedule, mask=dense, batch=entry.batch)
    wanted = round(DENSITY * masks.num_prunable(dense))
    if masks.num_kept(mask) != wanted:
        raise AssertionError(f"{masks.num_kept(mask)} weights are left, expected {wanted}")
    empty = [path for path, left in history[-1].layer_densities.items() if left == 0]
    return f"{len(empty)} empty" if empty else "yes", mask


def train(entry: Entry, params: Any, mask: Any) -> tuple[str, Any]:
    """Trains under the mask, and checks that what was pruned is exactly 0."""
    optimizer = nts.constrain_to_mask(optax.adam(LEARNING_RATE), mask)
    inputs, labels = entry.batch

    @jax.jit
    def step(params, state):
        def loss_of(params):
            return entry.loss_fn(entry.network.apply_train(params, inputs), labels).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = masks.apply(mask, params)
    state = optimizer.init(params)
    losses = []
    for _ in range(TRAINING_STEPS):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    weights = masks.leaf_paths(params)
    for path, kept in masks.leaf_paths(mask).items():
        if np.any(np.asarray(weights[path])[~np.asarray(kept)]):
            raise AssertionError(f"{path}: a pruned weight is not 0")
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss went from {losses[0]:.3g} to {losses[-1]:.3g}")
    return f"{losses[0]:.2f} to {losses[-1]:.2f}", params


def shrink(entry: Entry, params: Any) -> tuple[str, Any]:
    """Removes filters of the smallest L1 norms, and checks that half of the FLOPs are left."""
    network = entry.network
    module = entry.module or network.apply
    mode = dict(entry.mode)
    one = jax.tree.map(
        lambda dtype, shape: jax.ShapeDtypeStruct(shape, dtype),
        *(network.input_dtype, network.input_shape),
    )
    if entry.module is None:
        mode["params"] = params
    dense = structured.cost(structured.trace(module, one, **mode)).flops
    inputs = entry.batch[0]
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    variables: Any = {"params": params}
    if isinstance(module, nn.Module):
        variables = {**module.init(KEY, *args, **kwargs, **entry.mode), "params": params}
    small, fewer = structured.prune_model(
        KEY, module, variables, structured.l1, SHARE_OF_FLOPS, input_shape=one, **entry.mode
    )
    if entry.module is None:
        mode["params"] = fewer["params"]
    left = structured.cost(structured.trace(small, one, **mode)).flops
    if left > SHARE_OF_FLOPS * dense:
        raise AssertionError(f"{left / dense:.2f} of the FLOPs are left")
    if isinstance(small, nn.Module):
        outputs = small.apply(fewer, *args, **kwargs, **entry.mode)
    elif entry.module is None:
        outputs = small(fewer["params"], inputs)
    else:
        outputs = small(*args, **kwargs, **entry.mode)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs)):
        raise AssertionError("outputs are not finite")
    return f"{left / dense:.2f}", small
