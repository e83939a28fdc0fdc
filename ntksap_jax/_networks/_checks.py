"""Checks of models, all of them before anything is compiled, and of what a network computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import masks
from ntksap_jax.types import ApplyFn, Network, Params

OutputFn = Callable[[Any], Any]
"""What is looked at, as a function of the outputs."""


class ModelError(ValueError):
    """A ValueError of ours, raised while a model is traced. Its message is complete."""


class ModelTypeError(TypeError):
    """A TypeError of the same kind."""


# -- Arguments -----------------------------------------------------------------------------------

_ADVICE = {
    "flax.linen": "ntksap_jax.linen(model, input_shape)",
    "flax.nnx": "ntksap_jax.nnx(lambda rngs: MyModel(..., rngs=rngs), input_shape)",
    "equinox": "ntksap_jax.plain(init, apply, input_shape) with `params, static = eqx.partition("
    "model, eqx.is_inexact_array)` in init and `jax.vmap(eqx.combine(params, static))` in apply",
    "torch": "a model written in JAX; exchange.from_torch brings its weights",
}


def kind(model: Any) -> str | None:
    """Returns which library a model is of, if it is an instance of one's modules."""
    if isinstance(model, flax.linen.Module):
        return "flax.linen"
    if isinstance(model, flax.nnx.Module):
        return "flax.nnx"
    roots = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    return next((name for name in ("equinox", "torch") if name in roots), None)


def describe(model: Any) -> str:
    """Says what was given in the place of a model, and what to do with it."""
    name = type(model).__name__
    if isinstance(model, type):
        return f"the class {model.__name__}"
    library = kind(model)
    if library is None:
        return name
    return f"{name}, which is of {library} (for that use {_ADVICE[library]})"


# -- A network, traced ---------------------------------------------------------------------------


@contextlib.contextmanager
def applying(network: Network, *, name: str, advice: str) -> Iterator[None]:
    """Within it, whatever goes wrong in a model is told as a wrong call of it."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name}: cannot be applied to inputs of {_told(network.examples(2))}. {advice} "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def check_network(
    network: Network, *, name: str, advice: str, output_fn: OutputFn | None
) -> Network:
    """Raises unless `network.apply` takes the inputs, and a kernel can be taken of its outputs.

    Args:
        network: the network.
        name: what to call the function in messages: the argument that it was made of.
        advice: what to do where it cannot be applied to the inputs.
        output_fn: what is looked at, as a function of the outputs.

    Returns:
        The network, whose outputs are those that `output_fn` returns.

    Raises:
        TypeError: `output_fn` is no function.
        ValueError: see the messages.
    """
    params = jax.eval_shape(network.init, jax.random.key(0))
    with applying(network, name=name, advice=advice):
        outputs = jax.eval_shape(network.apply, params, network.examples(2))
    structure = _told(outputs)
    if output_fn is not None:
        network = _looking_at(network, output_fn)
        with applying(network, name="output_fn", advice=f"The model returns {structure}."):
            outputs = jax.eval_shape(network.apply, params, network.examples(2))
    several = len(jax.tree.leaves(outputs)) > 1
    more = jax.eval_shape(network.apply, params, network.examples(3)) if several else None
    _check_outputs(outputs, more, name, structure)
    return network._replace(several_outputs=structure if several and output_fn is None else "")


def check_one_output(network: Network) -> None:
    """Raises a ValueError if a network has several outputs, none of which was chosen."""
    if network.several_outputs:
        raise ValueError(
            f"network: it returns several arrays, {network.several_outputs}, and nothing says "
            "which are the outputs to look at. Choose by output_fn=, such as "
            "ntksap_jax.linen(..., output_fn=lambda outputs: outputs[0])."
        )


def _looking_at(network: Network, output_fn: OutputFn) -> Network:
    """Returns the network with a function of its outputs in their place."""
    if not callable(output_fn):
        raise TypeError(f"output_fn: got {output_fn!r}, expected a function of the outputs.")

    def after(apply: ApplyFn) -> ApplyFn:
        return lambda params, inputs: output_fn(apply(params, inputs))

    return network._replace(
        apply=after(network.apply),
        apply_train=after(network.apply_train),
        apply_running=after(network.apply_running),
        calibrate=lambda *args, **kwargs: after(network.calibrate(*args, **kwargs)),
    )


def _check_outputs(outputs: Any, more: Any, name: str, structure: str) -> None:
    """Raises unless all outputs are floating point, with an axis of examples.

    Args:
        outputs: their shapes for 2 examples.
        more: their shapes for 3, or None where there is but one: a state that happens to have two
            entries is no output.
        name: as in `check_network`.
        structure: describes what the model returns.
    """
    leaves = masks.leaf_paths(outputs)
    choose = (
        f"It returns {structure}: choose what to look at by output_fn=, such as "
        "output_fn=lambda outputs: outputs[0]."
    )
    if not leaves:
        raise ValueError(f"{name}: returns no array, expected the outputs.")
    for path, leaf in leaves.items():
        which = f"output {path!r} of the {len(leaves)} that it returns" if path else "its output"
        lengths = {leaf.shape[:1]} | {each.shape[:1] for each in [_at(more, path)] if more}
        expected = {(2,), (3,)} if more is not None else {(2,)}
        if lengths != expected:
            raise ValueError(
                f"{name}: {which} has shape {leaf.shape} for 2 examples, so it has no axis of "
                f"examples, as if it were a state or a loss. {choose}"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{name}: {which} has dtype {leaf.dtype}, expected floating point (logits, not "
                f"predicted classes). {choose if len(leaves) > 1 else ''}".rstrip()
            )


def _at(tree: Any, path: str) -> Any:
    return masks.leaf_paths(tree).get(path)


def _told(tree: Any) -> str:
    """Says of which shapes and types the arrays of a pytree are."""
    leaves = masks.leaf_paths(tree).items()
    return "; ".join(
        f"{f'{path!r}: ' if path else ''}shape {leaf.shape} and dtype {leaf.dtype}"
        for path, leaf in leaves
    )


def check_params(params: Params, *, name: str) -> Params:
    """Returns the params that a function made; raises unless they are a pytree of arrays."""
    for path, leaf in masks.leaf_paths(params).items():
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, float, int)):
            raise ModelError(
                f"{name}: leaf {path!r} of the params is a {type(leaf).__name__}, expected a "
                "pytree of arrays. Of an Equinox model they are the first half of "
                "eqx.partition(model, eqx.is_inexact_array)."
            )
    return params


def first_line(error: BaseException) -> str:
    """Returns the first line of a message: those of JAX go on for pages."""
    return next(iter(str(error).strip().splitlines()), "")


# -- What a network computes ---------------------------------------------------------------------


def are_finite(outputs: Any) -> jax.Array:
    """Whether no entry of the outputs is NaN or infinite. Traceable."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(outputs)]))


def check_are_finite(finite: Any) -> None:
    """Raises a ValueError unless `are_finite` returned True."""
    if not finite:
        raise ValueError(
            "network: its outputs are not finite, so no score can be computed from them. Check "
            "the params (initial scale, a damaged checkpoint), the inputs' range and the dtype."
        )
