"""What a run cannot go on after: numbers that are not finite, a full disk. And what is kept of it.

failure/about.json   what happened, when, and with which key
failure/*.npz        the arrays that led there, by path; numpy.load reads them
"""

from __future__ import annotations

import errno
import os
import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.storage import files, run_folder
from ntksap_jax import masks

DISK_FULL_CODE = os.EX_IOERR
"""74: exit code after a full disk. The last good state is there."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFailed(Exception):
    """A run that cannot go on; the message is shown as one line."""


# -- A full disk ---------------------------------------------------------------------------------


def disk_full(error: BaseException) -> str | None:
    """Returns the line about a full disk, if that is what an error goes back to.

    Not only `OSError`: the libraries that write checkpoints turn it into errors of their own, which
    quote the system's words.
    """
    words = tuple(os.strerror(number) for number in _FULL)
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            where = f" ({cause.filename})" if cause.filename else ""
            reason = cause.strerror
        elif found := [each for each in words if each in str(cause)]:
            where, reason = "", found[0]
        else:
            continue
        return (
            f"the disk is full: {reason}{where}. What was saved before is kept: make room, then "
            "use --resume"
        )
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


# -- Numbers that are not finite -----------------------------------------------------------------


def save(folder: Path, about: Mapping[str, Any], **trees: Any) -> Path:
    """Writes what led to a failure into the folder `failure` of a run, and returns that.

    Args:
        folder: the run folder.
        about: what happened, as JSON.
        **trees: pytrees of arrays, each for a file.
    """
    path = folder / "failure"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, tree in trees.items():
        arrays = masks.leaf_paths(jax.device_get(tree))
        with files.aside(path / f"{name}.npz") as aside, aside.open("wb") as file:
            np.savez(
                file, allow_pickle=False, **{key or name: leaf for key, leaf in arrays.items()}
            )
    run_folder.write_json(path / "about.json", about)
    return path


def describe_weights(params: Any) -> str:
    """Names the leaf where numbers are not finite; if they all are, that of the largest."""
    largest = {
        path: float(np.max(np.abs(leaf), initial=0.0))
        for path, leaf in masks.leaf_paths(jax.device_get(params)).items()
    }
    for path, value in largest.items():
        if not np.isfinite(value):
            return f"{path} was not finite before it"
    path = max(largest, key=lambda path: largest[path])
    return f"all weights were finite before it, the largest {largest[path]:.3g} in {path}"


def operation(error: FloatingPointError) -> str:
    """Says which operation `--debug-nans` found, and the line of ours that asked for it."""
    ours = [
        frame
        for each in _causes(error)
        for frame in traceback.extract_tb(each.__traceback__)
        if "site-packages" not in frame.filename
    ]
    place = f", {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{str(error).splitlines()[0]}{place}"
