"""What a mask leaves of a network: connections that lie on a path from an input to an output.

A weight that is kept counts for nothing if no kept weights lead to it, or none from it on
(Vysogorets, Kempe, "Connectivity matters: neural network pruning through the lens of effective
sparsity", JMLR 2023). A layer may be dead without the network being collapsed: a shortcut that
bypasses it still carries the input to the output.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _forms, _jaxprs, _networks, _paths, masks
from ntksap_jax.axes import of
from ntksap_jax.types import Axes, Mask, Network


class Connectivity(NamedTuple):
    """What is alive in a masked network.

    Attributes:
        effective: the mask without the weights that lie on no path from an input to an output.
        effective_density: fraction of the prunable weights in it.
        live_channels: fraction of the output channels of each prunable layer that lie on such a
            path, by path of the leaf, such as "fc/kernel", or "blocks/fc/kernel[2]" in a stack.
        dead_layers: paths of the prunable layers of which nothing lies on such a path.
        dead_outputs: number of the network's outputs that no input reaches.
        is_collapsed: whether no path at all is left from any input to any output.

    >>> import jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> network = nts.plain(lambda key: {"w": jnp.ones((2, 1))}, lambda p, x: x @ p["w"], (2,))
    >>> result = analyse(network, {"w": jnp.zeros((2, 1), bool)})
    >>> result.is_collapsed, result.dead_layers
    (True, ['w'])
    """

    effective: Mask
    effective_density: float
    live_channels: dict[str, float]
    dead_layers: list[str]
    dead_outputs: int
    is_collapsed: bool


def analyse(network: Network, mask: Mask, *, axes: Axes | None = None) -> Connectivity:
    """Finds what is alive under a mask, exactly, whatever the network's branches and shortcuts.

    Only the mask counts, not the weights' values: every kept weight and every unit passes values
    on, and biases begin no path.

    Args:
        network: the model, from `linen`, `nnx` or `plain`; convolutions, dense layers, pools,
            shortcuts, ReLU-like activations and normalisation.
        mask: the mask.
        axes: which axes of a kernel are its outputs, where the network does not show it; see
            `axes`.

    Returns:
        What is alive, as Python numbers.

    Raises:
        ValueError: a mask that does not fit the network; an operation that no path goes through;
            a kernel whose outputs are not known, since it is used in several ways;
            kernels that are changed before they are used, as by weight standardisation.

    >>> import jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> def init(key):
    ...     return {"v": {"kernel": jnp.ones((2, 1))}, "w": {"kernel": jnp.ones((1, 2))}}
    >>> network = nts.plain(
    ...     init, lambda p, x: x @ p["w"]["kernel"] @ p["v"]["kernel"], (1,))
    >>> mask = {"w": {"kernel": jnp.array([[True, True]])},
    ...         "v": {"kernel": jnp.array([[True], [False]])}}  # channel 1 of w leads nowhere
    >>> result = analyse(network, mask)
    >>> result.effective_density, result.live_channels
    (0.5, {'v/kernel': 1.0, 'w/kernel': 0.5})
    """
    _networks.check_one_output(network)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    masks.check(mask, shapes)
    _check_kernels(network, mask, shapes)
    dense = masks.map_prunable(jnp.ones_like, mask)
    for leaf in jax.device_get(_trace_paths(network, dense)[1]):
        if not np.all(leaf):
            raise ValueError(
                "network: even without a mask some of its outputs are reached by no input, so "
                "paths cannot be counted. Kernels must enter products as they are, without "
                "standardisation or the like."
            )
    effective, reached = jax.device_get(_trace_paths(network, mask))
    leaves = masks.leaf_paths(effective)
    words = _forms.words_of({p: leaf.shape for p, leaf in leaves.items()}, axes, of(network))
    forms = _forms.forms(leaves, words, need="roles", what="connectivity.analyse")
    alive = {
        name: np.any(channels, axis=tuple(range(channels.ndim - 1)))
        for (path, leaf), form in zip(leaves.items(), forms, strict=True)
        for name, channels in zip(form.names(path), form.arranged_layers(leaf), strict=True)
    }
    outputs = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(reached)])
    return Connectivity(
        effective=effective,
        effective_density=masks.density(effective),
        live_channels={path: float(np.mean(channels)) for path, channels in alive.items()},
        dead_layers=[path for path, channels in alive.items() if not np.any(channels)],
        dead_outputs=int(np.sum(~outputs)),
        is_collapsed=not np.any(outputs),
    )


# What a kernel may go through before a product: changes of place, and masks and constants.
_LAYOUT = {
    *_jaxprs.MOVES,
    *("concatenate", "pad", "select_n", "gather"),
    *("neg", "abs", "add", "add_any", "mul", "dot_general"),
}
_INPUT = ""


def _check_kernels(network: Network, mask: Mask, shapes: Any) -> None:
    """Raises if a prunable kernel is computed with before it meets a path.

    The derivative for an entry of a kernel that is divided by its own norm says nothing about the
    path that the entry is on.
    """
    prunable = masks.leaf_paths(mask)

    def walk(program: Any, arguments: list[Any]) -> list[Any]:
        return _jaxprs.walk(program, arguments, step, constant=lambda value: None)

    def step(eqn: Any, operands: list[Any], where: str) -> list[Any] | None:
        if eqn.primitive.name == "scan":
            fixed, carry, stacks = _jaxprs.scan_parts(eqn, operands)
            turn = lambda carry: walk(eqn.params["jaxpr"], [*fixed, *carry, *stacks])  # noqa: E731
            either = lambda old, new: _INPUT if _INPUT in (old, new) else old or new  # noqa: E731
            return _jaxprs.settled(turn, carry, join=either)
        if _jaxprs.called(eqn) is not None:
            return None
        if _INPUT in operands:
            return [_INPUT] * len(eqn.outvars)
        kernels = [operand for operand in operands if operand is not None]
        scaled = eqn.primitive.name == "div" and operands[1] is None
        if kernels and not scaled and eqn.primitive.name not in _LAYOUT:
            raise ValueError(
                f"network: takes {eqn.primitive.name!r} of the kernel {kernels[0]!r}, so paths "
                "cannot be counted. Kernels must enter products as they are, without "
                "standardisation, weight or spectral normalisation."
            )
        return [kernels[0] if kernels else None] * len(eqn.outvars)

    examples = network.examples(1)
    program = jax.make_jaxpr(network.apply_running)(shapes, examples)
    leaves = [path if path in prunable else None for path in masks.leaf_paths(shapes)]
    walk(program, [*leaves, *[_INPUT for _ in jax.tree.leaves(examples)]])


@functools.partial(jax.jit, static_argnums=0)
def _trace_paths(network: Network, mask: Mask) -> tuple[Mask, Any]:
    """Returns the effective mask, and which outputs are reached.

    Forward, a unit is 1 where an input reaches it; backward, its derivative is 1 where it reaches
    an output. A weight whose two ends are both 1 has a positive derivative.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    # Scales of normalisation pass everything on, even where they start at zero.
    others = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    weights = masks.map_prunable(lambda m, leaf: m.astype(leaf.dtype), mask, shapes)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), network.examples(1))

    def reach(weights: Any) -> tuple[jax.Array, Any]:
        outputs = _paths.evaluate(
            network.apply_running,
            masks.merge(weights, others),
            ones,
            factor=jnp.abs,
            normalise=lambda array: (_reached(array), jnp.zeros(())),
            sum_pools=True,
        )
        reached = [path.array > 0 for path in jax.tree.leaves(outputs, is_leaf=_is_path)]
        return _paths.total(outputs), reached

    derivatives, reached = jax.grad(reach, has_aux=True)(weights)
    return masks.map_prunable(lambda m, d: m & (d > 0), mask, derivatives), reached


@jax.custom_vjp
def _reached(array: jax.Array) -> jax.Array:
    return (array > 0).astype(array.dtype)


_reached.defvjp(
    lambda array: (_reached(array), None),
    lambda _, cotangent: ((cotangent > 0).astype(cotangent.dtype),),
)


def _is_path(node: Any) -> bool:
    return isinstance(node, _paths.Path)
