"""Layers of `flax.linen` that behave otherwise in a score: by interceptors of their calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ntksap_jax._networks._checks import ModelError
from ntksap_jax._networks._embedding import is_embedded
from ntksap_jax._networks._statistics import moments, unbiased_variance

_BATCH_NORM = inspect.unwrap(nn.BatchNorm.__call__)


def is_batch_norm(context: nn.module.InterceptorContext) -> bool:
    """Whether a call is of Flax's own batch normalisation, in a subclass by `super()`."""
    called: Any = context.orig_method
    return inspect.unwrap(called.func) is _BATCH_NORM


def noting_batch_norms(paths: set[tuple[str, ...]]) -> Callable[..., Any]:
    """Makes an interceptor that adds the path of every BatchNorm that is called."""

    def interceptor(
        next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if is_batch_norm(context):
            paths.add(context.module.path)
        return next_fun(*args, **kwargs)

    return interceptor


def convolve_by(function: Callable[..., jax.Array]) -> Callable[..., Any]:
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


def pass_embedded_on(*, initialising: bool = False) -> Callable[..., Any]:
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


def use_batch_statistics(*, unbiased: bool = False, constant: bool = True) -> Callable[..., Any]:
    """Makes an interceptor that gives every BatchNorm its batch's statistics as running averages.

    The module then normalises with its own code, and the statistics end up in the "batch_stats"
    collection. As the authors' PyTorch does, the batch itself is normalised with the biased
    variance, whichever variance is kept.
    """

    def interceptor(
        next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if not is_batch_norm(context):
            return next_fun(*args, **kwargs)
        x, *given = args
        argument = given[0] if given else kwargs.pop("use_running_average", None)
        frozen = nn.merge_param("use_running_average", module.use_running_average, argument)
        path = "/".join(module.path)
        if not frozen:
            raise ModelError(
                f"apply_kwargs: BatchNorm {path!r} is in training mode. Pass the arguments of your "
                "model that mean evaluation, such as ntksap_jax.linen(..., train=False); the "
                "batch's own statistics are then used all the same. If the model takes none, and "
                "goes by whether 'batch_stats' is mutable, pass training={}."
            )
        if module.has_variable("batch_stats", "mean"):
            raise ModelError(
                f"model: BatchNorm {path!r} is called twice, so it has no one set of statistics. "
                "Give each call a BatchNorm of its own."
            )
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
