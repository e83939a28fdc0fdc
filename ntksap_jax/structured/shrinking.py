"""Making a network physically smaller: the filters that are pruned go, the function stays.

First `zero_out` sets what belongs to the pruned filters to 0; from then on the network computes the
same without them, which is what `shrink` makes: the same module with fewer features, and its
variables. What it returns is a linen module and variables like any other: they can be trained,
pruned, traced and shrunk again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _files, _npz, _tensors, masks
from ntksap_jax.structured import _labelling, _program, _resized, tracing
from ntksap_jax.structured import channels as channels_
from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.types import Keep

_FORMAT = "ntksap_jax shrunk network"
_VERSION = "2"


def zero_out(variables: Any, channels: Channels, keep: Keep) -> Any:
    """Sets everything that belongs to the removed filters to 0, so that they contribute nothing.

    These are the entries of kernels, biases, scales and shifts, in all layers that are tied (and
    the running mean of a normalisation without a scale). The inputs of later layers and the other
    statistics stay as they are. The activations of these filters are then 0, in training mode too.

    Args:
        variables: `{"params": ..., "batch_stats": ...}` of the model that was traced; may be
            traced by `jit`.
        channels: the model's channels.
        keep: by kernel path, which filters are kept; see `structured.expand`.

    Returns:
        New variables of the same shapes.

    Raises:
        TypeError, ValueError: variables that are not the traced model's; or a wrong `keep`, as in
            `structured.expand`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
    >>> from ntksap_jax.structured.tracing import trace
    >>> model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> keep = {"layers_0/kernel": np.array([True, False, True])}
    >>> zeroed = zero_out(variables, trace(model, (4,)), keep)
    >>> (zeroed["params"]["layers_0"]["kernel"] == 0).all(axis=0).tolist()
    [False, True, False]
    """
    variables = _check_variables(variables, channels)
    channels_.expand(channels, keep)
    removed = channels_.removed_channels(channels, keep)

    def zero(key: Any, leaf: Any) -> Any:
        path = jax.tree_util.keystr(key, simple=True, separator="/")
        if not leaf.ndim or not _labelling.is_zeroed(path, channels.shapes):
            return leaf
        kept = channels_.kept_indices(channels, path, removed)[-1]
        if kept is None:
            return leaf
        stays = np.isin(np.arange(leaf.shape[-1]), kept)
        return jnp.where(stays, leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(zero, variables)


def shrink(
    model: nn.Module, variables: Any, channels: Channels, keep: Keep
) -> tuple[nn.Module, Any]:
    """Removes the filters that are not kept, and everything that belongs to them.

    Nothing is rescaled or compensated for. After `zero_out` with the same `keep`, the function is
    the same up to rounding; without it, the contribution of the removed filters is lost.

    Args:
        model: the module that was traced; perhaps the result of another `shrink`.
        variables: its `{"params": ..., "batch_stats": ...}`.
        channels: result of `structured.trace` for this model.
        keep: by kernel path, which filters are kept; see `structured.expand`.

    Returns:
        The smaller module, and its variables, on the default device. The module is `model` run with
        other numbers of features: it takes the same arguments, has parameters of the same paths,
        and can be initialised afresh (a network of the pruned architecture, from scratch).

    Raises:
        TypeError, ValueError: variables that are not the traced model's; a wrong `keep`, as in
            `structured.expand`; or a model whose own code would do something else with these
            numbers of features: the place is named.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
    >>> from ntksap_jax.structured.tracing import trace
    >>> model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
    >>> variables, channels = model.init(jax.random.key(0), jnp.ones((1, 4))), trace(model, (4,))
    >>> keep = {"layers_0/kernel": np.array([True, False, True])}
    >>> zeroed = zero_out(variables, channels, keep)
    >>> small, fewer = shrink(model, zeroed, channels, keep)
    >>> fewer["params"]["layers_2"]["kernel"].shape
    (2, 2)
    >>> x = jnp.arange(8.0).reshape(2, 4)
    >>> bool(jnp.allclose(small.apply(fewer, x), model.apply(zeroed, x), atol=1e-6))
    True
    """
    variables = _check_variables(variables, channels)
    channels_.expand(channels, keep)
    removed = channels_.removed_channels(channels, keep)
    small = tracing.resize(model, channels, removed)
    wrong = tracing.misfit(model, variables, channels, removed)
    if wrong is not None:
        raise ValueError(
            "keep: the model's own code does not follow when these filters go: "
            f"{wrong}. Keep other numbers of filters in the layers there, or change the code so "
            "that it does not depend on numbers of channels."
        )

    def take(key: Any, leaf: Any) -> jax.Array:
        path = jax.tree_util.keystr(key, simple=True, separator="/")
        array = np.asarray(leaf)  # on the host: every shape is another, and would be compiled for
        for axis, kept in enumerate(channels_.kept_indices(channels, path, removed)):
            if kept is not None:
                array = np.take(array, kept, axis=axis)
        return jnp.asarray(array)

    fewer = jax.tree_util.tree_map_with_path(take, variables)
    _check_init(small, fewer, channels)
    return small, fewer


def _check_variables(variables: Any, channels: Channels) -> Any:
    variables = flax.core.unfreeze(variables)
    found = {path: np.shape(leaf) for path, leaf in masks.leaf_paths(variables).items()}
    for path in channels.shapes | found:
        if channels.shapes.get(path) != found.get(path):
            raise ValueError(
                f"variables: leaf {path!r} has shape {found.get(path)}, the traced model's has "
                f'{channels.shapes.get(path)}. Pass {{"params": ..., "batch_stats": ...}} of the '
                "model that structured.trace was called with."
            )
    return variables


def _check_init(small: nn.Module, variables: Any, channels: Channels) -> None:
    """The smaller model must initialise to what it was given, so that it can start from scratch."""
    fresh = masks.leaf_paths(_program.shapes_of(small, channels.call))
    for path, leaf in masks.leaf_paths(variables).items():
        if path not in fresh or fresh[path].shape != leaf.shape:
            raise ValueError(
                f"keep: the model's own code initialises leaf {path!r} to shape "
                f"{fresh[path].shape if path in fresh else None} when these filters go, expected "
                f"{leaf.shape}. Keep all filters of the layers that it belongs to."
            )


# -- Files ---------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], model: nn.Module, variables: Any) -> None:
    """Writes a network, shrunk or not, as one `.safetensors` file: numbers of features, variables.

    The file holds no code: an array for each leaf by its path, and in the header's metadata the
    format's version and the numbers of features by submodule. A crash leaves the old file or none.

    Args:
        path: where to write; a name that ends in `.safetensors`.
        model: the module, as `shrink` returned it.
        variables: its variables; for example after more training.

    Raises:
        ValueError: `path` has another ending.
        TypeError: `model` is no linen module, or a leaf has a type that the format does not have.

    >>> import jax, jax.numpy as jnp, os, safetensors.numpy, tempfile
    >>> model = nn.Dense(2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "small.safetensors")
    ...     save(path, model, variables)
    ...     sorted(safetensors.numpy.load_file(path))
    ['params/bias', 'params/kernel']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected the module of the variables.")
    leaves = masks.leaf_paths(flax.core.unfreeze(variables))
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    features = json.dumps(_resized.taken_apart(model)[1])
    about = {"format": _FORMAT, "version": _VERSION, "features": features}
    _tensors.write(Path(path), arrays, about | {"digest": _tensors.digest(arrays)})


