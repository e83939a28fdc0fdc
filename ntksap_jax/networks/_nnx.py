"""`flax.nnx` models as `Network`s.

An nnx model holds its params itself, and a call of it may change it. Here each call makes a model
of its own from params and inputs, and drops it afterwards. Where a layer must behave otherwise in a
score, the class of that layer is another one, in our copy alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
from flax import nnx as flax_nnx

from ntksap_jax import masks, ops
from ntksap_jax.draws import typed_key
from ntksap_jax.networks import _checks
from ntksap_jax.networks._checks import ModelError
from ntksap_jax.networks._embedding import is_embedded
from ntksap_jax.networks._statistics import Statistics, check_statistics, moments, unbiased_variance
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
    differentiation, as with `networks.linen`. What a call writes into the model is dropped.

    An `nnx.Embed` that is given floating-point inputs whose last axis is its `features` passes
    them on: that is how noise goes in after the embedding of a language model.

    Args:
        make: `make(rngs) -> model`, such as `lambda rngs: MyModel(rngs=rngs)`: called with
            `nnx.Rngs(key)` whenever weights are drawn.
        input_shape: shape of one example, without the batch axis.
        dtype: type of the inputs.
        batch_stats: the running statistics of a trained model, `nnx_batch_stats(model)`, for the
            criteria that score by them; by default those before training.
        conv_general_dilated: how every `nnx.Conv` convolves that has no function of its own for it:
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
    _check_factory(make)
    model = _abstract(make, _without_sharding(conv_general_dilated))
    initial = functools.cache(lambda: _initial(make, model))
    if batch_stats is not None:
        check_statistics(
            batch_stats,
            _pure(flax_nnx.filter_state(model.others, flax_nnx.BatchStat)),
            source="networks.nnx_batch_stats(model) of such a model",
        )

    def draw(key: Key) -> Params:
        return _pure(flax_nnx.state(make(flax_nnx.Rngs(typed_key(key))), flax_nnx.Param))

    def call(
        norm: type | None, params: Params, statistics: Statistics, inputs: Inputs
    ) -> tuple[Any, Statistics]:
        called = flax_nnx.merge(
            model.graphdefs[norm],
            _filled(model.params, params),
            _replaced(initial(), statistics),
            _some_keys(model.rngs),
        )
        with _noting_calls():
            outputs = called(inputs, **call_kwargs)
        return outputs, _pure(flax_nnx.state(called, flax_nnx.BatchStat))

    def apply(params: Params, inputs: Inputs) -> Any:
        return call(_Norm, params, {}, inputs)[0]

    def apply_train(params: Params, inputs: Inputs) -> Any:
        return call(_TrainingNorm, params, {}, inputs)[0]

    def apply_running(params: Params, inputs: Inputs) -> Any:
        return call(None, params, batch_stats or {}, inputs)[0]

    def calibrate(params: Params, inputs: Inputs, *, unbiased: bool = False) -> ApplyFn:
        _, statistics = call(_UnbiasedNorm if unbiased else _Norm, params, {}, inputs)

        def apply_calibrated(params: Params, inputs: Inputs) -> Any:
            return call(None, params, statistics, inputs)[0]

        return apply_calibrated

    network = Network(
        init=jax.jit(draw),  # so that whoever draws weights, and however often, it is compiled once
        apply=apply,
        apply_train=apply_train,
        apply_running=apply_running,
        calibrate=calibrate,
        input_shape=input_shape,
        input_dtype=jnp.dtype(dtype),
    )
    _checks.check_repeatable(draw, jax.random.key(0), name="make")
    _checks.check_network(
        network,
        name="model",
        advice="Pass the arguments that your model's __call__ needs beside the inputs, such as "
        "networks.nnx(make, input_shape, dtype=jnp.int32, train=False).",
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
    _check_model(model, "model")
    return _pure(flax_nnx.state(model, flax_nnx.Param))


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
    _check_model(model, "model")
    return _pure(flax_nnx.state(model, flax_nnx.BatchStat))


# -- Layers that behave otherwise in a score -----------------------------------------------------

_called: ContextVar[list[Any]] = ContextVar("called")


@contextmanager
def _noting_calls() -> Iterator[None]:
    """Within it, every BatchNorm may be called once."""
    token = _called.set([])
    try:
        yield
    finally:
        _called.reset(token)


class _Norm(flax_nnx.BatchNorm):
    """Takes its batch's statistics, as constants, for its running averages, and keeps them."""

    constant = True
    unbiased = False
    ntksap_path: str

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        name = f"model: BatchNorm {self.ntksap_path!r}"
        given = args[0] if args else kwargs.get("use_running_average")
        if not (self.use_running_average if given is None else given):
            raise ModelError(
                f"{name} is in training mode. Pass the arguments of your model that mean "
                "evaluation, such as networks.nnx(..., train=False); the batch's own statistics "
                "are then used all the same."
            )
        if any(module is self for module in _called.get()):
            raise ModelError(
                f"{name} is called twice, so it has no one set of statistics. Give each call a "
                "BatchNorm of its own."
            )
        if kwargs.get("mask") is not None:
            raise ModelError(
                f"{name} is given a mask of its inputs, which is not supported here: score without "
                "padding."
            )
        _called.get().append(self)
        mean, var, count = moments(x, self.axis, constant=self.constant)
        self.mean.set_value(mean)
        self.var.set_value(var)
        outputs = super().__call__(x, *args, **kwargs)
        if self.unbiased:
            self.var.set_value(unbiased_variance(var, count, self.ntksap_path))
        return outputs


