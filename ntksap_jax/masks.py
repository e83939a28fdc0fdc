"""Masks: create, check, apply, measure, save and load them (`scopes` decide what they keep).

A mask is a pytree shaped like the params, with a boolean array at every prunable leaf and `None` at
every other. `True` keeps the weight. Nothing here knows how scores are made.

Not to be confused with `optax.masked`, whose "mask" is one static Python boolean per leaf and says
which leaves a transformation touches.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _boxes, _forms, _npz, _placement, _tensors, _top_ranks
from ntksap_jax._draws import random_like, typed_key
from ntksap_jax._mask_trees import is_none
from ntksap_jax._mask_trees import leaf_paths as leaf_paths
from ntksap_jax._mask_trees import map_prunable as map_prunable
from ntksap_jax._mask_trees import merge as merge
from ntksap_jax._rescale import rescale as rescale
from ntksap_jax.types import Axes, Key, Mask, Params

KERNEL_NAMES = ("kernel", "weight", "w")
"""Leaf names that hold the weights of a layer in Flax, Equinox and Haiku.

Equinox calls the weights of embeddings and normalisation so too: `exclude` those with two axes.
"""


# -- Structure -----------------------------------------------------------------------------------


def create(
    params: Params,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> Mask:
    """Makes the dense mask: `True` everywhere at the prunable leaves, `None` at the others.

    By default the kernels of convolutions and dense layers are prunable, first layer, shortcuts and
    classifier included: leaves of two or more axes whose name is one of `KERNEL_NAMES`. Biases,
    normalisation and embeddings are not, nor leaves without entries. (NTK-SAP, released code,
    `Utils/generator.py`.)

    Args:
        params: pytree of arrays, or of `jax.ShapeDtypeStruct`.
        include: regular expression(s) searched for in the path of a leaf. If given, the prunable
            leaves are those that match, whatever their name.
        exclude: regular expression(s); leaves that match are not prunable.

    Returns:
        The mask, shaped like `params`, and sharded like them where they are spread over devices.

    Raises:
        ValueError: a pattern that matches no leaf, or no prunable leaf at all.

    >>> import jax.numpy as jnp
    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.zeros(2)},
    ...           "head": {"kernel": jnp.ones((2, 5))}}
    >>> sorted(leaf_paths(create(params)))
    ['conv/kernel', 'head/kernel']
    >>> sorted(leaf_paths(create(params, exclude="^head/")))
    ['conv/kernel']
    """
    leaves = leaf_paths(params)
    included = _matching(leaves, include, "include")
    excluded = _matching(leaves, exclude, "exclude")

    def is_prunable(path: str, leaf: Any) -> bool:
        by_role = np.ndim(leaf) >= 2 and path.rsplit("/", 1)[-1] in KERNEL_NAMES
        wanted = (by_role if include is None else path in included) and path not in excluded
        return wanted and math.prod(leaf.shape) > 0

    def mask_leaf(name: str, leaf: Any) -> jax.Array | None:
        if not is_prunable(name, leaf):
            return None
        return jnp.ones(leaf.shape, bool, device=_placement.of(leaf))

    mask = _boxes.map_named(mask_leaf, params)
    if not jax.tree.leaves(mask):
        raise ValueError(
            "params: no leaf is left to prune. Expected leaves of two or more axes named "
            f"{', '.join(KERNEL_NAMES)}; pass include= with a pattern for your own names. "
            f"The paths are: {_shorten(leaves)}."
        )
    return mask


def check(mask: Mask, params: Params) -> None:
    """Raises unless `mask` fits `params`: same structure, boolean arrays of the same shapes.

    Args:
        mask: what is to be checked.
        params: what it is to fit; shapes are enough.

    Raises:
        ValueError: a leaf that is missing, unexpected or of another shape; the path is named.
        TypeError: a leaf that is not a boolean array.

    >>> import jax.numpy as jnp
    >>> check({"kernel": jnp.ones(3, bool)}, {"kernel": jnp.ones(2)})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: mask: leaf 'kernel' has shape (3,), params have (2,) there. ...
    """
    wanted, given = leaf_paths(params), leaf_paths(mask)
    advice = "Make masks with masks.create(params) from the params that they are used with."
    for path, leaf in given.items():
        if path not in wanted:
            raise ValueError(f"mask: leaf {path!r} does not exist in params. {advice}")
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        if kind != np.dtype(bool):
            raise TypeError(f"mask: leaf {path!r} is {kind}, expected a boolean array. {advice}")
        if leaf.shape != wanted[path].shape:
            raise ValueError(
                f"mask: leaf {path!r} has shape {leaf.shape}, params have {wanted[path].shape} "
                f"there. {advice}"
            )
    missing = [path for path in wanted if path not in leaf_paths(_fill_none(mask))]
    if missing or _skeleton(mask) != _skeleton(params):
        raise ValueError(
            f"mask: its tree differs from params; missing: {_shorten(missing) or 'no leaf'}; got "
            f" {_skeleton(mask)}, expected {_skeleton(params)}. {advice}"
        )
    if not given:
        raise ValueError(f"mask: has no prunable leaf. {advice}")


def _fill_none(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: 0, tree, is_leaf=is_none)


def _skeleton(tree: Any) -> Any:
    return jax.tree.structure(tree, is_leaf=is_none)


def _matching(
    leaves: dict[str, Any], patterns: str | Sequence[str] | None, argument: str
) -> set[str]:
    matched = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        try:
            hits = {path for path in leaves if re.search(pattern, path)}
        except re.error as error:
            raise ValueError(
                f"{argument}: {pattern!r} is not a regular expression: {error}"
            ) from error
        if not hits:
            raise ValueError(
                f"{argument}: pattern {pattern!r} matches no leaf of params. "
                f"The paths are: {_shorten(leaves)}."
            )
        matched |= hits
    return matched


def _shorten(paths: Any, most: int = 20) -> str:
    names = list(paths)
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


# -- Use -----------------------------------------------------------------------------------------


def apply(mask: Mask, params: Params) -> Params:
    """Returns θ ⊙ m: params with the pruned weights at 0 and the other leaves as they are.

    A boolean mask selects, so that a pruned weight becomes 0 even where it was NaN; a relaxed
    (floating-point) mask multiplies, so that gradients flow to it.

    Args:
        mask: boolean or relaxed mask.
        params: pytree of arrays that `mask` was made for, or the same in other containers, such as
            an `nnx.State`.

    >>> import jax.numpy as jnp
    >>> apply({"kernel": jnp.array([True, False])}, {"kernel": jnp.array([3.0, 4.0])})
    {'kernel': Array([3., 0.], dtype=float32)}
    """

    def apply_leaf(m: Any, leaf: Any) -> Any:
        if m is None:
            return leaf
        if m.dtype == bool:
            return jnp.where(m, leaf, jnp.zeros_like(leaf))
        return m.astype(leaf.dtype) * leaf

    return jax.tree.map(apply_leaf, _boxes.fit(mask, params), params, is_leaf=is_none)


def shuffle(key: Key, mask: Mask) -> Mask:
    """Permutes a mask at random within every prunable leaf. Traceable.

    A sanity check: if a network that is pruned so is as good, then the criterion only chose the
    layers' densities (Frankle et al., "Pruning neural networks at initialization", ICLR 2021).
    Patterns within a leaf, such as N:M groups, blocks and connected channels, are lost.

    Args:
        key: PRNG key.
        mask: the mask; it is left as it is.

    Returns:
        A new mask, which keeps as many weights in each leaf.

    >>> import jax, jax.numpy as jnp
    >>> mask = {"kernel": (jnp.arange(8) < 3).reshape(2, 4), "bias": None}
    >>> shuffled = shuffle(jax.random.key(0), mask)
    >>> num_kept(shuffled), bool(jnp.all(shuffled["kernel"] == mask["kernel"]))
    (3, False)
    """
    # Random selection of as many weights as the leaf keeps, which is much quicker than a random
    # permutation, since that sorts. (Equal numbers go by position; of 2^32 they hardly occur.)
    drawn = random_like(
        typed_key(key),
        map_prunable(lambda m: jax.ShapeDtypeStruct(m.shape, jnp.uint32), mask),
        jax.random.bits,
    )

    def shuffle_leaf(m: jax.Array, bits: jax.Array) -> jax.Array:
        [chosen] = _top_ranks.keep_highest([jnp.maximum(bits, 1)], jnp.sum(m, dtype=jnp.int32))
        return chosen

    return map_prunable(shuffle_leaf, mask, drawn)


def num_prunable(mask: Mask) -> int:
    """Returns N, the number of weights that the mask ranges over.

    >>> import jax.numpy as jnp
    >>> num_prunable({"kernel": jnp.array([True, False, False]), "bias": None})
    3
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(mask))


