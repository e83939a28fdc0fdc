"""A mask in one file, with where it comes from: density, criterion, configuration, content hash.

The files are those of `masks.save`: boolean arrays by path, which every reader of `.safetensors`
understands. What is known about the mask stands in the header's metadata.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ntksap_jax import _files, _npz, _tensors, masks
from ntksap_jax.types import Mask, Params


class MaskInfo(NamedTuple):
    """What a file says about its mask.

    Attributes:
        density: fraction of the prunable weights that it keeps.
        digest: `masks.digest` of the mask.
        criterion: what chose the weights; `None` where nobody said.
        config: the settings of the search, as JSON gives them back.

    >>> import jax.numpy as jnp, os, tempfile
    >>> mask = {"kernel": jnp.array([[True, False]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mask.safetensors")
    ...     masks.save(path, mask)  # which does not say where it comes from
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
        path: where to write; a name that ends in `.safetensors`.
        mask: the mask.
        criterion: what chose the weights, such as `"ntk_sap"`.
        config: the settings of the search: whatever JSON can hold.

    Raises:
        ValueError: `path` has another ending.
        TypeError: a leaf that is not a boolean array, or a `config` that JSON cannot hold.

    >>> import jax.numpy as jnp, os, tempfile
    >>> mask = {"kernel": jnp.array([[True, False]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mask.safetensors")
    ...     save_mask(path, mask, criterion="magnitude")
    ...     load_mask(path, like=mask)[1].criterion
    'magnitude'
    """
    if criterion is not None and not isinstance(criterion, str):
        raise TypeError(
            f"criterion: got {type(criterion).__name__}, expected its name, such as 'ntk_sap'."
        )
    try:
        metadata = {"config": json.dumps(dict(config or {}), allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"config: JSON cannot hold it ({error}). Pass a dict of numbers, strings, lists and "
            "dicts; a dataclass by dataclasses.asdict."
        ) from error
    if criterion is not None:
        metadata["criterion"] = criterion
    masks.save(path, mask, metadata=metadata)


def load_mask(path: str | os.PathLike[str], *, like: Params) -> tuple[Mask, MaskInfo]:
    """Reads a mask that `save_mask` or `masks.save` wrote.

    Args:
        path: the `.safetensors` file, or an `.npz` file of version 0.1.
        like: the params that the mask is for; the mask gets their structure. Leaves that the file
            does not hold are not prunable.

    Returns:
        The mask, and what the file says about it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, whose content is not what its hashes say; or one for other
            params, whose leaf is named.

    >>> import jax.numpy as jnp, os, tempfile
    >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mask.safetensors")
    ...     save_mask(path, masks.create(params), criterion="ntk_sap", config={"rounds": 20})
    ...     mask, info = load_mask(path, like=params)
    >>> info.density, info.criterion, info.config
    (1.0, 'ntk_sap', {'rounds': 20})
    """
    path = Path(path)
    mask = masks.load(path, like=like)
    with _files.readable(path):
        is_archive = _npz.is_archive(path)
        _, metadata = (_npz if is_archive else _tensors).read_headers(path)
        if not _tensors.is_ours(metadata):  # Whatever another program calls so.
            metadata = {}
        elif is_archive:
            metadata = _comment(path)
        criterion, config = metadata.get("criterion"), json.loads(metadata.get("config", "{}"))
    return mask, MaskInfo(masks.density(mask), masks.digest(mask), criterion, config)


def _comment(path: Path) -> dict[str, str]:
    """What version 0.1 wrote as the comment of an archive's first member."""
    with zipfile.ZipFile(path) as archive:
        comment = archive.infolist()[0].comment
    metadata = json.loads(comment) if comment else {}
    if metadata and metadata["checksum"] != _tensors.checksum(metadata):
        raise ValueError("what it says about the mask is not what was saved")
    return metadata
