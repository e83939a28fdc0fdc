"""To and from PyTorch's state dicts: its names, its order of axes, without importing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _boxes, masks
from ntksap_jax.exchange import _torch_layouts
from ntksap_jax.exchange._torch_layouts import Names, Shape
from ntksap_jax.types import Axes

_COUNTER = "num_batches_tracked"  # of BatchNorm; counts steps, has no part in the function


def to_torch(
    tree: Any,
    *,
    names: Names = None,
    flattened: Mapping[str, Shape] | None = None,
    axes: Axes | None = None,
) -> dict[str, np.ndarray]:
    """Returns params, variables or a mask in the names and layouts of a PyTorch state dict.

    Kernels of convolutions become (out, in, height, width), of dense layers (out, in), of
    attention's projections those of dense layers with all heads in one axis; `scale` and
    `embedding` become `weight`, `mean` and `var` the running statistics. A mask gets the names of
    the weights that it is for.

    `{name: torch.from_numpy(array) for name, array in to_torch(variables).items()}` is what
    `load_state_dict` takes, and `torch.nn.utils.prune.custom_from_mask` takes each array of a mask.

    Not converted are reversed kernels, those of `nn.ConvTranspose`, and PyTorch's joint kernel of
    query, key and value.

    Args:
        tree: params, `{"params": ..., "batch_stats": ...}`, or a mask of either.
        names: for the path of each layer, such as `"block_0/conv1"`, the name of its module in
            PyTorch, as a function or a mapping; `pair_layers` makes one. By default the same with
            dots: `block_0.conv1`.
        flattened: for each dense layer that follows a flattening, its path and the shape (H, W, C)
            of what is flattened. PyTorch flattens channels first, so that its features have another
            order; no shape tells.
        axes: what the axes of kernels mean, where names and biases do not say it: kernels of three
            axes, such as those of 1-D convolutions; see `axes`.

    Returns:
        Arrays by name, writable and contiguous. Types that NumPy does not know, such as bfloat16,
        become float32, which is exact.

    Raises:
        ValueError: a layer that `names` does not know, leaves with the same name, a `flattened`
            that does not fit, a stack of layers, or axes that are not known; the layer is named.
        TypeError: a name that is not a string.

    >>> import jax.numpy as jnp
    >>> block = {"conv": {"kernel": jnp.ones((3, 3, 8, 16))}}
    >>> params = {"block": block, "fc": {"bias": jnp.ones(2)}}
    >>> {name: array.shape for name, array in to_torch(params).items()}
    {'block.conv.weight': (16, 8, 3, 3), 'fc.bias': (2,)}
    >>> list(to_torch(params, names={"block/conv": "features.0", "fc": "classifier"}))
    ['features.0.weight', 'classifier.bias']
    """
    leaves = masks.leaf_paths(tree)
    plan = _torch_layouts.layouts(leaves, flattened, axes)
    full_names = _torch_layouts.full_names(plan, names)
    return {
        name: plan[path].to_torch(_numpy_type(np.asarray(leaves[path])))
        for path, name in full_names.items()
    }


def from_torch(
    state: Mapping[str, Any],
    *,
    like: Any,
    names: Names = None,
    flattened: Mapping[str, Shape] | None = None,
    axes: Axes | None = None,
) -> Any:
    """Returns the arrays of a PyTorch state dict as params, variables or a mask: `to_torch` undone.

    Args:
        state: arrays or tensors by name: a state dict, on the CPU, or what `to_torch` returned.
            For a mask 0 and 1, or booleans, by the names of the weights; those of a network pruned
            by `torch.nn.utils.prune` are `{name.removesuffix("_mask"): value for name, value in
            model.state_dict().items() if name.endswith("_mask")}`.
        like: params, variables or a mask (`masks.create(params)`) of the structure, shapes and
            types that are wanted; `jax.ShapeDtypeStruct`s will do.
        names: as in `to_torch`.
        flattened: as in `to_torch`.
        axes: as in `to_torch`.

    Returns:
        Arrays in the structure of `like`.

    Raises:
        ValueError: an entry that is missing, or that no leaf of `like` is for (BatchNorm's
            `num_batches_tracked` apart), or of another shape; for a mask, one that is neither 0 nor
            1. The leaf and the entry are named.
        TypeError: an entry that NumPy cannot read, or numbers where `like` has integers.

    >>> import jax.numpy as jnp, numpy as np
    >>> like = {"fc": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    >>> state = {"fc.weight": np.arange(6.0).reshape(3, 2), "fc.bias": np.ones(3)}
    >>> from_torch(state, like=like)["fc"]["kernel"].tolist()
    [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    """
    leaves = masks.leaf_paths(like)
    plan = _torch_layouts.layouts(leaves, flattened, axes)
    full_names = _torch_layouts.full_names(plan, names)
    for path, name in full_names.items():
        if name not in state:
            raise ValueError(
                f"state: has no {name!r} for leaf {path!r}. Say by `names` what the layer is "
                f"called in PyTorch. The entries begin with {', '.join(list(state)[:10])}."
            )
    unused = [name for name in state if name not in full_names.values()]
    unused = [name for name in unused if name.rsplit(".", 1)[-1] != _COUNTER]
    if unused:
        raise ValueError(
            f"state: no leaf of `like` is for {unused[0]!r}. Leave it out if the network does "
            'without; running statistics need like={"params": ..., "batch_stats": ...}.'
        )

    def from_leaf(path: str, leaf: Any) -> jax.Array:
        name, layout = full_names[path], plan[path]
        array = _as_numpy(state[name], name)
        if array.shape != layout.shape:
            raise ValueError(
                f"state: {name!r} has shape {array.shape}, leaf {path!r} of shape {leaf.shape} is "
                f"{layout.shape} in PyTorch. Another network, or `names` gives it another layer."
            )
        moved = layout.from_torch(_checked(array, leaf.dtype, name, path))
        return jnp.asarray(moved.reshape(leaf.shape).astype(leaf.dtype))

    return _boxes.map_named(from_leaf, like)


def _numpy_type(array: np.ndarray) -> np.ndarray:
    is_foreign = array.dtype.kind == "V" and jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32) if is_foreign else array


def _as_numpy(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"state: {name!r} cannot be read as a NumPy array ({error}). Bring tensors to the CPU "
            "by .detach().cpu(), and those of bfloat16 to float32 by .float()."
        ) from error
    if array.dtype == object:
        raise TypeError(f"state: {name!r} is {type(value).__name__}, expected an array or tensor.")
    return array


def _checked(array: np.ndarray, dtype: Any, name: str, path: str) -> np.ndarray:
    if np.dtype(dtype) == np.dtype(bool):
        if not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"state: {name!r} has entries other than 0 and 1, and leaf {path!r} is one of a "
                "mask. Pass the masks, not the weights."
            )
    elif jnp.issubdtype(array.dtype, jnp.floating) != jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"state: {name!r} is {array.dtype}, leaf {path!r} of `like` is {dtype}.")
    return array
