"""What a run cannot go on after: numbers that are not finite. And what is kept of it.

failure/about.json   what happened, when, and with which key
failure/*.npz        the arrays that led there, by path; numpy.load reads them
"""

from __future__ import annotations

import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.shell.errors import causes
from experiments.storage import files, run_folder
from ntksap_jax import masks


def save(folder: Path, about: Mapping[str, Any], key: jax.Array, **trees: Any) -> str:
    """Writes what led to a failure into the folder `failure` of a run, and returns that.

    `about` says what happened; each of the trees, of arrays, gets a file.
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
    again = {"key": jax.random.key_data(key).tolist(), "command": shlex.join(sys.argv[1:])}
    run_folder.write_json(path / "about.json", {**about, **again})
    return str(path)


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
        for each in causes(error)
        for frame in traceback.extract_tb(each.__traceback__)
        if "site-packages" not in frame.filename
    ]
    place = f", {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{str(error).splitlines()[0]}{place}"
