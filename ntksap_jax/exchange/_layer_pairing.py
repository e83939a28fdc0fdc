"""Which layer of ours is which module of a PyTorch network, by their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ntksap_jax import _jaxprs, axes, masks
from ntksap_jax.exchange import _torch_layouts
from ntksap_jax.types import Network

Shapes = dict[str, tuple[int, ...]]


def pair_layers(network: Network, state: Mapping[str, Any]) -> dict[str, str]:
    """Pairs the layers of a network with the modules of a PyTorch network, first with first.

    Ours are in the order in which the network uses them, PyTorch's in that of its state dict, the
    order in which its code makes them. Torchvision's networks and most others are made in the order
    of use. Shapes are checked, but layers of the same shape that are made in another order (as of
    parallel branches) would be exchanged unnoticed: compare the outputs of the two networks once.

    Args:
        network: our network.
        state: the PyTorch network's state dict, or anything that has its names and shapes.

    Returns:
        For the path of each layer the name of its module: `names` of `to_torch` and `from_torch`.

    Raises:
        ValueError: another number of layers, or layers whose shapes do not fit; the first pair is
            named.

    >>> import flax.linen as nn, numpy as np
    >>> import ntksap_jax as nts
    >>> network = nts.linen(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), (3,))
    >>> state = {"in.weight": np.zeros((4, 3)), "in.bias": np.zeros(4)}
    >>> state |= {"out.weight": np.zeros((2, 4)), "out.bias": np.zeros(2)}
    >>> pair_layers(network, state)
    {'layers_0': 'in', 'layers_2': 'out'}
    """
    ours, theirs = _our_layers(network), _their_modules(state)
    advice = (
        "Where the order or the layers differ, pass `names` of your own: "
        "the PyTorch module for each layer."
    )
    for (layer, wanted), (module, found) in zip(ours.items(), theirs.items(), strict=False):
        unlike = [leaf for leaf, shape in wanted.items() if found.get(leaf) != shape]
        if unlike:
            raise ValueError(
                f"state: module {module!r} comes where our network uses layer {layer!r}, but its "
                f"{unlike[0]} has shape {found.get(unlike[0])}, expected {wanted[unlike[0]]}. "
                f"{advice}"
            )
    if len(ours) != len(theirs):
        more, of = (ours, theirs) if len(ours) > len(theirs) else (theirs, ours)
        raise ValueError(
            f"state: has {len(theirs)} modules with parameters, our network {len(ours)}; "
            f"{list(more)[len(of)]!r} has no counterpart. {advice}"
        )
    return dict(zip(ours, theirs, strict=True))


def _our_layers(network: Network) -> dict[str, Shapes]:
    """PyTorch's shapes of the leaves of each layer, in order of use."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    inputs = network.examples(1)
    paths = list(masks.leaf_paths(params))
    used: list[str] = []

    def note(eqn: Any, operands: list[str | None], where: str) -> list[None] | None:
        if _jaxprs.called(eqn) is not None:
            return None
        used.extend(path for path in operands if path is not None)
        return [None] * len(eqn.outvars)

    program = jax.make_jaxpr(network.apply)(params, inputs)
    _jaxprs.walk(program, [*paths, None], note, constant=lambda value: None)
    plan = _torch_layouts.layouts(masks.leaf_paths(params), axes=axes.of(network))
    layers: dict[str, Shapes] = {}
    for path in dict.fromkeys([*used, *paths]):
        layers.setdefault(plan[path].layer, {})[plan[path].name] = plan[path].shape
    return layers


def _their_modules(state: Mapping[str, Any]) -> dict[str, Shapes]:
    """Shapes of the leaves of each module, in order."""
    modules: dict[str, Shapes] = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = tuple(np.shape(value))
    return modules
