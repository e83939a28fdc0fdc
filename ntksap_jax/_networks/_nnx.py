"""`flax.nnx` models as `Network`s.

An nnx model holds its params itself, and a call of it may change it. Here each call makes a model
of its own from params and inputs, and drops it afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx as flax_nnx

from ntksap_jax import ops
from ntksap_jax._draws import typed_key
from ntksap_jax._networks import _checks, _inputs, _nnx_layers, _nnx_models, _stateful
from ntksap_jax._networks._checks import OutputFn
from ntksap_jax._networks._statistics import Statistics, check_statistics
from ntksap_jax.types import ApplyFn, Inputs, Key, Network, Params


def nnx(
    make: Callable[[flax_nnx.Rngs], Any],
    input_shape: Any,
    *,
    dtype: Any = jnp.float32,
    batch_stats: Statistics | None = None,
    training: Mapping[str, Any] | None = None,
    output_fn: OutputFn | None = None,
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
        input_shape: shape of one example, without the batch axis; or shapes of several inputs, as
            for `ntksap_jax.linen`.
        dtype: type of the inputs that come as a shape alone.
        batch_stats: the running statistics of a trained model, `nnx_batch_stats(model)`, for the
            criteria that score by them; by default those before training.
        training: further arguments of a *training* call, `{}` if `use_running_average = False` on
            the layers is all. Only for models that normalise by other layers than `nnx.BatchNorm`:
            each batch's statistics are then those that training calls on it converge to.
        output_fn: what is looked at, as a function of the outputs, where there are several.
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
            of its layers, whose outputs depend on random numbers in evaluation mode, or that
            depends on more than params and inputs, such as running averages.

    >>> from flax import nnx as flax_nnx
    >>> network = nnx(lambda rngs: flax_nnx.Linear(3, 2, rngs=rngs), (3,))
    >>> params = network.init(jax.random.key(0))
    >>> network.apply(params, jnp.ones((5, 3))).shape, sorted(params)
    ((5, 2), ['bias', 'kernel'])
    """
    shape, dtype = _inputs.specification(input_shape, dtype)
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
        norm: Any, params: Params, others: flax_nnx.State, rngs: flax_nnx.State, inputs: Inputs
    ) -> tuple[Any, Any]:
        """Returns the outputs, and the model after the call."""
        filled = _nnx_models.filled(model.params, params)
        if norm in _nnx_layers.NORMS:
            others = _nnx_models.unset(others, model.norms)
        called = flax_nnx.merge(model.graphdefs[norm], filled, others, rngs)
        args, kwargs = _inputs.arguments(inputs)
        mode = (training or {}) if norm is _nnx_layers.TRAINING else {}
        return called(*args, **kwargs, **{**call_kwargs, **mode}), called

    def measure(
        norm: type | None, params: Params, statistics: Statistics, inputs: Inputs
    ) -> tuple[Any, Statistics]:
        others = _nnx_models.replaced(initial(), statistics)
        outputs, called = call(norm, params, others, _nnx_models.some_keys(model.rngs), inputs)
        return outputs, _nnx_models.pure(flax_nnx.state(called, flax_nnx.BatchStat))

    def calibrate(params: Params, inputs: Inputs, *, unbiased: bool = False) -> ApplyFn:
        norm = _nnx_layers.UnbiasedNorm if unbiased else _nnx_layers.Norm
        _, statistics = measure(norm, params, {}, inputs)
        return lambda params, inputs: measure(None, params, statistics, inputs)[0]

    def evaluate(params: Params, state: Any, inputs: Inputs) -> Any:
        return measure(None, params, state, inputs)[0]

    def train(params: Params, state: Any, inputs: Inputs) -> tuple[Any, Any]:
        others = _nnx_models.replaced(initial(), state)
        rngs = _nnx_models.some_keys(model.rngs)
        outputs, called = call(_nnx_layers.TRAINING, params, others, rngs, inputs)
        return outputs, _nnx_models.pure(_nnx_models.split(called)[1])

    if training is None:
        made = _stateful.Functions(
            apply=lambda params, inputs: measure(_nnx_layers.Norm, params, {}, inputs)[0],
            apply_train=lambda params, inputs: measure(
                _nnx_layers.TrainingNorm, params, {}, inputs
            )[0],
            apply_running=lambda params, inputs: evaluate(params, batch_stats or {}, inputs),
            calibrate=calibrate,
        )
    else:
        made = _stateful.functions(
            evaluate,
            train,
            initial=lambda: _nnx_models.pure(initial()),
            running=lambda: batch_stats or {},
        )
    # Compiled once, however often weights are drawn.
    network = Network(init=jax.jit(draw), input_shape=shape, input_dtype=dtype, **made._asdict())
    advice = (
        "Pass the arguments that your model's __call__ needs beside the inputs, such as "
        "ntksap_jax.nnx(make, input_shape, dtype=jnp.int32, train=False)."
    )
    with _checks.applying(network, name="model", advice=advice):
        norm = _nnx_layers.Norm if training is None else _nnx_layers.TRAINING
        _nnx_models.check_state(
            model,
            lambda others, rngs, params, inputs: call(norm, params, others, rngs, inputs)[0],
            _nnx_models.pure(model.params),
            network.examples(2),
            training=training is not None,
        )
    return _checks.check_network(network, name="model", advice=advice, output_fn=output_fn)


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
