"""Where a leaf of Flax params stands in a PyTorch state dict: its name, order of axes and shape.

Flax has the axes of a kernel as (*spatial, in, out), PyTorch as (out, in, *spatial).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ntksap_jax import _forms
from ntksap_jax.types import Axes

Shape = tuple[int, ...]
Names = Callable[[str], str] | Mapping[str, str] | None

_NAMES = {
    **{"kernel": "weight", "scale": "weight", "embedding": "weight", "w": "weight", "b": "bias"},
    **{"mean": "running_mean", "var": "running_var"},
}
_KERNELS = ("kernel", "w")
_COLLECTIONS = ("params", "batch_stats")


class Layout(NamedTuple):
    """What becomes of a leaf: it is split into more axes, transposed, and merged.

    Attributes:
        layer: path of the layer that the leaf belongs to, such as "block_0/conv1".
        name: the leaf's name in PyTorch's module, such as "weight".
        split: shape with all the axes that are moved on their own.
        axes: order of these axes in PyTorch.
        shape: PyTorch's shape.
    """

    layer: str
    name: str
    split: Shape
    axes: Shape
    shape: Shape

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our layout to PyTorch's; a copy, contiguous."""
        moved = array.reshape(self.split).transpose(self.axes)
        return np.array(moved.reshape(self.shape), order="C")

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's layout to ours, up to the merging of axes that `split` has apart."""
        merged = array.reshape([self.split[axis] for axis in self.axes])
        return merged.transpose(np.argsort(self.axes))


def layouts(
    leaves: Mapping[str, Any],
    flattened: Mapping[str, Shape] | None = None,
    axes: Axes | None = None,
) -> dict[str, Layout]:
    """Returns the layout of each leaf, by path.

    Args:
        leaves: arrays, or anything with a shape, by path.
        flattened: see `to_torch`, like `axes`.
        axes: what the axes of leaves mean.

    Raises:
        ValueError: `flattened` names no dense layer, or has another number of features; a kernel of
            which it is not known what its axes mean, or a stack of layers.
    """
    collected = leaves and all(path.split("/")[0] in _COLLECTIONS for path in leaves)
    parts = {path: path.split("/")[1 if collected else 0 :] for path in leaves}
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}
    own = {"/".join(part): shapes[path] for path, part in parts.items()}
    words = _forms.words_of(own, axes)
    remaining = dict(flattened or {})
    result = {}
    for path, (*above, leaf) in parts.items():
        layer, shape = "/".join(above), shapes[path]
        split, word = shape, words["/".join(parts[path])]
        order, merged = tuple(range(len(shape))), shape
        if leaf in _KERNELS and len(shape) == 2 and layer in remaining:
            split = _unflattened(layer, shape, tuple(remaining.pop(layer)))
            order, merged = (3, 2, 0, 1), shape[::-1]
        elif leaf in _KERNELS and len(shape) >= 2:
            order, merged = _moved(path, _forms.Form(shape, word))
        elif leaf == "bias" and words.get(f"{layer}/kernel".lstrip("/")) == "i" + "o" * len(shape):
            merged = (math.prod(shape),)  # PyTorch has all heads in one axis.
        result[path] = Layout(layer, _NAMES.get(leaf, leaf), split, order, merged)
    if remaining:
        raise ValueError(
            f"flattened: {next(iter(remaining))!r} is not the path of a dense layer with a kernel. "
            f"The layers are: {', '.join(dict.fromkeys(found.layer for found in result.values()))}."
        )
    return result


def _moved(path: str, form: _forms.Form) -> tuple[Shape, Shape]:
    """Returns PyTorch's order of a kernel's axes, and its shape."""
    if "?" in form.word:
        raise ValueError(
            f"axes: to convert leaf {path!r} of shape {form.shape}, it must be known what its axes "
            "mean: a convolution's are 'pio', an attention's 'ioo' or 'iio', stacked layers' 'sio'."
            f' Pass axes={{"{path}": ...}}, or axes=ntksap_jax.axes.of(network).'
        )
    if form.stacked:
        raise ValueError(
            f"tree: leaf {path!r} of shape {form.shape} is a stack of layers ({form.word!r}), for "
            "each of which PyTorch has a module of its own. Take them apart before: "
            "jax.tree.map(lambda leaf: leaf[0], stack) is the first of layers stacked in front."
        )
    order = tuple(i for letter in "oip" for i, found in enumerate(form.word) if found == letter)
    return order, (form.outputs, form.inputs, *form.positions)


def full_names(plan: Mapping[str, Layout], names: Names) -> dict[str, str]:
    """Returns the name of each leaf in the state dict, by path.

    Raises:
        ValueError: a layer without a name, or two leaves of the same name.
        TypeError: a name that is not a string.
    """
    result: dict[str, str] = {}
    taken: dict[str, str] = {}
    for path, layout in plan.items():
        module = _module(layout.layer, names)
        name = f"{module}.{layout.name}" if module else layout.name
        if name in taken:
            raise ValueError(
                f"names: leaves {taken[name]!r} and {path!r} would both be {name!r} in PyTorch. "
                "Give each layer a module of its own."
            )
        taken[name] = path
        result[path] = name
    return result


def _module(layer: str, names: Names) -> str:
    if names is None:
        return layer.replace("/", ".")
    if isinstance(names, Mapping) and layer not in names:
        raise ValueError(
            f"names: has no PyTorch module for layer {layer!r}. Add it, or let "
            "exchange.pair_layers find the modules of all layers."
        )
    module = names[layer] if isinstance(names, Mapping) else names(layer)
    if not isinstance(module, str):
        raise TypeError(
            f"names: got {module!r} for layer {layer!r}, expected the name of a PyTorch module "
            'such as "layer1.0.conv1".'
        )
    return module


def _unflattened(layer: str, shape: Shape, pixels: Shape) -> Shape:
    if math.prod(pixels) != shape[0]:
        raise ValueError(
            f"flattened: layer {layer!r} takes {shape[0]} features, but {pixels} has "
            f"{math.prod(pixels)}. Pass the shape (H, W, C) of what was flattened, without batch."
        )
    return (*pixels, shape[1])