def load(path: str | os.PathLike[str], model: nn.Module) -> tuple[nn.Module, Any]:
    """Reads a network that `save` wrote.

    Args:
        path: the `.safetensors` file, or an `.npz` file of version 0.1.
        model: the original model, before anything was removed (or the shrunk one itself).

    Returns:
        The module with the file's numbers of features, and the file's variables.

    Raises:
        FileNotFoundError: no such file.
        TypeError: `model` is no linen module.
        ValueError: a damaged file, one that `save` did not write, or one of another version.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, os, tempfile
    >>> model = nn.Dense(2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(os.path.join(folder, "small.safetensors"), model, variables)
    ...     small, read = load(os.path.join(folder, "small.safetensors"), model)
    >>> bool((read["params"]["kernel"] == variables["params"]["kernel"]).all())
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected the original flax module.")
    path = Path(path)
    if _npz.is_archive(path):
        arrays, features = _read_npz(path)
    else:
        headers, about = _tensors.read_headers(path)
        with _files.readable(path):
            if (about.get("format"), about.get("version")) != (_FORMAT, _VERSION):
                raise ValueError("it does not hold a shrunk network that this version reads")
            features = json.loads(about["features"])
        arrays = _tensors.read_arrays(path, headers)
        with _files.readable(path):
            if _tensors.digest(arrays) != about["digest"]:
                raise ValueError("it does not hold the network that was saved")
    with _files.readable(path):
        # A layer of so many features has as many numbers.
        largest = max((array.size for array in arrays.values()), default=0)
        for name, number in features.items():
            if type(number) is not int or not 1 <= number <= largest:
                raise ValueError(f"{name!r} has {number!r} features, expected 1 to {largest}")
        variables = _nested(arrays)
    original, _ = _resized.taken_apart(model)
    return _resized.resize(original, features), variables


def _nested(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        if not isinstance(node, dict) or leaf in node:
            raise ValueError(f"{name!r} is a leaf and holds others")
        node[leaf] = jnp.asarray(array)
    return variables


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Reads a file of version 0.1: arrays, the bits of those NumPy does not know, and `about`."""
    headers, _ = _npz.read_headers(path)
    with _files.readable(path):
        # Uncompressed, as it was written, nothing takes more memory than the file has bytes.
        if any(header.is_compressed for header in headers.values()):
            raise ValueError("it is compressed")
        if headers["about"].dtype.kind != "U":
            raise ValueError("'about' is no text")
    stored = _npz.read_arrays(path, headers)
    with _files.readable(path):
        about = json.loads(str(stored.pop("about")))
        if (about["format"], about["version"]) != (_FORMAT, 1):
            raise ValueError(f"it is {about['format']!r}, version {about['version']!r}")
        dtypes = {name: jnp.dtype(dtype) for name, dtype in about["dtypes"].items()}
        if stored.keys() != dtypes.keys():
            raise ValueError(f"it lacks {sorted(dtypes.keys() ^ stored.keys())[0]!r}")
        for name, dtype in dtypes.items():
            if not jnp.issubdtype(dtype, jnp.number) and dtype.kind != "b":
                raise ValueError(f"{name!r} is of type {dtype}, expected numbers")
            if stored[name].dtype != (dtype if dtype.kind != "V" else f"u{dtype.itemsize}"):
                raise ValueError(f"{name!r} is of type {stored[name].dtype}, expected {dtype}")
        return {name: stored[name].view(dtype) for name, dtype in dtypes.items()}, about["features"]
