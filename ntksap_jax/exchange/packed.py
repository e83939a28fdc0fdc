"""A pruned network in the space of what is left of it: a bit for each weight, and the kept ones.

The file is an `.npz` archive of three arrays of bytes: `about`, JSON with the leaves' paths, types
and shapes; `mask`, a bit for each prunable weight; `values`, the weights that are kept and the
leaves that are not prunable, as they are in memory, leaf after leaf. All are compressed. The
archive's comment is the SHA-256 of `about`, which holds that of the other two.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _npz, masks
from ntksap_jax.types import Mask

_FORMAT, _VERSION = "ntksap_jax packed network", 1
_ABOUT, _MASK, _VALUES = "about", "mask", "values"
_LARGEST_ABOUT = 2**26


class _Leaf(NamedTuple):
    """What the file says about a leaf."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    is_masked: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an entry."""
        return jnp.dtype(self.dtype).itemsize


def save_packed(path: str | os.PathLike[str], tree: Any, mask: Mask) -> None:
    """Writes a pruned network so that the file's size falls with its density; nothing is lost.

    In float32, N prunable weights of density d take at most N / 8 + 4·d·N bytes (the mask far less
    than N / 8, compressed, where d is small).

    Args:
        path: where to write; used as it is (give it the ending `.npz`).
        tree: pruned params; or `{"params": ..., "batch_stats": ...}`, any pytree of arrays.
        mask: their mask; for variables `{"params": mask}`. Leaves that it does not have are written
            whole.

    Raises:
        ValueError: a leaf of the mask that the tree does not have, or has in another shape; or a
            pruned weight that is not 0; the leaf is named.
        TypeError: a leaf of the mask that is not a boolean array.

    >>> import jax.numpy as jnp, os, tempfile
    >>> mask = {"kernel": jnp.arange(100_000).reshape(100, 1000) % 50 == 0}
    >>> params = masks.apply(mask, {"kernel": jnp.full((100, 1000), 3.0)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "network.npz")
    ...     save_packed(path, params, mask)
    ...     os.path.getsize(path) < params["kernel"].nbytes / 20
    True
    """
    arrays = {name: np.asarray(leaf) for name, leaf in masks.leaf_paths(tree).items()}
    kept = {name: np.asarray(leaf) for name, leaf in masks.leaf_paths(mask).items()}
    _check_pruned(arrays, kept)
    bits = np.packbits(np.concatenate([kept[name].ravel() for name in arrays if name in kept]))
    found = [array[kept[name]] if name in kept else array for name, array in arrays.items()]
    values = np.frombuffer(b"".join(array.tobytes() for array in found), np.uint8)
    leaves = [
        _Leaf(name, array.dtype.name, array.shape, name in kept) for name, array in arrays.items()
    ]
    about = {"format": _FORMAT, "version": _VERSION, "sha256": _sha256(bits, values)}
    text = np.frombuffer(json.dumps(about | {"leaves": leaves}).encode(), np.uint8)
    members = {_ABOUT: text, _MASK: bits, _VALUES: values}
    _npz.write(Path(path), members, compress=True, comment=_sha256(text))


