"""Models as `Network`s, the pure functions that criteria work on. All that knows Flax is here.

Batch normalisation is where a Flax module is not a function of params and inputs alone. A score
must normalise with the statistics of its own batch and hold them constant under differentiation
(NTK-SAP, released code: statistics first, then evaluation mode; a derivative that flowed through
them would be the NTK of another function).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from ntksap_jax import ops
from ntksap_jax.types import ApplyFn, Inputs, Key, Network, Params

Statistics = dict[str, Any]


def plain(
    init: Callable[[Key], Params],
    apply: ApplyFn,
    input_shape: tuple[int, ...],
    *,
    dtype: Any = jnp.float32,
) -> Network:
    """Makes a `Network` of two pure functions that take no batch statistics.

    Args:
        init: `init(key) -> params`.
        apply: `apply(params, inputs) -> outputs`.
        input_shape: shape of one example, without the batch axis.
        dtype: type of the inputs.

    Returns:
        The network.

    >>> import jax, jax.numpy as jnp
    >>> def init(key):
    ...     return {"w": jax.random.normal(key, (3, 2))}
    >>> network = plain(init, lambda params, x: x @ params["w"], (3,))
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((5, 3))).shape
    (5, 2)
    """

    def calibrate(params: Params, inputs: Inputs, *, unbiased: bool = False) -> ApplyFn:
        del params, inputs, unbiased
        return apply

    return Network(
        init=jax.jit(init),
        apply=apply,
        apply_train=apply,
        apply_running=apply,
        calibrate=calibrate,
        input_shape=check_shape(input_shape),
        input_dtype=jnp.dtype(dtype),
    )


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
    differentiation. Running averages are not needed for that, and never updated.

    Args:
        model: the (unbound) module, called as `model(inputs, **apply_kwargs)`.
        input_shape: shape of one example, without the batch axis.
        dtype: type of the inputs.
        batch_stats: the module's `"batch_stats"` collection after training, for the criteria that
            score a pretrained network by its running averages; by default those before training.
        conv_general_dilated: how every `nn.Conv` convolves that has no function of its own for it:
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
    input_shape = check_shape(input_shape)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a flax.linen module such as "
            "MyModel(...). For a pair of functions use networks.plain(init, apply, input_shape)."
        )
    if model.scope is not None:
        raise TypeError(
            "model: got a bound module; pass the module itself, before bind() or init()."
        )
    example = jax.ShapeDtypeStruct((1, *input_shape), dtype)

    def variables(key: Key) -> Any:
        return model.init(key, jnp.zeros(example.shape, dtype), **apply_kwargs)

    @jax.jit  # so that whoever draws weights, and however often, it is compiled once
    def init(key: Key) -> Params:
        return variables(key).get("params", {})

    def call(variables: Any, inputs: Inputs, **how: Any) -> Any:
        with nn.intercept_methods(_convolve_by(conv_general_dilated)):
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

    _check_collections(variables, model)
    if batch_stats is not None:
        _check_statistics(batch_stats, variables)
    network = Network(
        init=init,
        apply=apply,
        apply_train=apply_train,
        apply_running=apply_running,
        calibrate=calibrate,
        input_shape=input_shape,
        input_dtype=jnp.dtype(dtype),
    )
    _check_outputs(network, example)
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
        if not frozen:
            raise ValueError(
                f"apply_kwargs: BatchNorm {'/'.join(module.path)!r} is in training mode. Pass the "
                "arguments of your model that mean evaluation, such as networks.linen(..., "
                "train=False); the batch's own statistics are then used all the same."
            )
        if module.path in seen:
            raise ValueError(
                f"model: BatchNorm {'/'.join(module.path)!r} is called twice, so it has no one set "
                "of statistics. Give each call a BatchNorm of its own."
            )
        seen.add(module.path)
        features = module.axis if isinstance(module.axis, tuple) else (module.axis,)
        axes = tuple(i for i in range(x.ndim) if i not in {axis % x.ndim for axis in features})
        x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if constant:
            x32 = jax.lax.stop_gradient(x32)
        if kwargs.get("mask") is not None:
            raise ValueError(
                f"model: BatchNorm {'/'.join(module.path)!r} is given a mask of its inputs, which "
                "is not supported here: score without padding."
            )
        mean, var = _moments(x32, axes)
        module.put_variable("batch_stats", "mean", mean)
        module.put_variable("batch_stats", "var", var)
        outputs = next_fun(x, argument, **kwargs)
        if unbiased:
            count = math.prod(x.shape[axis] for axis in axes)
            if count == 1:
                raise ValueError(
                    f"inputs: BatchNorm {'/'.join(module.path)!r} sees a single value per feature, "
                    "whose unbiased variance does not exist. Use a larger batch_size."
                )
            module.put_variable("batch_stats", "var", var * (count / (count - 1)))
        return outputs

    return interceptor


def _moments(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over some axes, by our sums where they apply: fast on CPU."""
    if axes != tuple(range(x.ndim - 1)):
        return jnp.mean(x, axes), jnp.var(x, axes)
    count = math.prod(x.shape[:-1])
    mean = ops.channel_sum(x) / count
    centred = x - ops.channel_broadcast(mean, x.shape)
    return mean, ops.channel_sum(centred**2) / count


