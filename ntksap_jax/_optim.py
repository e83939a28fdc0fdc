"""Optimisation under a mask: what makes pruning a hard constraint for any optax optimiser."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ntksap_jax import _boxes, masks
from ntksap_jax.types import ConstrainToMaskState, Mask, Params


def constrain_to_mask(
    optimizer: optax.GradientTransformation, mask: Mask
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimiser so that pruned weights are, and stay, exactly zero.

    The optimiser sees masked gradients and masked params, in `init` as in every `update`. So
    momentum, second moments, weight decay and clipping by the global norm know the sparse network
    alone. Its updates are masked in turn: the update of a pruned weight is -θ. Params that were not
    masked before are handled too: the optimiser's state is that of the masked params, and the first
    step takes the pruned weights to exactly 0.

    It must be the *outermost* transformation: whatever is chained around it can move pruned
    weights.

    Not `optax.masked`, whose mask is one Python boolean per leaf and which passes the gradients of
    the leaves it leaves out through as updates.

    An optimiser that is running already goes on: `update` takes its state as it is, and returns one
    that holds the mask. (What it remembers of pruned weights fades away without any effect.)

    Args:
        optimizer: any optax transformation, or a chain of them.
        mask: boolean mask of the params, which may be in other containers: `nnx.Optimizer` passes
            them as an `nnx.State`. It lives in the state, not in the compiled program: one compiled
            step serves every mask.

    Returns:
        The transformation; its `update` needs `params`.

    Raises:
        TypeError: an optimiser of another library, or one that holds params, such as
            `nnx.Optimizer`.
        ValueError, TypeError: in `init`, a mask that does not fit the params; in `update`, no
            params.

    >>> import jax.numpy as jnp, optax
    >>> params = {"kernel": jnp.array([1.0, 1.0])}
    >>> mask = {"kernel": jnp.array([True, False])}
    >>> optimizer = constrain_to_mask(optax.sgd(0.1, momentum=0.9), mask)
    >>> updates, _ = optimizer.update({"kernel": jnp.ones(2)}, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)
    {'kernel': Array([0.9, 0. ], dtype=float32)}
    """
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            f"optimizer: got {type(optimizer).__name__}, expected an optax transformation, such as "
            "optax.adamw(1e-3). The mask goes inside of what holds params or state: "
            "nnx.Optimizer(model, constrain_to_mask(optax.adamw(1e-3), mask), wrt=nnx.Param), "
            "TrainState.create(..., tx=constrain_to_mask(...))."
        )
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> ConstrainToMaskState:
        fitting = _boxes.fit(mask, params)
        masks.check(fitting, params)
        # A copy, so that a step that donates its state does not take the caller's mask.
        return ConstrainToMaskState(
            jax.tree.map(jnp.copy, fitting), optimizer.init(masks.apply(fitting, params))
        )

    def of_sparse(name: str, value: Any, mask: Mask) -> Any:
        """Has the functions that SAM and line searches evaluate see the sparse network alone."""
        if name == "value_fn":
            return lambda params, *args, **kwargs: value(masks.apply(mask, params), *args, **kwargs)
        if name == "grad_fn":
            return lambda params, *args: masks.apply(mask, value(masks.apply(mask, params), *args))
        return value

    def update(
        updates: Any, state: ConstrainToMaskState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, ConstrainToMaskState]:
        if params is None:
            raise ValueError(
                "params: got None; constrain_to_mask needs the current params to hold pruned "
                "weights at 0. Call optimizer.update(grads, state, params)."
            )
        if not isinstance(state, ConstrainToMaskState):  # That of an optimiser without a mask.
            state = ConstrainToMaskState(mask, state)
        updates, inner = optimizer.update(
            masks.apply(state.mask, updates),
            state.inner,
            masks.apply(state.mask, params),
            **{name: of_sparse(name, value, state.mask) for name, value in extra_args.items()},
        )
        constrained = jax.tree.map(
            lambda m, u, p: u if m is None else jnp.where(m, u, -p),
            _boxes.fit(state.mask, params),
            updates,
            params,
            is_leaf=lambda leaf: leaf is None,
        )
        return constrained, ConstrainToMaskState(state.mask, inner)

    return optax.GradientTransformationExtraArgs(init, update)