def num_kept(mask: Mask) -> int:
    """Returns the number of weights that the mask keeps (a Python integer: not for use in jit).

    >>> import jax.numpy as jnp
    >>> num_kept({"kernel": jnp.array([True, False, False]), "bias": None})
    1
    """
    return sum(_kept_in_leaves(mask))


def _kept_in_leaves(mask: Mask) -> list[int]:
    leaves = jax.tree.leaves(mask)
    if _placement.is_split(leaves):  # Counted where its parts are.
        return [int(count) for count in jax.device_get(_count(leaves))]
    return [int(np.count_nonzero(np.asarray(leaf))) for leaf in leaves]


@jax.jit
def _count(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.sum(leaf, dtype=jnp.int32) for leaf in leaves]


def density(mask: Mask) -> float:
    """Returns the fraction of prunable weights that the mask keeps.

    >>> import jax.numpy as jnp
    >>> density({"kernel": jnp.array([True, False, False, False]), "bias": None})
    0.25
    """
    return num_kept(mask) / num_prunable(mask)


def layer_densities(mask: Mask, *, axes: Axes | None = None) -> dict[str, float]:
    """Returns the fraction kept in each prunable layer, by path.

    Args:
        mask: the mask.
        axes: what the axes of leaves mean; see `axes`. A leaf of which neither this nor its name
            says that it is a stack counts as one layer.

    >>> import jax.numpy as jnp
    >>> layer_densities({"fc": {"kernel": jnp.array([True, False]), "bias": None}})
    {'fc/kernel': 0.5}
    >>> layer_densities({"kernel": jnp.array([[[True]], [[False]]])}, axes={"kernel": "sio"})
    {'kernel[0]': 1.0, 'kernel[1]': 0.0}
    """
    leaves = leaf_paths(mask)
    forms = _forms.forms(leaves, axes, need="nothing", what="layer_densities")
    densities: dict[str, float] = {}
    for (path, leaf), form in zip(leaves.items(), forms, strict=True):
        layers = _kept_in_layers(leaf, form) if form.stacked else _kept_in_leaves(leaf)
        densities |= {
            name: int(count) / form.size
            for name, count in zip(form.names(path), layers, strict=True)
        }
    return densities


