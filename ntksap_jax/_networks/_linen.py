"""`flax.linen` modules as `Network`s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ntksap_jax import ops
from ntksap_jax._networks import _checks
from ntksap_jax._networks._checks import ModelError
from ntksap_jax._networks._embedding import is_embedded
from ntksap_jax._networks._statistics import (
    Statistics,
    check_statistics,
    moments,
    unbiased_variance,
)
from ntksap_jax.types import ApplyFn, Inputs, Key, Network, Params


def linen(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    dtype: Any = jnp.float32,
    batch_stats: Statistics | None = None,
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
        input_shape: shape of one example, without the batch axis.
        dtype: type of the inputs.
        batch_stats: the module's `"batch_stats"` collection after training, for the criteria that
            score a pretrained network by its running averages; by default those before training.
        conv_general_dilated: the convolution of every `nn.Conv` that was not given one:
            `ops.conv_general_dilated`, or that of `jax.lax`, which is slower on CPU.
        **apply_kwargs: arguments that put the module in *evaluation* mode, such as `train=False`:
            dropout off, batch normalisation set to use its running averages.

    Returns:
        The network; its params are the module's `"params"` collection.

    Raises:
        TypeError: `model` is not an unbound linen module.
        ValueError: a module that cannot be called so, or that keeps collections other than
            `"params"` and `"batch_stats"`, or that is still in training mode.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> network = linen(nn.Dense(2), (3,))
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((5, 3))).shape
    (5, 2)
    """
    input_shape = _checks.check_shape(input_shape)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {_checks.describe(model)}, expected a flax.linen module such as "
            "MyModel(...). For a pair of functions use ntksap_jax.plain(init, apply, input_shape)."
        )
    if model.scope is not None:
        raise TypeError(
            "model: got a bound module; pass the module itself, before bind() or init()."
        )

    def variables(key: Key) -> Any:
        with nn.intercept_methods(_pass_embedded_on(initialising=True)):
            return model.init(key, jnp.zeros((1, *input_shape), dtype), **apply_kwargs)

    @jax.jit  # Compiled once, however often weights are drawn.
    def init(key: Key) -> Params:
        return variables(key).get("params", {})

    def call(variables: Any, inputs: Inputs, **how: Any) -> Any:
        with (
            nn.intercept_methods(_convolve_by(conv_general_dilated)),
            nn.intercept_methods(_pass_embedded_on()),
        ):
            return model.apply(variables, inputs, **apply_kwargs, **how)

    def measure(params: Params, inputs: Inputs, **how: bool) -> tuple[Any, Statistics]:
        """Applies the model with the batch's own statistics; returns them beside the outputs."""
        with nn.intercept_methods(_use_batch_statistics(**how)):
            outputs, updated = call({"params": params}, inputs, mutable=["batch_stats"])
        return outputs, updated.get("batch_stats", {})

    def apply(params: Params, inputs: Inputs) -> Any:
        return measure(params, inputs)[0]

    def apply_train(params: Params, inputs: Inputs) -> Any:
        return measure(params, inputs, constant=False)[0]

    def running() -> Statistics:
        if batch_stats is not None:
            return batch_stats
        shapes = jax.eval_shape(variables, jax.random.key(0)).get("batch_stats", {})
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full(leaf.shape, path[-1].key == "var", leaf.dtype), shapes
        )

    def apply_running(params: Params, inputs: Inputs) -> Any:
        return call({"params": params, "batch_stats": running()}, inputs)

    def calibrate(params: Params, inputs: Inputs, *, unbiased: bool = False) -> ApplyFn:
        _, statistics = measure(params, inputs, unbiased=unbiased)

        def apply_calibrated(params: Params, inputs: Inputs) -> Any:
            return call({"params": params, "batch_stats": statistics}, inputs)

        return apply_calibrated

    shapes = _check_collections(variables, model)
    if batch_stats is not None:
        check_statistics(
            batch_stats,
            shapes.get("batch_stats", {}),
            source='variables["batch_stats"] of this very model',
        )
    network = Network(
        init=init,
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
        advice="Pass the arguments that mean evaluation, such as "
        "ntksap_jax.linen(..., train=False), and the dtype of the inputs. ",
    )
    return network


