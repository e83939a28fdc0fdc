r"""TPP: training that makes chosen filters removable without loss, and keeps the rest trainable.

The filters to go (`keep` is False) are chosen once, from the trained weights. The whole network is
then trained on, with an objective that decorrelates them from the others and pulls them to zero:

    loss + λ(t) [ w Σ_l ‖W_l W_lᵀ ⊙ (1 - k kᵀ)‖² / N_l²
                  + ½ Σ_j (‖w_j‖² + b_j² + γ_j² + β_j²) ],    l layers, j pruned filters,

λ growing from 0 by steps, then held while the pruned filters are set to zero layer by layer, after
which they can be cut out (`shrinking`). Pruned against kept and pruned against pruned filters are
penalised, a pruned filter's own norm too; products of two kept filters are not.

Source: Wang and Fu, "Trainability preserving neural pruning", ICLR 2023; arithmetic and order of
operations as in the released code, which differs from the paper's formulas in scale: the mean over
the N² entries of the Gram matrix (weight 1000) where the paper sums, ½ of the paper's
normalisation term, and weights and biases pulled to zero as well. The paper's Gram term is
`Settings(gram=functools.partial(gram_penalty, normalise="sum"))`. Layers without normalisation
have weights and bias set to zero, where the released code stops with an error.

All functions are pure and traceable; `regularise` is all of it as an optax transformation.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ntksap_jax import masks
from ntksap_jax.structured import _leaves, filters
from ntksap_jax.structured.channels import Channels, check_keep
from ntksap_jax.structured.gram import GramPenalty as GramPenalty
from ntksap_jax.structured.gram import gram_penalty as gram_penalty
from ntksap_jax.structured.types import Keep
from ntksap_jax.types import Params


class Settings(NamedTuple):
    """What TPP adds to training. The defaults are those of the released code for CIFAR.

    Attributes:
        gram_weight: w, the factor of the Gram penalties (`lw_opp`).
        gram: the penalty of one layer.
        l2: which parameters of a pruned filter are pulled to zero: any of `"kernel"`, `"bias"`,
            `"scale"` and `"shift"` (the last two are those of the normalisation behind it).
        update_interval: steps between two increments of λ (K_u).
        increment: how much λ grows at each (Δ).
        ceiling: λ grows until it is at least this. It is not clamped: Δ = 0.3 ends at 1.2.
        stabilise_steps: further steps at the final λ (K_s).
        zero_out_interval: number of steps between setting one layer to zero and the next, from the
            end of the growth on; all convolution and dense layers count, pruned or not. None sets
            nothing to zero (as the code did when the paper came out).

    >>> settings = Settings(increment=1e-3, stabilise_steps=1000)  # a tenth of the growth
    >>> num_steps(settings), settings.gram_weight
    (11001, 1000.0)
    """

    gram_weight: float = 1000.0
    gram: GramPenalty = gram_penalty
    l2: tuple[str, ...] = ("kernel", "bias", "scale", "shift")
    update_interval: int = 10
    increment: float = 1e-4
    ceiling: float = 1.0
    stabilise_steps: int = 10_000
    zero_out_interval: int | None = 100


# -- Schedule ------------------------------------------------------------------------------------


def growth_steps(settings: Settings) -> int:
    """Returns the step at which λ first is at its final value: K_u ⌈ceiling / Δ⌉.

    >>> growth_steps(Settings()), growth_steps(Settings(increment=0.3, update_interval=3))
    (100000, 12)
    """
    # A tolerance, since 1 / 1e-4 need not come out as 10,000 exactly.
    return settings.update_interval * math.ceil(settings.ceiling / settings.increment - 1e-6)


def num_steps(settings: Settings) -> int:
    """Returns the number of optimiser steps of the whole stage, from step 0: growth + K_s + 1.

    >>> num_steps(Settings())
    110001
    """
    return growth_steps(settings) + settings.stabilise_steps + 1


def strength(step: Any, settings: Settings) -> jax.Array:
    """Returns λ(t) = Δ ⌊min(t, end of growth) / K_u⌋, which holds for step t (from 0) itself.

    Args:
        step: t; may be traced.
        settings: Δ, K_u and the end of the growth.

    >>> [float(strength(t, Settings())) for t in (0, 9, 10, 50_000, 200_000)]
    [0.0, 0.0, 0.0001, 0.5, 1.0]
    """
    step = jnp.minimum(jnp.asarray(step), growth_steps(settings))
    return settings.increment * (step // settings.update_interval)


# -- Objective -----------------------------------------------------------------------------------


def penalty(
    params: Params, channels: Channels, keep: Keep, *, strength: Any, settings: Settings
) -> jax.Array:
    """Returns what TPP adds to the loss at strength λ: all but the loss in the formula above.

    Args:
        params: the weights.
        channels: the model's channels.
        keep: which filters stay; layers that it leaves out add nothing.
        strength: λ.
        settings: weights and kinds of the terms.

    Returns:
        A scalar.

    Raises:
        ValueError, TypeError: params or a keep that do not fit the layers, settings out of range.

    >>> import flax.linen as nn
    >>> from ntksap_jax import structured
    >>> channels = structured.trace(nn.Sequential([nn.Dense(3), nn.Dense(1)]), (2,))
    >>> layer = {"kernel": jnp.array([[1.0, 3, 0.5], [2, -1, 0.25]]), "bias": jnp.ones(3)}
    >>> keep = {"layers_0/kernel": jnp.array([False, True, True])}
    >>> settings = Settings(gram_weight=9.0)  # 29 + (1 + 4 + 1) / 2
    >>> float(penalty({"layers_0": layer}, channels, keep, strength=1.0, settings=settings))
    32.0
    """
    _check_settings(settings)
    check_keep(channels, keep)
    kernels = _leaves.kernels(params, channels, keep)
    grams = sum((settings.gram(kernels[path], keep[path]) for path in keep), jnp.zeros(()))
    squares = jnp.zeros(())
    for kept, leaf in _filter_leaves(params, channels, keep, settings.l2):
        pruned = jnp.where(kept, 0, leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)))
        squares += jnp.sum(pruned**2)
    return strength * (settings.gram_weight * grams + 0.5 * squares)


def _filter_leaves(params: Params, channels: Channels, keep: Keep, names: Any) -> Any:
    """Yields (which entries are kept, leaf) for the named leaves of the layers in `keep`."""
    leaves = masks.leaf_paths(params)
    for path in keep:
        for name in names:
            leaf_path = getattr(channels.layers[path], name)
            if leaf_path is not None:
                leaf = leaves[leaf_path]
                yield _leaves.along(keep[path], channels.layers[path], leaf_path, leaf), leaf


class Magnitudes(NamedTuple):
    """How large a layer's filters are.

    Attributes:
        kept: mean of |w| over the weights of the filters that stay, 0 if there are none.
        pruned: the same of those that go.

    >>> float(Magnitudes(jnp.array(2.0), jnp.array(0.5)).pruned)
    0.5
    """

    kept: jax.Array
    pruned: jax.Array


def magnitudes(params: Params, channels: Channels, keep: Keep) -> dict[str, Magnitudes]:
    """Measures how far the pruned filters have gone to zero, layer by layer. Traceable.

    Args:
        params: the weights.
        channels: the model's channels.
        keep: which filters stay; the layers that it leaves out are not measured.

    Returns:
        By path of the kernel.

    Raises:
        ValueError, TypeError: params or a keep that do not fit the layers.

    >>> import flax.linen as nn, numpy as np
    >>> from ntksap_jax import structured
    >>> channels = structured.trace(nn.Sequential([nn.Dense(2), nn.Dense(1)]), (1,))
    >>> params = {"layers_0": {"kernel": jnp.array([[4.0, -0.5]])},
    ...           "layers_1": {"kernel": jnp.ones((2, 1))}}
    >>> sizes = magnitudes(params, channels, {"layers_0/kernel": np.array([True, False])})
    >>> [float(mean) for mean in sizes["layers_0/kernel"]]
    [4.0, 0.5]
    """
    check_keep(channels, keep)
    sizes = filters.mean_sizes(params, channels, keep)

    def mean(path: str, where: Any) -> jax.Array:
        return jnp.sum(jnp.where(where, sizes[path], 0)) / jnp.maximum(jnp.sum(where), 1)

    return {path: Magnitudes(mean(path, kept), mean(path, ~kept)) for path, kept in keep.items()}


def _check_settings(settings: Settings) -> None:
    """Raises a ValueError unless the settings can be followed."""
    if not settings.gram_weight >= 0:
        raise ValueError(f"gram_weight: got {settings.gram_weight!r}, expected at least 0.")
    unknown = set(settings.l2) - set(Settings().l2)
    if unknown or isinstance(settings.l2, str):
        raise ValueError(f"l2: got {settings.l2!r}, expected a tuple of names in {Settings().l2}.")
    for name in ("increment", "ceiling"):
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name}: got {getattr(settings, name)!r}, expected more than 0.")
    least = {"update_interval": 1, "stabilise_steps": 0, "zero_out_interval": 1}
    for name, lowest in least.items():
        value = getattr(settings, name)
        if name == "zero_out_interval" and value is None:
            continue
        if not isinstance(value, numbers.Integral) or value < lowest:
            raise ValueError(f"{name}: got {value!r}, expected an integer of at least {lowest}.")


# -- Training ------------------------------------------------------------------------------------


class RegulariseState(NamedTuple):
    """The state of `regularise`.

    Attributes:
        step: number of steps done.
        keep: which filters stay.
        inner: the wrapped optimiser's state.

    >>> RegulariseState(jnp.array(0), {}, optax.EmptyState()).step
    Array(0, dtype=int32, weak_type=True)
    """

    step: jax.Array
    keep: Keep
    inner: Any


def regularise(
    optimizer: optax.GradientTransformation,
    channels: Channels,
    keep: Keep,
    settings: Settings,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimiser so that plain training becomes the regularised stage of TPP.

    Every update adds the gradient of the penalty at λ(t) to that of the loss, lets the optimiser
    step, and sets the filters of a layer to zero once it is their turn. Momentum goes on
    underneath, as in the released code. After `num_steps` steps the pruned filters are zero and can
    be cut out. This must be the outermost transformation. The optimiser of the released code is SGD
    with momentum 0.9 at rate 0.001.

    Args:
        optimizer: any optax transformation, or a chain of them.
        channels: the model's channels.
        keep: which filters stay. It lives in the state, not in the compiled program.
        settings: see `Settings`.

    Returns:
        The transformation; its `update` needs `params`.

    Raises:
        ValueError, TypeError: settings out of range or too few `stabilise_steps` to set every layer
            to zero; a keep that does not fit the layers; in `update`, no params.

    >>> import flax.linen as nn
    >>> from ntksap_jax import structured
    >>> model = nn.Sequential([nn.Dense(2), nn.Dense(1)])
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    >>> channels = structured.trace(model, (3,))
    >>> keep = {"layers_0/kernel": jnp.array([True, False])}
    >>> settings = Settings(
    ...     update_interval=1, increment=0.5, stabilise_steps=4, zero_out_interval=2)
    >>> optimizer = regularise(optax.sgd(1e-3), channels, keep, settings)
    >>> state = optimizer.init(params)
    >>> for _ in range(num_steps(settings)):
    ...     gradients = jax.tree.map(jnp.ones_like, params)
    ...     updates, state = optimizer.update(gradients, state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params["layers_0"]["kernel"][:, 1].tolist()
    [0.0, 0.0, 0.0]
    """
    _check_settings(settings)
    check_keep(channels, keep)
    interval = settings.zero_out_interval
    if interval is not None:
        needed = interval * (
            1 + max((layer.index for layer in channels.layers.values()), default=0)
        )
        if settings.stabilise_steps < needed:
            raise ValueError(
                f"stabilise_steps: got {settings.stabilise_steps}, expected at least {needed}: "
                f"setting {needed // interval} layers to zero, one every zero_out_interval="
                f"{interval} steps, takes so long. Raise it or shorten the interval."
            )
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> RegulariseState:
        _leaves.kernels(params, channels)
        # A copy: who donates the state to a compiled step does not lose the caller's.
        kept = {path: jnp.array(array) for path, array in keep.items()}
        return RegulariseState(jnp.zeros((), jnp.int32), kept, optimizer.init(params))

    def update(
        updates: Any, state: RegulariseState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, RegulariseState]:
        if params is None:
            raise ValueError(
                "params: got None; the penalty is one of the current params. Call "
                "optimizer.update(grads, state, params)."
            )

        def penalty_of(params: Params) -> jax.Array:
            now = strength(state.step, settings)
            return penalty(params, channels, state.keep, strength=now, settings=settings)

        updates = jax.tree.map(jnp.add, updates, jax.grad(penalty_of)(params))
        updates, inner = optimizer.update(updates, state.inner, params, **extra_args)
        if interval is not None:
            since = state.step - growth_steps(settings)
            leaves, moves = masks.leaf_paths(params), masks.leaf_paths(updates)
            stays = _stays(channels, state.keep, since, interval, leaves)
            # A weight that goes to zero moves by exactly -θ, whatever the optimiser wanted.
            ends = {p: jnp.where(stay, moves[p], -leaves[p]) for p, stay in stays.items()}
            updates = _leaves.replace(updates, ends)
        return updates, RegulariseState(state.step + 1, state.keep, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _stays(
    channels: Channels, keep: Keep, steps_since: Any, interval: int, leaves: Any
) -> dict[str, Any]:
    """What is not set to zero, by path of every leaf that may be: booleans that broadcast to it.

    Input side first: layer i goes once `steps_since`, counted from the step at which λ reached its
    final value, is at least (i + 1)·interval. Kernel, scale and shift go; where no normalisation
    with a scale follows, the bias too, so that what the filter gives is 0. (Behind a normalisation
    whose scale and shift are 0 it is 0 anyhow, and the bias stays, as in the released code.)
    """
    stays: dict[str, Any] = {}
    for path, kept in keep.items():
        layer = channels.layers[path]
        bias = layer.bias if layer.scale is None else None
        early = jnp.asarray(steps_since) < (layer.index + 1) * interval
        for leaf_path in (layer.kernel, bias, layer.scale, layer.shift):
            if leaf_path is not None:
                own = leaves[leaf_path]
                stays[leaf_path] = _leaves.along(kept | early, layer, leaf_path, own)
    return stays