class _TrainingNorm(_Norm):
    """The same values, with derivatives through the statistics."""

    constant = False


class _UnbiasedNorm(_Norm):
    """Keeps the unbiased variance."""

    unbiased = True


_NORMS = (_Norm, _TrainingNorm, _UnbiasedNorm)


class _Embed(flax_nnx.Embed):
    """Passes on what is embedded already."""

    ntksap_path: str

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        if is_embedded(inputs, self.features, self.ntksap_path):
            return inputs
        return super().__call__(inputs, *args, **kwargs)


class _Silent(flax_nnx.RngStream):
    """Draws nothing."""

    ntksap_path: str

    def __call__(self) -> jax.Array:
        raise ModelError(
            f"model: draws random numbers ({self.ntksap_path!r}) when it is called in evaluation "
            "mode, so it is no function of params and inputs. Pass the arguments of your model "
            "that mean evaluation, such as networks.nnx(..., deterministic=True)."
        )


def _graphdef(model: flax_nnx.Module, norm: type | None) -> Any:
    """Returns the structure of a model some of whose layers are replaced; the model stays as it is.

    Args:
        model: the model.
        norm: what takes the place of `nnx.BatchNorm`, or None.
    """
    replacements: list[tuple[type, type]] = [
        (flax_nnx.Embed, _Embed),
        (flax_nnx.RngStream, _Silent),
    ]
    if norm is not None:
        replacements.append((flax_nnx.BatchNorm, norm))
    replaced: list[tuple[Any, type]] = []
    for _, node in list(flax_nnx.iter_graph(model)):
        for kind, replacement in replacements:
            if isinstance(node, kind):
                given: Any = type(node)
                replaced.append((node, given))
                _change_class(node, _mixed(given, kind, replacement))
    graphdef = flax_nnx.graphdef(model)
    for node, before in replaced:
        _change_class(node, before)
    return graphdef


def _change_class(node: Any, new: type) -> None:
    # Not by assignment, which nnx takes for an attribute of the model.
    object.__setattr__(node, "__class__", new)


@functools.cache
def _mixed(given: type, kind: type, replacement: type) -> type:
    """Returns a subclass of the given kind of layer that comes to `replacement` before `kind`."""
    if given is kind:
        return replacement
    return type(given)(given.__name__, (given, replacement), {"__module__": given.__module__})


