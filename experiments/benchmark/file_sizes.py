"""The case file-sizes: what a pruned network takes on disk.

ResNet-20's params with a random mask, which is the hardest one to compress.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import numpy as np

import ntksap_jax as nts
from experiments.benchmark.results import Table
from ntksap_jax import criteria, exchange, masks, models
from ntksap_jax.types import Mask, Params

DENSITIES = (1.0, 0.1, 0.02)


def sizes(params: Params, mask: Mask) -> dict[str, int]:
    """Returns the size in bytes of each kind of file."""
    arrays = masks.leaf_paths(params)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "np.savez.npz", **arrays)
        np.savez_compressed(folder / "np.savez_compressed.npz", **arrays)
        exchange.save_packed(folder / "save_packed.safetensors", params, mask)
        exchange.save_mask(folder / "the mask alone, save_mask.safetensors", mask)
        return {path.stem: path.stat().st_size for path in sorted(folder.iterdir())}


def table() -> Table:
    """Makes the table, with a row for each kind of file."""
    network = nts.linen(models.resnet20(), (32, 32, 3), train=False)
    dense = network.init(jax.random.key(0))
    columns = []
    for density in DENSITIES:
        mask, _ = nts.prune(jax.random.key(1), dense, criteria.random(), schedule=[density])
        columns.append(sizes(masks.apply(mask, dense), mask))
    rows = [(kind, *(f"{column[kind]:,}" for column in columns)) for kind in columns[0]]
    header = ("file", *(f"density {density:g}" for density in DENSITIES))
    return Table("Sizes on disk, bytes", header, rows, "ResNet-20 in float32, with a random mask.")