@functools.partial(jax.jit, static_argnames="form")
def _kept_in_layers(leaf: jax.Array, form: _forms.Form) -> jax.Array:
    return jnp.sum(form.by_layer(leaf), axis=1, dtype=jnp.int32)


# -- Files ---------------------------------------------------------------------------------------


def digest(mask: Mask) -> str:
    """Returns the SHA-256 of a mask's paths, shapes and bits: two masks are equal if theirs is.

    >>> import jax.numpy as jnp
    >>> digest({"w": jnp.array([True, False])})[:8]
    '4247ca0f'
    """
    sha = hashlib.sha256()
    for path, leaf in sorted(leaf_paths(mask).items()):
        sha.update(f"{path}{leaf.shape}".encode())
        sha.update(np.packbits(np.asarray(leaf, bool)).tobytes())
    return sha.hexdigest()


def save(
    path: str | os.PathLike[str], mask: Mask, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a mask as a `.safetensors` file: a boolean array for each prunable leaf, by path.

    The header's metadata hold the mask's density and its digest, by which `load` recognises damage.
    A crash or a power cut leaves the old file or none.

    Args:
        path: where to write; a name that ends in `.safetensors`.
        mask: the mask.
        metadata: more texts by name for the header; `exchange.save_mask` writes where the mask
            comes from.

    Raises:
        ValueError: `path` has another ending.
        TypeError: a leaf that is not a boolean array.

    >>> import jax.numpy as jnp, os, safetensors.numpy, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mask.safetensors")
    ...     save(path, {"fc": {"kernel": jnp.array([True, False]), "bias": None}})
    ...     print(safetensors.numpy.load_file(path))
    {'fc/kernel': array([ True, False])}
    """
    check(mask, mask)
    arrays = {name: np.asarray(leaf) for name, leaf in leaf_paths(mask).items()}
    about = {"format": "ntksap_jax mask", "version": "1", "density": repr(density(mask))}
    about["digest"] = digest(mask)
    _tensors.write(Path(path), arrays, {**(metadata or {}), **about})


def load(path: str | os.PathLike[str], *, like: Params) -> Mask:
    """Reads a mask that `save` wrote, or anybody else: only what fits the params is read.

    Args:
        path: the `.safetensors` file, or an `.npz` file of version 0.1.
        like: the params that the mask is for; the mask gets their structure. Leaves that the file
            does not hold are not prunable.

    Returns:
        The mask.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, numbers other than 0 and 1, or a mask for other params; the
            leaf is named.

    >>> import jax.numpy as jnp, tempfile, os
    >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mask.safetensors")
    ...     save(path, create(params))
    ...     density(load(path, like=params))
    1.0
    """
    path, wanted = Path(path), leaf_paths(like)
    file: Any = _npz if _npz.is_archive(path) else _tensors
    headers, metadata = file.read_headers(path)
    if not headers:
        raise ValueError(f"path: {path} holds no mask: it has no leaf. Run the search again.")
    # Before memory is taken: the file may be anybody's, and say that it holds anything.
    for name, header in headers.items():
        if name not in wanted:
            raise ValueError(
                f"like: the mask file {path} holds leaf {name[:200]!r}, which the params do not "
                "have. Pass the params of the model that the mask was made for."
            )
        is_number = header.dtype == np.dtype(bool) or jnp.issubdtype(header.dtype, jnp.number)
        if header.shape != wanted[name].shape or not is_number:
            raise ValueError(
                f"like: in the mask file {path}, leaf {name!r} has shape {header.shape} and type "
                f"{header.dtype}, expected {wanted[name].shape} and bool. Pass the params of the "
                "model that the mask was made for."
            )
    stored = {
        name: _as_mask(array, name, path) for name, array in file.read_arrays(path, headers).items()
    }
    mask = _boxes.map_named(lambda name, _: stored.get(name), like)
    check(mask, like)
    if _tensors.is_ours(metadata) and metadata["digest"] != digest(mask):
        raise ValueError(
            f"path: {path} is damaged: it does not hold the mask that was saved. Restore it, or "
            "run the search again."
        )
    return jax.tree.map(jnp.asarray, mask)


def _as_mask(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Returns a stored array as booleans; others write them as numbers."""
    if array.dtype == np.dtype(bool):  # From bytes, which may be others than 0 and 1.
        return array.view(np.uint8).astype(bool)
    if not np.all((array == 0) | (array == 1)):
        raise ValueError(
            f"path: in {path}, leaf {name!r} of type {array.dtype} holds numbers other than 0 and "
            "1, so it is no mask. Of params, the mask is what is not zero: "
            "masks.create(params), and jnp.asarray(leaf) != 0 in its leaves."
        )
    return array.astype(bool)
