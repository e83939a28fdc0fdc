"""Arrays in the `.npz` files that version 0.1 wrote, read whoever wrote them.

`numpy.load` takes the memory that a file asks for before it looks for the data, inflates whatever
it finds, and parses headers as Python. Here the headers are read first, for the caller to judge,
and nothing is taken that the file does not hold. No pickle, and no member becomes a file.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ntksap_jax import _files

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    r"\{'descr': '([<>|=]?[a-zA-Z][0-9]{0,9})', 'fortran_order': (False|True), "
    r"'shape': \(((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\), \} *\n?",
    re.ASCII,
)
"""What NumPy writes for arrays of one type; what it can read is any Python literal."""


class Header(NamedTuple):
    """What a file says about one of its arrays.

    Attributes:
        shape: its shape.
        dtype: of its elements; never of objects.
        is_fortran: whether the first axis varies fastest.
        is_compressed: whether it takes less space in the file than in memory.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool
    is_compressed: bool

    @property
    def num_bytes(self) -> int:
        """The memory that it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip archive does; what else it is, is not looked into."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_headers(path: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """Reads what a file says about its arrays; its comment was the digest of what it holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or no archive of plain arrays.
    """
    with _files.readable(path), zipfile.ZipFile(path) as archive:
        headers = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in headers:
                raise ValueError(f"it holds {name!r} twice")
            with archive.open(_checked(info)) as member:
                headers[name] = _read_header(member, info)
        # Other programs may comment on their archives, too.
        comment = archive.comment.decode(errors="replace")
        is_digest = re.fullmatch("[0-9a-f]{64}", comment)
        return headers, {"format": "ntksap_jax 0.1", "digest": comment} if is_digest else {}


def read_arrays(path: Path, headers: Mapping[str, Header]) -> dict[str, np.ndarray]:
    """Reads the arrays, once the caller knows from their headers that they are wanted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or has changed since its headers were read.
    """
    arrays = {}
    with _files.readable(path), zipfile.ZipFile(path) as archive:
        for name, header in headers.items():
            info = archive.getinfo(f"{name}.npy")
            with archive.open(_checked(info)) as member:
                if _read_header(member, info) != header:
                    raise ValueError("it was changed while it was read")
                data = member.read(header.num_bytes)
                if len(data) < header.num_bytes or member.read(1):
                    raise ValueError(f"{name!r} is not as long as it says")
            order: Any = "F" if header.is_fortran else "C"
            arrays[name] = np.ndarray(header.shape, header.dtype, data, order=order)
    return arrays


def _checked(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    # Of the other methods zipfile inflates a whole block at once, however large it becomes.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename!r} is compressed by another method than deflate")
    return info


def _read_header(member: IO[bytes], info: zipfile.ZipInfo) -> Header:
    start = member.read(len(_MAGIC) + 2)
    text = member.read(int.from_bytes(start[-2:], "little")).decode("latin-1")
    match = _HEADER.fullmatch(text)
    if not start.startswith(_MAGIC) or match is None:
        raise ValueError(f"{info.filename!r} is no plain array")
    header = Header(
        shape=tuple(int(size) for size in match[3].split(",") if size.strip()),
        dtype=np.dtype(match[1]),
        is_fortran=match[2] == "True",
        is_compressed=info.compress_type != zipfile.ZIP_STORED,
    )
    if header.dtype.hasobject:
        raise ValueError(f"{info.filename!r} holds Python objects, which are not read")
    if len(start) + len(text) + header.num_bytes != info.file_size:
        raise ValueError(f"{info.filename!r} is not as long as it says")
    return header
