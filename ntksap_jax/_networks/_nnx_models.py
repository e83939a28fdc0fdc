"""Models of `flax.nnx`, taken apart into structure and variables, and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx as flax_nnx

from ntksap_jax import masks
from ntksap_jax._networks import _checks, _stateful
from ntksap_jax._networks._checks import ModelError
from ntksap_jax._networks._nnx_layers import NORMS, TRAINING, UNSET, graphdef_of
from ntksap_jax.types import Params


class Model(NamedTuple):
    """A model without values: its structure for each way to normalise, and its variables."""

    graphdefs: dict[Any, Any]
    params: flax_nnx.State
    others: flax_nnx.State
    rngs: flax_nnx.State
    norms: set[tuple[Any, ...]]
    """Paths of the BatchNorms."""


def split(model: flax_nnx.Module) -> tuple[flax_nnx.State, flax_nnx.State, flax_nnx.State]:
    """Returns the params, all other variables but random streams, and those."""
    state = flax_nnx.state(model)
    params, rngs, others = flax_nnx.split_state(state, flax_nnx.Param, flax_nnx.RngState, ...)
    return params, others, rngs


def pure(state: flax_nnx.State) -> dict[str, Any]:
    return flax_nnx.to_pure_dict(state)


def filled(state: flax_nnx.State, params: Params) -> flax_nnx.State:
    """Returns the state with the given values."""
    if isinstance(params, flax_nnx.State):
        params = pure(params)
    wanted: Any = jax.tree.structure(pure(state))
    given = jax.tree.structure(params)
    if wanted != given:
        raise ValueError(
            f"params: a tree of other leaves than the model's: {given}, expected {wanted}. Pass "
            "what network.init made, or exchange.nnx_params(model) of such a model."
        )
    return replaced(state, params)


def replaced(state: flax_nnx.State, values: dict[str, Any]) -> flax_nnx.State:
    """Returns the state with some of its values replaced."""
    copy = jax.tree.map(lambda leaf: leaf, state)
    flax_nnx.replace_by_pure_dict(copy, values)
    return copy


def unset(state: flax_nnx.State, norms: set[tuple[Any, ...]]) -> flax_nnx.State:
    """Returns the state with statistics that no call has set yet."""
    flat = flax_nnx.to_flat_state(state)
    nothing = {path: jnp.zeros(v.shape, UNSET) for path, v in flat if path[:-1] in norms}
    return replaced(state, flax.traverse_util.unflatten_dict(nothing))


def initial_values(make: Callable[[flax_nnx.Rngs], Any], model: Model) -> flax_nnx.State:
    """Returns the values of variables that are no params: statistics and constants."""
    flat = flax_nnx.to_flat_state(model.others)
    with jax.ensure_compile_time_eval():
        if all(path[:-1] in model.norms for path, _ in flat):
            fill = {
                path: jnp.full(leaf.shape, path[-1] == "var", leaf.dtype) for path, leaf in flat
            }
            return replaced(model.others, flax.traverse_util.unflatten_dict(fill))
        draw = jax.jit(lambda key: split(make(flax_nnx.Rngs(key)))[1])
        first, second = draw(jax.random.key(0)), draw(jax.random.key(1))
    again = masks.leaf_paths(pure(second))
    for path, leaf in masks.leaf_paths(pure(first)).items():
        if np.asarray(leaf).tobytes() != np.asarray(again[path]).tobytes():
            raise ModelError(
                f"model: {path!r} is random but no nnx.Param, so the model is "
                "no function of params and inputs. Make it an nnx.Param, and keep it out of the "
                "mask by masks.create(params, exclude=...); or draw it from a key of its own."
            )
    return first


def some_keys(state: flax_nnx.State) -> flax_nnx.State:
    """Returns the state of random streams with values, which nothing is drawn from."""

    def some(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), leaf.shape)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(some, state)


# -- Checks ----------------------------------------------------------------------------------------


def check_model(model: Any, name: str) -> None:
    if not isinstance(model, flax_nnx.Module):
        raise TypeError(f"{name}: got {_checks.describe(model)}, expected a flax.nnx model.")


def check_factory(make: Any) -> None:
    example = "ntksap_jax.nnx(lambda rngs: MyModel(..., rngs=rngs), input_shape)"
    if isinstance(make, flax_nnx.Module):
        raise TypeError(
            f"make: got a model, {type(make).__name__}, expected a function that makes one, since "
            f"weights are drawn anew: {example}. The weights of an existing model are "
            "exchange.nnx_params(model); score them with reinit=False."
        )
    if not callable(make) or _checks.kind(make) is not None:
        raise TypeError(
            f"make: got {_checks.describe(make)}, expected a function that makes a flax.nnx model: "
            f"{example}."
        )


def abstract(make: Callable[[flax_nnx.Rngs], Any], convolve: Callable[..., Any]) -> Model:
    """Makes a model without values, in evaluation mode, and takes it apart.

    Args:
        make: `make(rngs) -> model`.
        convolve: what takes the place of `jax.lax.conv_general_dilated`.
    """
    graphdefs: dict[Any, Any] = {}
    norms: set[tuple[Any, ...]] = set()

    def trace() -> Any:
        model, again = (make(flax_nnx.Rngs(0)) for _ in range(2))
        _check_made(model, again)
        model.eval()
        for path, node in list(flax_nnx.iter_graph(model)):
            if getattr(node, "conv_general_dilated", None) is jax.lax.conv_general_dilated:
                node.conv_general_dilated = convolve  # of an nnx.Conv
            if isinstance(node, (flax_nnx.BatchNorm, flax_nnx.Embed)):
                named: Any = node  # by an attribute that only our classes know
                named.ntksap_path = "/".join(map(str, path))
            if isinstance(node, flax_nnx.BatchNorm):
                norms.add(path)
        graphdefs.update({norm: graphdef_of(model, norm) for norm in (None, *NORMS)})
        parts = split(model)
        model.set_attributes(use_running_average=False, raise_if_not_found=False)
        graphdefs[TRAINING] = graphdef_of(model, None)
        return parts

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
    return Model(graphdefs, params, others, rngs, norms)


def check_state(
    model: Model, outputs_of: Callable[..., Any], *arguments: Any, training: bool
) -> None:
    """Raises a ValueError if the outputs depend on random numbers or on running averages.

    Args:
        model: the model.
        outputs_of: `outputs_of(others, rngs, *arguments)`.
        *arguments: shapes of the other arguments.
        training: whether that is the training call, which no average may have an influence on.
    """
    state = (pure(model.others), pure(model.rngs))
    if not jax.tree.leaves(state):
        return
    used = set().union(
        *_stateful.dependencies(
            lambda state, *rest: outputs_of(
                replaced(model.others, state[0]), replaced(model.rngs, state[1]), *rest
            ),
            state,
            *arguments,
        )
    )
    drawn = sorted(path for path in used if path.startswith("1/"))
    if drawn:
        stream = drawn[0].removeprefix("1/").rpartition("/")[0]
        raise ModelError(
            f"model: draws random numbers ({stream!r}) when it is called in evaluation mode, so it "
            "is no function of params and inputs. Pass the arguments of your model that mean "
            "evaluation, such as ntksap_jax.nnx(..., deterministic=True)."
        )
    for path, variable in flax_nnx.to_flat_state(model.others):
        name = "/".join(map(str, path))
        kinds = (type(variable).__name__, str(path[-1]))
        if f"0/{name}" in used and any(map(_stateful.STATISTIC.search, kinds)):
            way_out = _stateful.TRAINING_DEPENDS if training else _NO_BATCH_NORM
            raise ModelError(f"model: its outputs depend on {name!r}, {way_out}")


_NO_BATCH_NORM = (
    "which is no statistic of an nnx.BatchNorm: a running average, most likely, and those of a "
    "model before training mean nothing. Say how it is called in training, such as "
    "ntksap_jax.nnx(make, input_shape, training={}) (use_running_average = False is set on its "
    "layers anyway): then each batch's own statistics are used, as a training call computes them. "
    + _stateful.BY_PLAIN
)


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
            "exchange.nnx_params(model)."
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
                "and apply yourself for ntksap_jax.plain."
            )


def _holds_params(node: Any) -> bool:
    return isinstance(node, flax_nnx.Param) or (
        isinstance(node, flax_nnx.Pytree)
        and bool(jax.tree.leaves(flax_nnx.state(node, flax_nnx.Param)))
    )
