"""Two pure functions as a `Network`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax._networks import _checks
from ntksap_jax._networks._checks import ModelError
from ntksap_jax.types import ApplyFn, Inputs, Key, Network, Params


def plain(
    init: Callable[[Key], Params],
    apply: ApplyFn,
    input_shape: tuple[int, ...],
    *,
    dtype: Any = jnp.float32,
) -> Network:
    """Makes a `Network` of two pure functions that take no batch statistics.

    This is the way for models of any other framework. One of Equinox, in inference mode, is split
    into the params and what is static, and put together again:

        _, static = eqx.partition(model, eqx.is_inexact_array)

        def init(key):
            return eqx.filter(MyModel(key), eqx.is_inexact_array)

        def apply(params, inputs):
            return jax.vmap(eqx.combine(params, static))(inputs)

    Args:
        init: `init(key) -> params`, a pytree of arrays.
        apply: `apply(params, inputs) -> outputs`: an array with the examples along axis 0, or a
            pytree of such arrays.
        input_shape: shape of one example, without the batch axis.
        dtype: type of the inputs.

    Returns:
        The network.

    Raises:
        TypeError: `init` or `apply` is not a function, but a model for example.
        ValueError: functions that JAX cannot trace; params that are no arrays; outputs that are not
            floating point, or that are a state or a loss instead.

    >>> import jax, jax.numpy as jnp
    >>> def init(key):
    ...     return {"w": jax.random.normal(key, (3, 2))}
    >>> network = plain(init, lambda params, x: x @ params["w"], (3,))
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((5, 3))).shape
    (5, 2)
    """
    input_shape = _checks.check_shape(input_shape)
    for name, function in {"init": init, "apply": apply}.items():
        if not callable(function) or _checks.kind(function) is not None:
            raise TypeError(
                f"{name}: got {_checks.describe(function)}, expected a function: init(key) -> "
                "params, apply(params, inputs) -> outputs."
            )

    def checked_init(key: Key) -> Params:
        return _checks.check_params(init(key), name="init")

    def calibrate(params: Params, inputs: Inputs, *, unbiased: bool = False) -> ApplyFn:
        del params, inputs, unbiased
        return apply

    network = Network(
        init=jax.jit(checked_init),
        apply=apply,
        apply_train=apply,
        apply_running=apply,
        calibrate=calibrate,
        input_shape=input_shape,
        input_dtype=jnp.dtype(dtype),
    )
    try:
        jax.eval_shape(checked_init, jax.random.key(0))
    except ModelError:
        raise
    except Exception as error:
        raise ValueError(
            "init: cannot be called as init(key) -> params and traced by JAX. "
            f"{type(error).__name__}: {_checks.first_line(error)}"
        ) from error
    _checks.check_network(
        network,
        name="apply",
        advice="Expected a function apply(params, inputs) -> outputs of what init returns, in "
        "jax.numpy; the type of the inputs is `dtype`.",
    )
    return network
