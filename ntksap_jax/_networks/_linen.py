"""`flax.linen` modules as `Network`s."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from ntksap_jax import ops
from ntksap_jax._networks import _checks, _inputs, _linen_layers, _stateful
from ntksap_jax._networks._checks import ModelError, OutputFn
from ntksap_jax._networks._statistics import Statistics, check_statistics
from ntksap_jax.types import ApplyFn, Inputs, Key, Network, Params


def linen(
    model: nn.Module,
    input_shape: Any,
    *,
    dtype: Any = jnp.float32,
    batch_stats: Statistics | None = None,
    training: Mapping[str, Any] | None = None,
    output_fn: OutputFn | None = None,
    conv_general_dilated: Callable[..., jax.Array] = ops.conv_general_dilated,
    **apply_kwargs: Any,
) -> Network:
    """Makes a `Network` of a `flax.linen` module.

    Every `nn.BatchNorm` in the module, however deep, normalises with the mean and (biased) variance
    of its own batch, computed in one extra pass over the activations and held constant under
    differentiation. Running averages are neither needed for that nor updated.

    Integer inputs, as of a language model, need `dtype=jnp.int32`. An `nn.Embed` that is given
    floating-point inputs whose last axis is its `features` (which Flax itself refuses) passes them
    on: so noise goes in after the embedding, by `inputs=` of `criteria.ntk_sap`, or by
    `linen(model, (length, features))`, which makes a network of embedded inputs. The model's own
    code must do with such inputs, too: take lengths from axis 1, not -1.

    Args:
        model: the (unbound) module, called as `model(inputs, **apply_kwargs)`.
        input_shape: shape of one example, without the batch axis. For several inputs a dict of
            shapes, for arguments by name, or a tuple of shapes, for arguments in that order; a
            `jax.ShapeDtypeStruct` in place of a shape has a type of its own.
        dtype: type of the inputs that come as a shape alone.
        batch_stats: the module's `"batch_stats"` collection after training, for the criteria that
            score a pretrained network by its running averages; by default those before training.
        training: the arguments that put the module in *training* mode, such as `{"train": True}`
            (dropout stays off: pass its rate as 0, too), or `{}` where mutable collections mean
            training. Only for modules that normalise by other
            layers than `nn.BatchNorm`, whatever collection they keep averages in: each batch's
            statistics are then those that training calls on it converge to.
        output_fn: what is looked at, as a function of the outputs, where the module returns
            several: `lambda outputs: outputs["logits"]`.
        conv_general_dilated: the convolution of every `nn.Conv` that was not given one:
            `ops.conv_general_dilated`, or that of `jax.lax`, which is slower on CPU.
        **apply_kwargs: arguments that put the module in *evaluation* mode, such as `train=False`:
            dropout off, batch normalisation set to use its running averages.

    Returns:
        The network; its params are the module's `"params"` collection.

    Raises:
        TypeError: `model` is not an unbound linen module.
        ValueError: a module that cannot be called so, that is still in training mode, or that
            depends on state which is no statistic of an `nn.BatchNorm`, if `training` is not given.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> network = linen(nn.Dense(2), (3,))
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((5, 3))).shape
    (5, 2)
    """
    shape, dtype = _inputs.specification(input_shape, dtype)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {_checks.describe(model)}, expected a flax.linen module such as "
            "MyModel(...). For a pair of functions use ntksap_jax.plain(init, apply, input_shape)."
        )
    if model.scope is not None:
        raise TypeError(
            "model: got a bound module; pass the module itself, before bind() or init()."
        )
    norms: set[tuple[str, ...]] = set()

    def variables(key: Key) -> Any:
        zeros = jax.tree.map(lambda d, s: jnp.zeros((1, *s), d), dtype, shape)
        args, kwargs = _inputs.arguments(zeros)
        with (
            nn.intercept_methods(_linen_layers.pass_embedded_on(initialising=True)),
            nn.intercept_methods(_linen_layers.noting_batch_norms(norms)),
        ):
            return model.init(key, *args, **kwargs, **apply_kwargs)

    @jax.jit  # Compiled once, however often weights are drawn.
    def init(key: Key) -> Params:
        return variables(key).get("params", {})

    def call(variables: Any, inputs: Inputs, mode: Mapping[str, Any], **how: Any) -> Any:
        args, kwargs = _inputs.arguments(inputs)
        with (
            nn.intercept_methods(_linen_layers.convolve_by(conv_general_dilated)),
            nn.intercept_methods(_linen_layers.pass_embedded_on()),
        ):
            return model.apply(variables, *args, **kwargs, **mode, **how)

    state_shapes = dict(_collections(variables, model))
    params_shapes = state_shapes.pop("params", {})
    examples = jax.tree.map(lambda d, s: jax.ShapeDtypeStruct((2, *s), d), dtype, shape)
    collection = min(state_shapes, key="batch_stats".__ne__, default="batch_stats")
    if batch_stats is not None:
        check_statistics(
            batch_stats,
            state_shapes.get(collection, {}),
            source=f'variables["{collection}"] of this very model',
        )

    # -- Statistics of nn.BatchNorm: replaced where they are used -------------------------------

    flat = flax.traverse_util.flatten_dict(state_shapes)
    sown = {path[0] for path, leaf in flat.items() if isinstance(leaf, tuple)}
    of_norms = {("batch_stats", *path) for path in norms}
    others = flax.traverse_util.unflatten_dict(
        {path: leaf for path, leaf in flat.items() if path[:-1] not in of_norms}
    )

    def measure(params: Params, inputs: Inputs, others: Any, **how: bool) -> tuple[Any, Statistics]:
        """Applies the model with the batch's own statistics; returns them beside the outputs."""
        with nn.intercept_methods(_linen_layers.use_batch_statistics(**how)):
            outputs, updated = call(
                {"params": params, **others}, inputs, apply_kwargs, mutable=["batch_stats"]
            )
        return outputs, updated.get("batch_stats", {})

    def unused() -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), others)

    def before_training() -> Statistics:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full(leaf.shape, path[-1].key == "var", leaf.dtype),
            state_shapes.get("batch_stats", {}),
        )

    def evaluate(params: Params, state: Any, inputs: Inputs) -> Any:
        return call({"params": params, **state}, inputs, apply_kwargs)

    def calibrate(params: Params, inputs: Inputs, *, unbiased: bool = False) -> ApplyFn:
        _, statistics = measure(params, inputs, unused(), unbiased=unbiased)
        state = {**unused(), "batch_stats": statistics}
        return lambda params, inputs: evaluate(params, state, inputs)

    def in_both_ways(others: Any, params: Params, inputs: Inputs) -> Any:
        """A layer may go by its averages in one of them alone: where they are not mutable."""
        outputs, statistics = measure(params, inputs, others)
        return outputs, evaluate(params, {**others, "batch_stats": statistics}, inputs)

    # -- Statistics of any other layer: what training calls leave -------------------------------

    def train(params: Params, state: Any, inputs: Inputs) -> tuple[Any, Any]:
        mode = {**apply_kwargs, **(training or {})}
        # What is sown grows with each call, and is nothing that the model reads.
        mutable = [name for name in state if name not in sown]
        outputs, updated = call({"params": params, **state}, inputs, mode, mutable=mutable)
        return outputs, {**state, **updated}

    @functools.cache
    def initial() -> Any:
        with jax.ensure_compile_time_eval():
            drawn = jax.jit(variables)(jax.random.key(0))
        return {name: drawn[name] for name in state_shapes}

    if training is None:
        functions = _stateful.Functions(
            apply=lambda params, inputs: measure(params, inputs, unused())[0],
            apply_train=lambda params, inputs: measure(params, inputs, unused(), constant=False)[0],
            apply_running=lambda params, inputs: evaluate(
                params, {**unused(), "batch_stats": batch_stats or before_training()}, inputs
            ),
            calibrate=calibrate,
        )
    else:
        given = {} if batch_stats is None else {collection: batch_stats}
        functions = _stateful.functions(
            evaluate, train, initial=initial, running=lambda: {**initial(), **given}
        )
    network = Network(init=init, input_shape=shape, input_dtype=dtype, **functions._asdict())
    advice = (
        "Pass the arguments that mean evaluation, such as ntksap_jax.linen(..., train=False), and "
        "the dtype of the inputs. "
    )
    if others:
        advice += (
            f"The module keeps state in collection(s) {', '.join(sorted(others))}: if it changes "
            "that in evaluation too, write two functions and use ntksap_jax.plain. "
        )
    with _checks.applying(network, name="model", advice=advice):
        if training is None and others:
            _stateful.check_independent(
                in_both_ways,
                others,
                params_shapes,
                examples,
                way_out=_NO_BATCH_NORM,
            )
        if training is not None and state_shapes:
            _stateful.check_training(train, params_shapes, state_shapes, examples)
    return _checks.check_network(network, name="model", advice=advice, output_fn=output_fn)


_NO_BATCH_NORM = (
    "which is no statistic of an nn.BatchNorm: running averages, most likely, and those of a "
    "network before training mean nothing. Say how it is called in training, such as "
    "ntksap_jax.linen(..., train=False, training={'train': True}): then each batch's own "
    "statistics are used, as a training call computes them, and constants stay as they are. "
    + _stateful.BY_PLAIN
)


def _collections(variables: Callable[[Key], Any], model: nn.Module) -> Any:
    """Returns the shapes of the module's variables."""
    try:
        return jax.eval_shape(variables, jax.random.key(0))
    except ModelError:
        raise
    except Exception as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be initialised from inputs of the given "
            f"input_shape, dtype and apply_kwargs: {error}"
        ) from error