def _without_sharding(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a convolution that takes `out_sharding`, as `nnx.Conv` passes it on."""

    def convolve(*args: Any, out_sharding: Any = None, **kwargs: Any) -> jax.Array:
        if out_sharding is not None:
            kwargs["out_sharding"] = out_sharding
            return jax.lax.conv_general_dilated(*args, **kwargs)
        return function(*args, **kwargs)

    return convolve


# -- Models and their state ----------------------------------------------------------------------


class _Model(NamedTuple):
    """A model without values: its structure for each way to normalise, and its variables."""

    graphdefs: dict[type | None, Any]
    params: flax_nnx.State
    others: flax_nnx.State
    rngs: flax_nnx.State
    norms: set[tuple[Any, ...]]
    """Paths of the BatchNorms."""


def _split(model: flax_nnx.Module) -> tuple[flax_nnx.State, flax_nnx.State, flax_nnx.State]:
    """Returns the params, all other variables but random streams, and those."""
    state = flax_nnx.state(model)
    params, rngs, others = flax_nnx.split_state(state, flax_nnx.Param, flax_nnx.RngState, ...)
    return params, others, rngs


def _pure(state: flax_nnx.State) -> dict[str, Any]:
    return flax_nnx.to_pure_dict(state)


def _filled(state: flax_nnx.State, params: Params) -> flax_nnx.State:
    """Returns the state with the given values."""
    wanted: Any = jax.tree.structure(_pure(state))
    found = jax.tree.structure(params)
    if wanted != found:
        raise ValueError(
            f"params: a tree of other leaves than the model's: {found}, expected {wanted}. Pass "
            "what network.init made, or networks.nnx_params(model) of such a model."
        )
    return _replaced(state, params)


def _replaced(state: flax_nnx.State, values: dict[str, Any]) -> flax_nnx.State:
    """Returns the state with some of its values replaced."""
    copy = jax.tree.map(lambda leaf: leaf, state)
    flax_nnx.replace_by_pure_dict(copy, values)
    return copy


def _initial(make: Callable[[flax_nnx.Rngs], Any], model: _Model) -> flax_nnx.State:
    """Returns the values of variables that are no params: statistics and constants."""
    flat = flax_nnx.to_flat_state(model.others)
    with jax.ensure_compile_time_eval():
        if all(path[:-1] in model.norms for path, _ in flat):
            fill = {
                path: jnp.full(leaf.shape, path[-1] == "var", leaf.dtype) for path, leaf in flat
            }
            return _replaced(model.others, flax.traverse_util.unflatten_dict(fill))
        draw = jax.jit(lambda key: _split(make(flax_nnx.Rngs(key)))[1])
        first, second = draw(jax.random.key(0)), draw(jax.random.key(1))
    again = masks.leaf_paths(_pure(second))
    for path, leaf in masks.leaf_paths(_pure(first)).items():
        if not _checks.are_same(leaf, again[path]):
            raise ModelError(
                f"model: {path!r} is random but no nnx.Param, so the model is "
                "no function of params and inputs. Make it an nnx.Param, and keep it out of the "
                "mask by masks.create(params, exclude=...); or draw it from a key of its own."
            )
    return first


def _some_keys(state: flax_nnx.State) -> flax_nnx.State:
    """Returns the state of random streams with values, which nothing is drawn from."""

    def some(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), leaf.shape)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(some, state)


# -- Checks --------------------------------------------------------------------------------------


def _check_model(model: Any, name: str) -> None:
    if not isinstance(model, flax_nnx.Module):
        raise TypeError(f"{name}: got {_checks.describe(model)}, expected a flax.nnx model.")


def _check_factory(make: Any) -> None:
    example = "networks.nnx(lambda rngs: MyModel(..., rngs=rngs), input_shape)"
    if isinstance(make, flax_nnx.Module):
        raise TypeError(
            f"make: got a model, {type(make).__name__}, expected a function that makes one, since "
            f"weights are drawn anew: {example}. The weights of an existing model are "
            "networks.nnx_params(model); score them with reinit=False."
        )
    if not callable(make) or _checks.kind(make) is not None:
        raise TypeError(
            f"make: got {_checks.describe(make)}, expected a function that makes a flax.nnx model: "
            f"{example}."
        )


def _abstract(make: Callable[[flax_nnx.Rngs], Any], convolve: Callable[..., Any]) -> _Model:
    """Makes a model without values, in evaluation mode, and takes it apart.

    Args:
        make: `make(rngs) -> model`.
        convolve: what takes the place of `jax.lax.conv_general_dilated`.
    """
    graphdefs: dict[type | None, Any] = {}
    norms: set[tuple[Any, ...]] = set()

    def trace() -> Any:
        model, again = (make(flax_nnx.Rngs(0)) for _ in range(2))
        _check_made(model, again)
        model.eval()
        for path, node in list(flax_nnx.iter_graph(model)):
            if getattr(node, "conv_general_dilated", None) is jax.lax.conv_general_dilated:
                node.conv_general_dilated = convolve  # of an nnx.Conv
            if isinstance(node, (flax_nnx.BatchNorm, flax_nnx.Embed, flax_nnx.RngStream)):
                named: Any = node  # by an attribute that only our classes know
                named.ntksap_path = "/".join(map(str, path))
            if isinstance(node, flax_nnx.BatchNorm):
                norms.add(path)
        graphdefs.update({norm: _graphdef(model, norm) for norm in (None, *_NORMS)})
        return _split(model)

    example = "such as lambda rngs: MyModel(..., rngs=rngs)"
    try:
        params, others, rngs = jax.eval_shape(trace)
    except (ModelError, _checks.ModelTypeError):
        raise
    except TypeError as error:
        raise TypeError(f"make: cannot be called as make(rngs), {example}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"make: cannot be traced by JAX: {_checks.first_line(error)}. Expected a function of "
            f"rngs alone, {example}."
        ) from error
    return _Model(graphdefs, params, others, rngs, norms)


def _check_made(model: Any, again: Any) -> None:
    """Raises unless these are two models of the factory, whose params are all different ones."""
    if not isinstance(model, flax_nnx.Module):
        raise _checks.ModelTypeError(
            f"make: returned {_checks.describe(model)}, expected a flax.nnx model."
        )
    if model is again:
        raise ModelError(
            "make: returned the same model twice. Make a new one of the given rngs, such as lambda "
            "rngs: MyModel(..., rngs=rngs); the weights of an existing model are "
            "networks.nnx_params(model)."
        )
    nodes = dict(flax_nnx.iter_graph(model))
    state = dict(flax_nnx.to_flat_state(flax_nnx.state(model)))
    for path, node in nodes.items():
        for name, value in vars(node).items() if isinstance(node, flax_nnx.Module) else ():
            if isinstance(value, jax.core.Tracer) and (*path, name) not in state:
                raise ModelError(
                    f"model: {'/'.join(map(str, (*path, name)))!r} is a bare array, which nnx does "
                    "not keep apart from the model's structure. Make it an nnx.Variable (or "
                    "nnx.Param), or a NumPy array."
                )
    for paths in flax_nnx.find_duplicates(model):
        if _holds_params(nodes.get(paths[0])):
            names = ["/".join(map(str, path)) for path in paths]
            raise ModelError(
                f"model: {names[0]!r} and {names[1]!r} are one and the same, so the model shares "
                "parameters, and a mask would have two entries for one weight. Keep it under one "
                "name and call it twice (nnx.Embed has `attend` for tied outputs), or write init "
                "and apply yourself for networks.plain."
            )


def _holds_params(node: Any) -> bool:
    return isinstance(node, flax_nnx.Param) or (
        isinstance(node, flax_nnx.Pytree)
        and bool(jax.tree.leaves(flax_nnx.state(node, flax_nnx.Param)))
    )