def load_packed(path: str | os.PathLike[str], *, like: Any) -> tuple[Any, Mask]:
    """Reads a network that `save_packed` wrote.

    What the file says of itself is compared with `like` before memory is taken for it.

    Args:
        path: the file.
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
    ...     path = os.path.join(folder, "network.npz")
    ...     save_packed(path, params, mask)
    ...     again, mask = load_packed(path, like=params)
    >>> again["kernel"].tolist(), mask["kernel"].tolist(), again["bias"].tolist()
    ([[3.0, 0.0]], [[True, False]], [5.0, 6.0])
    """
    path = Path(path)
    headers, comment = _npz.read_headers(path)
    leaves, sha256 = _read_about(path, headers, comment)
    _check_like(leaves, like, path)
    masked = [leaf for leaf in leaves if leaf.is_masked]
    bits = _read(path, _MASK, headers, math.ceil(sum(leaf.size for leaf in masked) / 8))
    kept = _unpacked(bits, masked)
    counts = [
        int(np.count_nonzero(kept[leaf.path])) if leaf.is_masked else leaf.size for leaf in leaves
    ]
    size = sum(count * leaf.itemsize for count, leaf in zip(counts, leaves, strict=True))
    values = _read(path, _VALUES, headers, size)
    if _sha256(bits, values) != sha256:
        raise _damaged(path, "it does not hold the network that was saved")
    arrays, start = {}, 0
    for leaf, count in zip(leaves, counts, strict=True):
        array = np.zeros(leaf.shape, jnp.dtype(leaf.dtype))
        where = kept.get(leaf.path, np.ones(leaf.shape, bool))
        array[where] = np.frombuffer(values, array.dtype, count, start) if count else 0
        arrays[leaf.path] = array
        start += count * leaf.itemsize

    def arranged(found: dict[str, np.ndarray]) -> Any:
        def at(key: Any, _: Any) -> jax.Array | None:
            name = jax.tree_util.keystr(key, simple=True, separator="/")
            return jnp.asarray(found[name]) if name in found else None

        return jax.tree_util.tree_map_with_path(at, like)

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


def _check_like(leaves: list[_Leaf], like: Any, path: Path) -> None:
    stored = {leaf.path: (leaf.shape, leaf.dtype) for leaf in leaves}
    wanted = {
        name: (tuple(leaf.shape), np.dtype(leaf.dtype).name)
        for name, leaf in masks.leaf_paths(like).items()
    }
    if len(stored) != len(leaves):
        raise _damaged(path, "a leaf is there twice")
    for name in wanted | stored:
        if wanted.get(name) != stored.get(name):
            raise ValueError(
                f"like: leaf {name!r} is {_told(wanted.get(name))}, in {path} "
                f"{_told(stored.get(name))}. Pass a tree like the one that was saved."
            )
        dtype = jnp.dtype(stored[name][1])
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"like: leaf {name!r} is {dtype}, which JAX has only after "
                'jax.config.update("jax_enable_x64", True).'
            )


def _told(leaf: tuple[tuple[int, ...], str] | None) -> str:
    return "missing" if leaf is None else f"of shape {leaf[0]} and type {leaf[1]}"


# -- The file --------------------------------------------------------------------------------------


def _read_about(
    path: Path, headers: dict[str, _npz.Header], comment: str
) -> tuple[list[_Leaf], str]:
    """Returns what the file says about its leaves, and the SHA-256 of the rest."""
    size = headers[_ABOUT].num_bytes if _ABOUT in headers else 0
    if size > _LARGEST_ABOUT:
        raise _damaged(path, f"{_ABOUT!r} is longer than {_LARGEST_ABOUT} bytes")
    text = _read(path, _ABOUT, headers, size)
    if _sha256(text) != comment:
        raise _damaged(path, f"{_ABOUT!r} is not what was saved")
    try:
        about = json.loads(text.tobytes())
        if (about["format"], about["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"it is {about['format']!r}, version {about['version']!r}")
        leaves = [
            _Leaf(str(name), str(dtype), tuple(shape), bool(is_masked))
            for name, dtype, shape, is_masked in about["leaves"]
        ]
        return leaves, about["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def _read(path: Path, name: str, headers: dict[str, _npz.Header], size: int) -> np.ndarray:
    """Reads bytes, of which there must be as many as expected."""
    header = headers.get(name)
    if header is None or (header.shape, header.dtype) != ((size,), np.dtype(np.uint8)):
        raise _damaged(path, f"it has no {name!r} of {size} bytes")
    return _npz.read_arrays(path, {name: header})[name]


def _unpacked(bits: np.ndarray, masked: list[_Leaf]) -> dict[str, np.ndarray]:
    kept, start = {}, 0
    flat = np.unpackbits(bits).astype(bool)
    for leaf in masked:
        kept[leaf.path] = flat[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
    return kept


def _damaged(path: Path, problem: str) -> ValueError:
    return ValueError(
        f"path: {path} is not a readable file of a packed network ({problem}): damaged, or written "
        "by something else. Restore it, or save the network again."
    )


def _sha256(*parts: np.ndarray) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.tobytes())
    return sha.hexdigest()
