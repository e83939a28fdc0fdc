"""Values recorded from the NTK-SAP authors' PyTorch code, in our trees and layouts.

`data/resnet8w4.npz` (dense) and `data/resnet8w4_masked.npz` (partly pruned) hold a ResNet-8 of
width
4: weights, mask, data, every random draw, and the scores and masks that the authors' code made of
    them.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ntksap_jax as nts
from ntksap_jax import models
from ntksap_jax.types import Network

FILES = ("resnet8w4", "resnet8w4_masked")
SIGMA = 0.01
NUM_DRAWS = 2

_BLOCK_NAMES = {
    "conv1": "conv1",
    "bn1": "bn1",
    "conv2": "conv2",
    "bn2": "bn2",
    "shortcut.0": "shortcut_conv",
    "shortcut.1": "shortcut_bn",
}
_NAMES = {"conv": ("conv",), "bn": ("bn",), "fc": ("fc",)} | {
    f"blocks.{i}.{theirs}": (f"block_{i}", ours)
    for i in range(3)
    for theirs, ours in _BLOCK_NAMES.items()
}


@functools.cache
def load(name: str) -> Any:
    """Opens a recorded file."""
    return np.load(Path(__file__).parent / "data" / f"{name}.npz", allow_pickle=False)


@functools.cache  # Made once: its functions are compiled once.
def network() -> Network:
    """The recorded network, as one of ours."""
    model = models.ResNet(blocks=(1, 1, 1), width=4, num_classes=5)
    return nts.linen(model, (16, 16, 3), train=False)


def images(array: np.ndarray) -> Any:
    """NCHW to NHWC."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def params(recorded: Any, prefix: str) -> dict[str, Any]:
    """The arrays under `prefix/` as a nested dict of our names and layouts (HWIO, (in, out))."""
    tree: dict[str, Any] = {}
    for key in recorded.files:
        module, _, leaf = key.removeprefix(prefix + "/").rpartition(".")
        # The identity shortcut of the first block records an all-ones "weight" that nothing uses.
        if key.startswith(prefix + "/") and module in _NAMES:
            node = tree
            for part in _NAMES[module]:
                node = node.setdefault(part, {})
            array = recorded[key]
            layouts = {4: ("kernel", (2, 3, 1, 0)), 2: ("kernel", (1, 0)), 1: (leaf, (0,))}
            name, axes = layouts[array.ndim]
            node["scale" if name == "weight" else name] = np.ascontiguousarray(
                array.transpose(axes)
            )
    return tree


def per_kernel(recorded: Any, prefix: str) -> Any:
    """The recorded mask, noise or scores: arrays at the kernels, `None` at the other leaves."""
    return _fill(params(recorded, prefix), params(recorded, "init"))


def _fill(found: Any, like: Any) -> Any:
    if isinstance(like, dict):
        return {key: _fill((found or {}).get(key), child) for key, child in like.items()}
    return found


def mask(recorded: Any, prefix: str = "mask") -> Any:
    """A recorded mask as booleans."""
    return jax.tree.map(lambda leaf: leaf.astype(bool), per_kernel(recorded, prefix))
