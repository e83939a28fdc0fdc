"""A mask in one file, with where it comes from: density, criterion, configuration, content hash.

`.npz` files are those of `masks.save`, which `masks.load` and `np.load` read: a boolean array for
each prunable leaf, keyed by path. What is known about the mask stands in the comment of the
archive's first member, as JSON. `.safetensors` files hold the same arrays, and the same words as
their metadata.
"""

# safetensors is optional: types are checked where it is installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _files, masks
from ntksap_jax.types import Mask, Params

_FORMAT, _VERSION = "ntksap_jax mask", "1"
_LONGEST_COMMENT = 65535  # of a member of a zip archive
_ADVICE = "Restore it, or run the search again."


class MaskInfo(NamedTuple):
    """What a file says about its mask.

    Attributes:
        density: fraction of the prunable weights that it keeps.
        digest: `masks.digest` of the mask.
        criterion: what chose the weights; `None` where nobody said.
        config: how, as JSON gives it back.

    >>> import jax.numpy as jnp, os, tempfile
    >>> mask = {"kernel": jnp.array([[True, False]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mask.npz")
    ...     masks.save(path, mask)  # which says nothing of where it comes from
    ...     _, info = load_mask(path, like=mask)
    >>> info.density, info.digest == masks.digest(mask), info.criterion, info.config
    (0.5, True, None, {})
    """

    density: float
    digest: str
    criterion: str | None
    config: dict[str, Any]


