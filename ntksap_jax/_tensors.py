"""Arrays and what is said about them in a `.safetensors` file, whoever wrote it.

The headers are read first, for the caller to judge: no memory is taken for an array before that.
The format itself holds no code, and nothing compressed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ntksap_jax import _checks, _files

_DTYPES = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{"BF16": "bfloat16", "C64": "complex64"},
}
_CHECKSUM = "checksum"
_OURS = "ntksap_jax "
"""What the text called "format" starts with in files of `write`."""


class Header(NamedTuple):
    """What a file says about one of its arrays.

    Attributes:
        shape: its shape.
        dtype: type of its elements.
    """

    shape: tuple[int, ...]
    dtype: np.dtype


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays by name; a crash leaves the old file or none.

    Args:
        path: where to write.
        arrays: name to array.
        metadata: what is said about them, its "format" included; a checksum of it is added.

    Raises:
        ValueError: `path` has another ending.
        FileNotFoundError: its folder does not exist.
        TypeError: an array of a type that the format does not have.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"path: got {path}, expected a name that ends in .safetensors.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {path.parent}. Make it first.")
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES.values():
            raise TypeError(
                f"leaf {name!r} is {array.dtype}, expected one of {', '.join(_DTYPES.values())}."
            )
    data = safetensors.numpy.save(
        {name: np.asarray(array, order="C") for name, array in _checks.native(arrays).items()},
        metadata={**metadata, _CHECKSUM: checksum(metadata)},
    )
    with _files.aside(path) as aside:
        aside.write_bytes(data)


def read_headers(path: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """Reads what a file says about its arrays: shapes and types by name, and the metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or no such file.
    """
    with _files.readable(path), safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
        if is_ours(metadata) and metadata.get(_CHECKSUM) != checksum(metadata):
            raise ValueError("its metadata is not what was saved")
        headers = {}
        for name in file.keys():  # noqa: SIM118
            array = file.get_slice(name)
            if array.get_dtype() not in _DTYPES:
                raise ValueError(f"{name!r} is of type {array.get_dtype()}")
            dtype = jnp.dtype(_DTYPES[array.get_dtype()])
            headers[name] = Header(tuple(array.get_shape()), dtype)
        return headers, metadata


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether `write` wrote the file: others may say anything by one of its names.

    All the names tell as well, so that damage to the format's own text shows.
    """
    names = {"version", "digest", _CHECKSUM}
    return metadata.get("format", "").startswith(_OURS) or names <= metadata.keys()


def read_arrays(path: Path, headers: Mapping[str, Header]) -> dict[str, np.ndarray]:
    """Reads the arrays, once the caller knows from their headers that they are wanted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or has changed since its headers were read.
    """
    with _files.readable(path), safetensors.safe_open(path, "numpy") as file:
        arrays = {}
        for name, header in headers.items():
            if tuple(file.get_slice(name).get_shape()) != header.shape:
                raise ValueError("it was changed while it was read")
            arrays[name] = file.get_tensor(name)
        return arrays


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the names, types, shapes and contents of arrays."""
    sha = hashlib.sha256()
    for name, array in sorted(_checks.native(dict(arrays)).items()):
        sha.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def checksum(metadata: Mapping[str, str]) -> str:
    """Returns the SHA-256 of texts by name, the one called "checksum" excepted."""
    covered = sorted((key, text) for key, text in metadata.items() if key != _CHECKSUM)
    return hashlib.sha256(json.dumps(covered).encode()).hexdigest()