def _convolve_by(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Makes an interceptor that gives a function to every convolution that has none of its own."""

    def interceptor(
        next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module: Any = context.module
        if (
            not isinstance(module, nn.Conv)
            or context.method_name != "__call__"
            or module.conv_general_dilated is not None
            or module.conv_general_dilated_cls is not None
        ):
            return next_fun(*args, **kwargs)
        # Modules are frozen; this one is the copy that `apply` works on.
        object.__setattr__(module, "conv_general_dilated", function)
        try:
            return next_fun(*args, **kwargs)
        finally:
            object.__setattr__(module, "conv_general_dilated", None)

    return interceptor


def _pass_embedded_on(*, initialising: bool = False) -> Callable[..., Any]:
    """Makes an interceptor that lets every embedding pass on what is embedded already."""

    def interceptor(
        next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if not isinstance(module, nn.Embed) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        inputs = args[0] if args else kwargs["inputs"]
        if not is_embedded(inputs, module.features, "/".join(module.path)):
            return next_fun(*args, **kwargs)
        if initialising:  # Called, so that it has its parameters.
            next_fun(jnp.zeros(inputs.shape[:-1], jnp.int32))
        return inputs

    return interceptor


def _use_batch_statistics(*, unbiased: bool = False, constant: bool = True) -> Callable[..., Any]:
    """Makes an interceptor that gives every BatchNorm its batch's statistics as running averages.

    The module then normalises with its own code, and the statistics end up in the "batch_stats"
    collection. As the authors' PyTorch does, the batch itself is normalised with the biased
    variance, whichever variance is kept.
    """
    seen: set[tuple[str, ...]] = set()

    def interceptor(
        next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        x, *given = args
        argument = given[0] if given else kwargs.pop("use_running_average", None)
        frozen = nn.merge_param("use_running_average", module.use_running_average, argument)
        path = "/".join(module.path)
        if not frozen:
            raise ModelError(
                f"apply_kwargs: BatchNorm {path!r} is in training mode. Pass the arguments of your "
                "model that mean evaluation, such as ntksap_jax.linen(..., train=False); the "
                "batch's own statistics are then used all the same."
            )
        if module.path in seen:
            raise ModelError(
                f"model: BatchNorm {path!r} is called twice, so it has no one set of statistics. "
                "Give each call a BatchNorm of its own."
            )
        seen.add(module.path)
        if kwargs.get("mask") is not None:
            raise ModelError(
                f"model: BatchNorm {path!r} is given a mask of its inputs, which is not supported "
                "here: score without padding."
            )
        mean, var, count = moments(x, module.axis, constant=constant)
        module.put_variable("batch_stats", "mean", mean)
        module.put_variable("batch_stats", "var", var)
        outputs = next_fun(x, argument, **kwargs)
        if unbiased:
            module.put_variable("batch_stats", "var", unbiased_variance(var, count, path))
        return outputs

    return interceptor


def _check_collections(variables: Callable[[Key], Any], model: nn.Module) -> Any:
    """Returns the shapes of the module's variables; raises if some are not ours to handle."""
    name = type(model).__name__
    try:
        collections = jax.eval_shape(variables, jax.random.key(0))
    except ModelError:
        raise
    except Exception as error:
        raise ValueError(
            f"model: {name} cannot be initialised from inputs of the given input_shape, dtype and "
            f"apply_kwargs: {error}"
        ) from error
    unknown = sorted(set(collections) - {"params", "batch_stats"})
    if unknown:
        raise ValueError(
            f"model: {name} keeps state in collection(s) {', '.join(unknown)}, so it is no "
            "function of params and inputs. Expected only 'params' and 'batch_stats'; write the "
            "two functions yourself and use ntksap_jax.plain."
        )
    return collections
