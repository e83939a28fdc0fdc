"""`flax.nnx` models as `Network`s.

An nnx model holds its params itself, and a call of it may change it. Here each call makes a model
of its own from params and inputs, and drops it afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx as flax_nnx

from ntksap_jax import ops
from ntksap_jax._draws import typed_key
from ntksap_jax._networks import _checks, _nnx_layers, _nnx_models
from ntksap_jax._networks._statistics import Statistics, check_statistics
from ntksap_jax.types import ApplyFn, Inputs, Key, Network, Params


def nnx(
    make: Callable[[flax_nnx.Rngs], Any],
    input_shape: tuple[int, ...],
    *,
    dtype: Any = jnp.float32,
    batch_stats: Statistics | None = None,
    conv_general_dilated: Callable[..., jax.Array] = ops.conv_general_dilated,
    **call_kwargs: Any,
) -> Network:
    """Makes a `Network` of a function that makes a `flax.nnx` model.

    The model is put in evaluation mode (`model.eval()`: dropout off), and every `nnx.BatchNorm` in
    it normalises with the mean and (biased) variance of its own batch, held constant under
    differentiation, as with `ntksap_jax.linen`. What a call writes into the model is dropped.

    An `nnx.Embed` that is given floating-point inputs whose last axis is its `features` passes
    them on: that is how noise goes in after the embedding of a language model.

    Args:
        make: `make(rngs) -> model`, such as `lambda rngs: MyModel(rngs=rngs)`: called with
            `nnx.Rngs(key)` whenever weights are drawn.
        input_shape: shape of one example, without the batch axis.
        dtype: type of the inputs.
        batch_stats: the running statistics of a trained model, `nnx_batch_stats(model)`, for the
            criteria that score by them; by default those before training.
        conv_general_dilated: the convolution of every `nnx.Conv` that was not given one:
            `ops.conv_general_dilated`, or that of `jax.lax`, which is slower on CPU.
        **call_kwargs: further arguments of `model(inputs, **call_kwargs)`.

    Returns:
        The network. Its params are the values of the model's `nnx.Param`s as a dict of dicts, with
        paths such as "conv1/kernel", as `nnx_params` makes them of an existing model;
        `nnx.update(model, params)` puts them back. Other variables, such as tables of constants,
        are those of `make(nnx.Rngs(0))`.

    Raises:
        TypeError: `make` is not such a function, but a model for example.
        ValueError: a model that cannot be made or called so, that shares a parameter between two
            of its layers, that draws random numbers in evaluation mode, or that depends on more
            than params and inputs.

    >>> from flax import nnx as flax_nnx
    >>> network = nnx(lambda rngs: flax_nnx.Linear(3, 2, rngs=rngs), (3,))
    >>> params = network.init(jax.random.key(0))
    >>> network.apply(params, jnp.ones((5, 3))).shape, sorted(params)
    ((5, 2), ['bias', 'kernel'])
    """
    input_shape = _checks.check_shape(input_shape)
    _nnx_models.check_factory(make)
    model = _nnx_models.abstract(make, _nnx_layers.without_sharding(conv_general_dilated))
    initial = functools.cache(lambda: _nnx_models.initial_values(make, model))
    if batch_stats is not None:
        check_statistics(
            batch_stats,
            _nnx_models.pure(flax_nnx.filter_state(model.others, flax_nnx.BatchStat)),
            source="exchange.nnx_batch_stats(model) of such a model",
        )

    def draw(key: Key) -> Params:
        return _nnx_models.pure(flax_nnx.state(make(flax_nnx.Rngs(typed_key(key))), flax_nnx.Param))

    def call(
        norm: type | None, params: Params, statistics: Statistics, inputs: Inputs
    ) -> tuple[Any, Statistics]:
        called = flax_nnx.merge(
            model.graphdefs[norm],
            _nnx_models.filled(model.params, params),
            _nnx_models.replaced(initial(), statistics),
            _nnx_models.some_keys(model.rngs),
        )
        with _nnx_layers.noting_calls():
            outputs = called(inputs, **call_kwargs)
        return outputs, _nnx_models.pure(flax_nnx.state(called, flax_nnx.BatchStat))

    def apply(params: Params, inputs: Inputs) -> Any:
        return call(_nnx_layers.Norm, params, {}, inputs)[0]

    def apply_train(params: Params, inputs: Inputs) -> Any:
        return call(_nnx_layers.TrainingNorm, params, {}, inputs)[0]

    def apply_running(params: Params, inputs: Inputs) -> Any:
        return call(None, params, batch_stats or {}, inputs)[0]

    def calibrate(params: Params, inputs: Inputs, *, unbiased: bool = False) -> ApplyFn:
        _, statistics = call(
            _nnx_layers.UnbiasedNorm if unbiased else _nnx_layers.Norm, params, {}, inputs
        )

        def apply_calibrated(params: Params, inputs: Inputs) -> Any:
            return call(None, params, statistics, inputs)[0]

        return apply_calibrated

    network = Network(
        init=jax.jit(draw),  # Compiled once, however often weights are drawn.
        apply=apply,
        apply_train=apply_train,
        apply_running=apply_running,
        calibrate=calibrate,
        input_shape=input_shape,
        input_dtype=jnp.dtype(dtype),
    )
    _checks.check_network(
        network,
        name="model",
        advice="Pass the arguments that your model's __call__ needs beside the inputs, such as "
        "ntksap_jax.nnx(make, input_shape, dtype=jnp.int32, train=False).",
    )
    return network


def nnx_params(model: flax_nnx.Module) -> Params:
    """Returns the params of an existing nnx model, such as a pretrained one, as `nnx` has them.

    Args:
        model: the model; it is not changed.

    Returns:
        The values of its `nnx.Param`s as a dict of dicts.

    Raises:
        TypeError: not an nnx model.

    >>> from flax import nnx as flax_nnx
    >>> model = flax_nnx.Linear(3, 2, rngs=flax_nnx.Rngs(0))
    >>> nnx_params(model)["kernel"].shape
    (3, 2)
    """
    _nnx_models.check_model(model, "model")
    return _nnx_models.pure(flax_nnx.state(model, flax_nnx.Param))


def nnx_batch_stats(model: flax_nnx.Module) -> Statistics:
    """Returns the running statistics of an existing nnx model: `batch_stats` of `nnx`.

    Args:
        model: the model; it is not changed.

    Returns:
        The values of its `nnx.BatchStat`s as a dict of dicts.

    Raises:
        TypeError: not an nnx model.

    >>> from flax import nnx as flax_nnx
    >>> model = flax_nnx.BatchNorm(2, rngs=flax_nnx.Rngs(0))
    >>> nnx_batch_stats(model)["var"].tolist()
    [1.0, 1.0]
    """
    _nnx_models.check_model(model, "model")
    return _nnx_models.pure(flax_nnx.state(model, flax_nnx.BatchStat))
