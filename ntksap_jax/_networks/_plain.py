"""Two pure functions as a `Network`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax._networks import _checks, _inputs, _stateful
from ntksap_jax._networks._checks import ModelError, OutputFn
from ntksap_jax.types import ApplyFn, Inputs, Key, Network, Params


def plain(
    init: Callable[[Key], Params],
    apply: Callable[..., Any],
    input_shape: Any,
    *,
    dtype: Any = jnp.float32,
    state: Any = None,
    train: Callable[[Params, Any, Inputs], tuple[Any, Any]] | None = None,
    output_fn: OutputFn | None = None,
) -> Network:
    """Makes a `Network` of pure functions.

    This is the way for models of any other framework. One of Equinox, in inference mode, is split
    into the params and what is static, and put together again:

        _, static = eqx.partition(model, eqx.is_inexact_array)

        def init(key):
            return eqx.filter(MyModel(key), eqx.is_inexact_array)

        def apply(params, inputs):
            return jax.vmap(eqx.combine(params, static))(inputs)

    A model with batch statistics is given by its state before training and by a second function,
    the training call. Scores use the statistics of each batch, held constant: the state that
    training calls on it converge to.

    Args:
        init: `init(key) -> params`, a pytree of arrays.
        apply: `apply(params, inputs) -> outputs`: an array with the examples along axis 0, or a
            pytree of such arrays. With a state, `apply(params, state, inputs)`, in evaluation mode.
        input_shape: shape of one example, without the batch axis. For several inputs a dict or a
            tuple of shapes, or of `jax.ShapeDtypeStruct` where types differ; `apply` is given such
            a dict or tuple of arrays.
        dtype: type of the inputs that come as a shape alone.
        state: pytree of arrays: the model's state before training, such as running averages.
        train: `train(params, state, inputs) -> (outputs, state)`, in training mode.
        output_fn: what is looked at, as a function of the outputs, where there are several.

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
    shape, dtype = _inputs.specification(input_shape, dtype)
    named = {"init": init, "apply": apply, **({} if train is None else {"train": train})}
    for name, function in named.items():
        if not callable(function) or _checks.kind(function) is not None:
            raise TypeError(
                f"{name}: got {_checks.describe(function)}, expected a function: init(key) -> "
                "params, apply(params, inputs) -> outputs."
            )
    if (state is None) != (train is None):
        missing, other = ("state", "train") if state is None else ("train", "state")
        raise ValueError(
            f"{missing}: got None, but {other} is given. A model with batch statistics needs both: "
            "its state before training, and train(params, state, inputs) -> (outputs, state)."
        )

    def checked_init(key: Key) -> Params:
        return _checks.check_params(init(key), name="init")

    def calibrate(params: Params, inputs: Inputs, *, unbiased: bool = False) -> ApplyFn:
        del params, inputs, unbiased
        return apply

    if train is None:
        functions = _stateful.Functions(apply, apply, apply, calibrate)
    else:
        functions = _stateful.functions(apply, train, initial=lambda: state, running=lambda: state)
    network = Network(
        init=jax.jit(checked_init), input_shape=shape, input_dtype=dtype, **functions._asdict()
    )
    try:
        params = jax.eval_shape(checked_init, jax.random.key(0))
    except ModelError:
        raise
    except Exception as error:
        raise ValueError(
            "init: cannot be called as init(key) -> params and traced by JAX. "
            f"{type(error).__name__}: {_checks.first_line(error)}"
        ) from error
    if train is not None:
        advice = "Expected train(params, state, inputs) -> (outputs, state) in jax.numpy."
        with _checks.applying(network, name="train", advice=advice):
            _stateful.check_training(train, params, state, network.examples(2))
    arguments = "params, inputs" if train is None else "params, state, inputs"
    return _checks.check_network(
        network,
        name="apply",
        advice=f"Expected a function apply({arguments}) -> outputs of what init returns, in "
        "jax.numpy; the type of the inputs is `dtype`.",
        output_fn=output_fn,
    )