def save_mask(
    path: str | os.PathLike[str],
    mask: Mask,
    *,
    criterion: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Writes a mask and where it comes from.

    Args:
        path: where to write: `.npz`, compressed and read by `masks.load` and `np.load` too; or
            `.safetensors`, which needs the package of that name.
        mask: the mask.
        criterion: what chose the weights, such as `"ntk_sap"`.
        config: how: whatever JSON can hold.

    Raises:
        ValueError: another ending, or too long a `config`.
        TypeError: a leaf that is not a boolean array, or a `config` that JSON cannot hold.
        ImportError: `.safetensors` without safetensors.

    >>> import jax.numpy as jnp, os, tempfile
    >>> mask = {"kernel": jnp.array([[True, False]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mask.npz")
    ...     save_mask(path, mask, criterion="magnitude")
    ...     load_mask(path, like=mask)[1].criterion
    'magnitude'
    """
    path = Path(path)
    masks.check(mask, mask)
    words = _words(mask, criterion, config)
    if _is_safetensors(path):
        arrays = {name: np.asarray(leaf) for name, leaf in masks.leaf_paths(mask).items()}
        library = _safetensors()
        with _files.aside(path) as aside:
            library.numpy.save_file(arrays, aside, metadata=words)
        return
    comment = json.dumps(words).encode()
    if len(comment) > _LONGEST_COMMENT:
        raise ValueError(
            f"config: takes {len(comment)} bytes, an .npz file holds {_LONGEST_COMMENT} about a "
            "mask. Shorten it, or write a .safetensors file."
        )
    with _files.aside(path) as aside:
        masks.save(aside, mask)
        with zipfile.ZipFile(aside, "a") as archive:
            archive.infolist()[0].comment = comment
            archive.comment = archive.comment  # has the directory, where comments are, rewritten


def load_mask(path: str | os.PathLike[str], *, like: Params) -> tuple[Mask, MaskInfo]:
    """Reads a mask that `save_mask` or `masks.save` wrote.

    Args:
        path: the file, `.npz` or `.safetensors`.
        like: the params that the mask is for; the mask gets their structure. Leaves that the file
            does not hold are not prunable.

    Returns:
        The mask, and what the file says about it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending; a damaged file, whose content is not what its hashes say; or one
            for other params, whose leaf is named.
        ImportError: `.safetensors` without safetensors.

    >>> import jax.numpy as jnp, os, tempfile
    >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mask.npz")
    ...     save_mask(path, masks.create(params), criterion="ntk_sap", config={"rounds": 20})
    ...     mask, info = load_mask(path, like=params)
    >>> info.density, info.criterion, info.config
    (1.0, 'ntk_sap', {'rounds': 20})
    """
    path = Path(path)
    if _is_safetensors(path):
        mask, words = _read_safetensors(path, like)
    else:
        mask, words = masks.load(path, like=like), _comment(path)
    digest, density = masks.digest(mask), masks.density(mask)
    if not words:
        return mask, MaskInfo(density, digest, None, {})
    problem = _problem(words, digest, density)
    if problem:
        raise ValueError(f"path: {path} is damaged: {problem}. {_ADVICE}")
    if words["version"] != _VERSION:
        raise ValueError(
            f"path: {path} has version {words['version']!r} of the format, expected {_VERSION!r}. "
            "Read it with the version of ntksap_jax that wrote it."
        )
    return mask, MaskInfo(density, digest, words.get("criterion"), json.loads(words["config"]))


# -- What is known about a mask --------------------------------------------------------------------


def _words(mask: Mask, criterion: str | None, config: Mapping[str, Any] | None) -> dict[str, str]:
    if criterion is not None and not isinstance(criterion, str):
        raise TypeError(
            f"criterion: got {type(criterion).__name__}, expected its name, such as 'ntk_sap'."
        )
    try:
        as_json = json.dumps(dict(config or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"config: JSON cannot hold it ({error}). Pass a dict of numbers, strings, lists and "
            "dicts; a dataclass by dataclasses.asdict."
        ) from error
    words = {
        "format": _FORMAT,
        "version": _VERSION,
        "density": repr(masks.density(mask)),
        "digest": masks.digest(mask),
        "config": as_json,
    } | ({} if criterion is None else {"criterion": criterion})
    return words | {"checksum": _checksum(words)}


def _checksum(words: Mapping[str, str]) -> str:
    covered = sorted((key, text) for key, text in words.items() if key != "checksum")
    return hashlib.sha256(json.dumps(covered).encode()).hexdigest()


def _problem(words: Any, digest: str, density: float) -> str | None:
    """What is wrong with what a file says about its mask."""
    if not isinstance(words, dict) or words.get("format") != _FORMAT:
        return "what it says about the mask was not written by save_mask"
    if words.get("checksum") != _checksum(words):
        return "what it says about the mask is not what was saved"
    if words["digest"] != digest or words["density"] != repr(density):
        return "it does not hold the mask that was saved"
    return None


# -- Files -----------------------------------------------------------------------------------------


def _is_safetensors(path: Path) -> bool:
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path: got {path}, expected a name that ends in .npz or .safetensors.")
    return path.suffix == ".safetensors"


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "path: .safetensors files need the safetensors package: "
            "pip install 'ntksap_jax[exchange]'. Files ending in .npz need nothing."
        ) from error
    return safetensors


def _comment(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            comment = archive.infolist()[0].comment
        return json.loads(comment) if comment else {}
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: {path} is damaged ({error}). {_ADVICE}") from error


def _read_safetensors(path: Path, like: Params) -> tuple[Mask, Any]:
    library = _safetensors()
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist.")
    try:
        with library.safe_open(path, framework="numpy") as file:
            words = file.metadata()
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, TypeError, library.SafetensorError) as error:
        raise ValueError(
            f"path: {path} is not a readable .safetensors file ({error}): truncated or damaged. "
            f"{_ADVICE}"
        ) from error
    unknown = sorted(stored.keys() - masks.leaf_paths(like).keys())
    if unknown:
        raise ValueError(
            f"like: the mask file {path} holds leaf {unknown[0]!r}, which the params do not have. "
            "Pass the params of the model that the mask was made for."
        )
    mask = jax.tree_util.tree_map_with_path(
        lambda key, _: stored.get(jax.tree_util.keystr(key, simple=True, separator="/")), like
    )
    masks.check(mask, like)
    return jax.tree.map(jnp.asarray, mask), words