def check_shape(input_shape: Any) -> tuple[int, ...]:
    """Returns the shape of one example as a tuple; raises a TypeError if it is none."""
    try:
        return tuple(operator.index(size) for size in input_shape)
    except TypeError:
        raise TypeError(
            f"input_shape: got {input_shape!r}, expected the shape of one example as a tuple, such "
            "as (32, 32, 3)."
        ) from None


def _check_collections(variables: Callable[[Key], Any], model: nn.Module) -> None:
    try:
        collections = jax.eval_shape(variables, jax.random.key(0))
    except Exception as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be initialised from inputs of the given "
            f"input_shape and apply_kwargs: {error}"
        ) from error
    unknown = sorted(set(collections) - {"params", "batch_stats"})
    if unknown:
        raise ValueError(
            f"model: {type(model).__name__} keeps state in collection(s) {', '.join(unknown)}, so "
            "it is no function of params and inputs. Expected only 'params' and 'batch_stats'; "
            "write the two functions yourself and use networks.plain."
        )


def _check_statistics(batch_stats: Any, variables: Callable[[Key], Any]) -> None:
    expected = jax.eval_shape(variables, jax.random.key(0)).get("batch_stats", {})
    wanted, found = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (expected, batch_stats)
    )
    for path in wanted | found:
        if wanted.get(path) != found.get(path):
            raise ValueError(
                f"batch_stats: leaf {path!r} has shape {found.get(path)}, the model's has "
                f'{wanted.get(path)}. Pass variables["batch_stats"] of this very model.'
            )


def _check_outputs(network: Network, example: jax.ShapeDtypeStruct) -> None:
    params = jax.eval_shape(network.init, jax.random.key(0))
    try:
        outputs = jax.eval_shape(network.apply, params, example)
    except flax.errors.FlaxError as error:
        raise ValueError(
            "model: cannot be applied to inputs of the given input_shape. Pass the arguments that "
            f"mean evaluation, such as networks.linen(..., train=False). Flax says: {error}"
        ) from error
    for leaf in jax.tree.leaves(outputs):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"model: an output has dtype {leaf.dtype}, expected floating point (logits, not "
                "predicted classes)."
            )


def check_finite(network: Network, params: Params, inputs: Inputs) -> None:
    """Raises unless the network's outputs are finite; costs one forward pass.

    Raises:
        ValueError: an output that is NaN or infinite.
    """
    check_are_finite(jax.jit(lambda p, x: are_finite(network.apply(p, x)))(params, inputs))


def are_finite(outputs: Any) -> jax.Array:
    """Whether no entry of the outputs is NaN or infinite. Traceable."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(outputs)]))


def check_are_finite(finite: Any) -> None:
    """Raises the ValueError of `check_finite` unless told True."""
    if not finite:
        raise ValueError(
            "network: its outputs are not finite, so no score can be computed from them. Check "
            "the params (initial scale, a damaged checkpoint), the inputs' range and the dtype."
        )
