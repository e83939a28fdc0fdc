"""A pruned network in the space of what is left of it: a bit for each weight, and the kept ones.

The `.safetensors` file holds an array `values/PATH` for each leaf: the leaf itself where nothing is
prunable, otherwise its kept values, in order. The array `mask` has a bit for each prunable weight,
deflated, because few bits differ where the density is low. The header's metadata say the shapes of
the prunable leaves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _boxes, _files, _npz, _tensors, masks
from ntksap_jax.types import Mask

_FORMAT, _VERSION = "ntksap_jax packed network", "2"
_MASK, _VALUES = "mask", "values/"
_LARGEST_ABOUT = 2**26

_Arrays = dict[str, np.ndarray]
_Leaves = dict[str, tuple[tuple[int, ...], np.dtype]]
"""Shape and type of each leaf, by path."""


def save_packed(path: str | os.PathLike[str], tree: Any, mask: Mask) -> None:
    """Writes a pruned network so that the file's size falls with its density; nothing is lost.

    In float32, N prunable weights of density d take at most N / 8 + 4·d·N bytes (the mask far less
    than N / 8, compressed, where d is small).

    Args:
        path: where to write; a name that ends in `.safetensors`.
        tree: pruned params; or `{"params": ..., "batch_stats": ...}`, any pytree of arrays.
        mask: their mask; for variables `{"params": mask}`. Leaves that it does not have are written
            whole.

    Raises:
        ValueError: a leaf of the mask that the tree does not have, or has in another shape; a
            pruned weight that is not 0 (the leaf is named); or a `path` with another ending.
        TypeError: a leaf of the mask that is not a boolean array, or one of the tree whose type the
            format does not have.

    >>> import jax.numpy as jnp, os, tempfile
    >>> mask = {"kernel": jnp.arange(100_000).reshape(100, 1000) % 50 == 0}
    >>> params = masks.apply(mask, {"kernel": jnp.full((100, 1000), 3.0)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "network.safetensors")
    ...     save_packed(path, params, mask)
    ...     os.path.getsize(path) < params["kernel"].nbytes / 20
    True
    """
    arrays = {name: np.asarray(leaf) for name, leaf in masks.leaf_paths(tree).items()}
    kept = {name: np.asarray(leaf) for name, leaf in masks.leaf_paths(mask).items()}
    _check_pruned(arrays, kept)
    bits = np.packbits(np.concatenate([kept[name].ravel() for name in arrays if name in kept]))
    stored = {
        f"{_VALUES}{name}": array[kept[name]] if name in kept else array
        for name, array in arrays.items()
    }
    stored[_MASK] = np.frombuffer(zlib.compress(bits.tobytes(), 9), np.uint8)
    shapes = {name: array.shape for name, array in arrays.items() if name in kept}
    about = {"format": _FORMAT, "version": _VERSION, "shapes": json.dumps(shapes)}
    _tensors.write(Path(path), stored, about | {"digest": _tensors.digest(stored)})


def load_packed(path: str | os.PathLike[str], *, like: Any) -> tuple[Any, Mask]:
    """Reads a network that `save_packed` wrote.

    What the file says of itself is compared with `like` before memory is taken for it.

    Args:
        path: the `.safetensors` file, or an `.npz` file of version 0.1.
        like: a tree of the same structure, shapes and types, such as fresh params;
            `jax.ShapeDtypeStruct`s will do.

    Returns:
        The tree, with 0 where weights are pruned, and its mask, with `None` where a leaf was
        written whole.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or one of another network; the leaf is named.

    >>> import jax.numpy as jnp, os, tempfile
    >>> params = {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([5.0, 6.0])}
    >>> mask = {"kernel": jnp.array([[True, False]]), "bias": None}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "network.safetensors")
    ...     save_packed(path, params, mask)
    ...     again, mask = load_packed(path, like=params)
    >>> again["kernel"].tolist(), mask["kernel"].tolist(), again["bias"].tolist()
    ([[3.0, 0.0]], [[True, False]], [5.0, 6.0])
    """
    path = Path(path)
    wanted = {
        name: (tuple(leaf.shape), jnp.dtype(leaf.dtype))
        for name, leaf in masks.leaf_paths(like).items()
    }
    read = _read_npz if _npz.is_archive(path) else _read
    values, kept = read(path, wanted)
    arrays = {}
    for name, (shape, dtype) in wanted.items():
        arrays[name] = np.zeros(shape, dtype)
        arrays[name][kept.get(name, np.ones(shape, bool))] = values[name].ravel()

    def arranged(stored: dict[str, np.ndarray]) -> Any:
        def at(name: str, _: Any) -> jax.Array | None:
            return jnp.asarray(stored[name]) if name in stored else None

        return _boxes.map_named(at, like)

    return arranged(arrays), arranged(kept)


def _check_pruned(arrays: dict[str, np.ndarray], kept: dict[str, np.ndarray]) -> None:
    if not kept:
        raise ValueError("mask: has no prunable leaf. Pass the mask that the search returned.")
    for name, leaf in kept.items():
        if name not in arrays or arrays[name].shape != leaf.shape:
            found = f"has shape {arrays[name].shape}" if name in arrays else "does not exist"
            raise ValueError(
                f"mask: leaf {name!r} of shape {leaf.shape} {found} in the tree. Pass the mask of "
                'this very tree; for variables {"params": mask}.'
            )
        if leaf.dtype != np.dtype(bool):
            raise TypeError(f"mask: leaf {name!r} is {leaf.dtype}, expected a boolean array.")
        wrong = np.count_nonzero(arrays[name][~leaf])
        if wrong:
            raise ValueError(
                f"tree: leaf {name!r} has {wrong} pruned weights that are not 0, which would be "
                "lost. Pass masks.apply(mask, params)."
            )


def _check_like(stored: _Leaves, wanted: _Leaves, path: Path) -> None:
    for name in wanted | stored:
        if wanted.get(name) != stored.get(name):
            raise ValueError(
                f"like: leaf {name!r} is {_told(wanted.get(name))}, in {path} "
                f"{_told(stored.get(name))}. Pass a tree like the one that was saved."
            )
        _, dtype = stored[name]
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"like: leaf {name!r} is {dtype}, which JAX has only after "
                'jax.config.update("jax_enable_x64", True).'
            )


def _told(leaf: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "missing" if leaf is None else f"of shape {leaf[0]} and type {leaf[1]}"


# -- The file --------------------------------------------------------------------------------------


def _read(path: Path, wanted: _Leaves) -> tuple[_Arrays, _Arrays]:
    """Returns the values and the masks of the leaves, by path."""
    headers, about = _tensors.read_headers(path)
    with _files.readable(path):
        if (about.get("format"), about.get("version")) != (_FORMAT, _VERSION):
            raise ValueError("it is not a packed network")
        shapes = {name: tuple(shape) for name, shape in json.loads(about["shapes"]).items()}
        if _MASK not in headers or not shapes.keys() <= _values(headers).keys():
            raise ValueError("an array is missing")
    leaves = {
        name: (shapes.get(name, header.shape), header.dtype)
        for name, header in _values(headers).items()
    }
    _check_like(leaves, wanted, path)
    arrays = _tensors.read_arrays(path, headers)
    with _files.readable(path):
        if _tensors.digest(arrays) != about["digest"]:
            raise ValueError("it does not hold the network that was saved")
        num_bytes = _num_bytes_of_bits(shapes)
        # One byte more than expected, so that it shows if there are more.
        bits = zlib.decompressobj().decompress(arrays[_MASK].tobytes(), num_bytes + 1)
        kept, values = _unpack(np.frombuffer(bits, np.uint8), shapes), _values(arrays)
        for name, leaf in kept.items():
            if values[name].shape != (np.count_nonzero(leaf),):
                raise ValueError(f"{name!r} has not as many values as its mask keeps")
    return values, kept


def _values(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(_VALUES): array for name, array in arrays.items() if name != _MASK}


def _num_bytes_of_bits(shapes: dict[str, tuple[int, ...]]) -> int:
    return math.ceil(sum(map(math.prod, shapes.values())) / 8)


def _unpack(bits: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> _Arrays:
    if len(bits) != _num_bytes_of_bits(shapes):
        raise ValueError("its mask has another number of bits than its leaves have weights")
    kept, start = {}, 0
    flat = np.unpackbits(bits).astype(bool)
    for name, shape in shapes.items():
        kept[name] = flat[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return kept


# -- Files of version 0.1 --------------------------------------------------------------------------


def _read_npz(path: Path, wanted: _Leaves) -> tuple[_Arrays, _Arrays]:
    """Reads an `.npz` archive of three arrays of bytes: `about` (JSON), `mask` and `values`."""
    headers, metadata = _npz.read_headers(path)
    with _files.readable(path):
        if headers["about"].num_bytes > _LARGEST_ABOUT:
            raise ValueError(f"'about' is longer than {_LARGEST_ABOUT} bytes")
        text = _read_bytes(path, headers, "about", headers["about"].num_bytes)
        if hashlib.sha256(text).hexdigest() != metadata.get("digest"):
            raise ValueError("'about' is not what was saved")
        about = json.loads(text)
        leaves: _Leaves = {
            name: (tuple(shape), jnp.dtype(dtype)) for name, dtype, shape, _ in about["leaves"]
        }
        shapes = {name: tuple(shape) for name, _, shape, is_masked in about["leaves"] if is_masked}
    _check_like(leaves, wanted, path)
    with _files.readable(path):
        bits = _read_bytes(path, headers, "mask", _num_bytes_of_bits(shapes))
        kept = _unpack(np.frombuffer(bits, np.uint8), shapes)
        counts = {
            name: int(np.count_nonzero(kept[name])) if name in kept else math.prod(shape)
            for name, (shape, _) in leaves.items()
        }
        size = sum(count * leaves[name][1].itemsize for name, count in counts.items())
        flat = _read_bytes(path, headers, "values", size)
        if hashlib.sha256(bits + flat).hexdigest() != about["sha256"]:
            raise ValueError("it does not hold the network that was saved")
    values, start = {}, 0
    for name, count in counts.items():
        dtype = leaves[name][1]
        values[name] = np.frombuffer(flat, dtype, count, start) if count else np.zeros(0, dtype)
        start += count * dtype.itemsize
    return values, kept


def _read_bytes(path: Path, headers: dict[str, _npz.Header], name: str, size: int) -> bytes:
    header = headers[name]
    if (header.shape, header.dtype) != ((size,), np.dtype(np.uint8)):
        raise ValueError(f"it has no {name!r} of {size} bytes")
    return _npz.read_arrays(path, {name: header})[name].tobytes()
