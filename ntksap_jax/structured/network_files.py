"""Files of shrunk networks: numbers of features and variables, and no code."""

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
from flax import nnx

from ntksap_jax import _boxes, _files, _npz, _tensors, masks
from ntksap_jax.structured import _nnx_model, _resized

_FORMAT = "ntksap_jax shrunk network"
_VERSION = "2"


def save(
    path: str | os.PathLike[str], model: nn.Module | nnx.Module, variables: Any = None
) -> None:
    """Writes a network, shrunk or not, as one `.safetensors` file: numbers of features, variables.

    The file holds no code: an array for each leaf by its path, and in the header's metadata the
    format's version and the numbers of features by submodule. A crash leaves the old file or none.

    Args:
        path: where to write; a name that ends in `.safetensors`.
        model: the linen module or nnx model, as `shrink` returned it.
        variables: its variables, for example after more training; by default what an nnx model
            holds.

    Raises:
        ValueError: `path` has another ending.
        FileNotFoundError: its folder does not exist.
        TypeError: `model` is no linen module and no nnx model, a linen module comes without
            variables, or a leaf has a type that the format does not have.

    >>> import jax, jax.numpy as jnp, os, safetensors.numpy, tempfile
    >>> model = nn.Dense(2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "small.safetensors")
    ...     save(path, model, variables)
    ...     sorted(safetensors.numpy.load_file(path))
    ['params/bias', 'params/kernel']
    """
    if variables is None and isinstance(model, nnx.Module):
        variables = _nnx_model.variables_of(model)
    if not isinstance(model, nn.Module | nnx.Module):
        raise TypeError(
            f"model: got {type(model).__name__}, expected the linen module or nnx model of the "
            "variables."
        )
    if variables is None:
        raise TypeError("variables: got None, but a linen module holds none. Pass its variables.")
    leaves = masks.leaf_paths(flax.core.unfreeze(variables))
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    _, features, sizes = _resized.taken_apart(model)
    single = {path: own[0] if len(own) == 1 else own for path, own in features.items()}
    about = {"format": _FORMAT, "version": _VERSION, "features": json.dumps(single)}
    if sizes:
        about["sizes"] = json.dumps(sizes)
    slashed = {name: keys for name, keys in _keys(variables).items() if keys != name.split("/")}
    if slashed:
        about["keys"] = json.dumps(slashed)
    _tensors.write(Path(path), arrays, about | {"digest": _tensors.digest(arrays)})


def load(path: str | os.PathLike[str], model: Any) -> tuple[Any, Any]:
    """Reads a network that `save` wrote.

    Args:
        path: the `.safetensors` file, or an `.npz` file of version 0.1.
        model: the original model, before anything was removed (or the shrunk one itself): a linen
            module or an nnx model, as was saved.

    Returns:
        The module with the file's numbers of features, and the file's variables; an nnx model is a
        new one, which holds them.

    Raises:
        FileNotFoundError: no such file.
        TypeError: `model` is no linen module and no nnx model.
        ValueError: a damaged file, one that `save` did not write, or one of another version; or
            arrays of 64 bits where jax has these switched off.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, os, tempfile
    >>> model = nn.Dense(2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(os.path.join(folder, "small.safetensors"), model, variables)
    ...     small, read = load(os.path.join(folder, "small.safetensors"), model)
    >>> bool((read["params"]["kernel"] == variables["params"]["kernel"]).all())
    True
    """
    if not isinstance(model, nn.Module | nnx.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected the original flax module.")
    path = Path(path)
    keys: dict[str, list[str]] = {}
    if _npz.is_archive(path):
        (arrays, features), sizes = _read_npz(path), {}
    else:
        headers, about = _tensors.read_headers(path)
        with _files.readable(path):
            if (about.get("format"), about.get("version")) != (_FORMAT, _VERSION):
                raise ValueError("it does not hold a shrunk network that this version reads")
            features = json.loads(about["features"])
            sizes = json.loads(about.get("sizes", "{}"))
            keys = json.loads(about.get("keys", "{}"))
        arrays = _tensors.read_arrays(path, headers)
        with _files.readable(path):
            if _tensors.digest(arrays) != about["digest"]:
                raise ValueError("it does not hold the network that was saved")
    for name, array in arrays.items():
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(
                f"path: leaf {name!r} of {path} is {array.dtype}, which jax would narrow. Call "
                'jax.config.update("jax_enable_x64", True) first.'
            )
    with _files.readable(path):
        # A layer of so many features has as many numbers.
        largest = max((array.size for array in arrays.values()), default=0)
        for name, own in features.items():
            for number in own if isinstance(own, list) else [own]:
                if type(number) is not int or not 1 <= number <= largest:
                    raise ValueError(f"{name!r} has {number!r} features, expected 1 to {largest}")
        for name, pairs in sizes.items():
            for _, number in pairs:
                if type(number) is not int or not 1 <= number <= largest:
                    raise ValueError(f"{name!r} has a size {number!r}, expected 1 to {largest}")
        variables = _nested(arrays, keys)
    if isinstance(model, nnx.Module):
        _check_paths(path, variables, _nnx_model.variables_of(model))
        return _nnx_model.resized(model, variables, sizes), variables
    original, *_ = _resized.taken_apart(model)
    return _resized.resize(original, features, sizes), variables


def _check_paths(path: Path, found: Any, own: Any) -> None:
    """Raises a ValueError unless a file holds the leaves of this model."""
    names, wanted = masks.leaf_paths(found).keys(), masks.leaf_paths(own).keys()
    for name in sorted(names ^ wanted):
        where = "the file lacks" if name in wanted else "the model lacks"
        raise ValueError(f"path: {path} holds another model: {where} {name!r}.")


def _keys(variables: Any) -> dict[str, list[str]]:
    """The keys that lead to each leaf, by its path."""
    unboxed = flax.core.meta.unbox(flax.core.unfreeze(variables))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(unboxed)]
    return {_boxes.name(path): [entry.key for entry in path] for path in paths}


def _nested(arrays: dict[str, np.ndarray], keys: dict[str, list[str]]) -> dict[str, Any]:
    """Nests arrays by the slashes in their names, or by `keys` where those hold slashes too."""
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, leaf = keys.get(name, name.split("/"))
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
