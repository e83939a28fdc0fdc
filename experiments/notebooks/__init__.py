"""Notebooks for a TPU, a GPU or a CPU, and what each of them begins with."""

from __future__ import annotations

import os

import flax
import jax
import matplotlib.pyplot as plt

from experiments.shell.pictures import COLOURS, MARKERS, STYLE

SMALL = bool(os.environ.get("NTKSAP_SMALL"))
"""To see quickly that every cell runs."""


def start() -> None:
    """Sets the style of the plots, and says what this runs on (XLA's flag for CPUs is set already).

    Raises:
        RuntimeError: a version of JAX that is too old.
    """
    lines = {"axes.prop_cycle": plt.cycler(color=COLOURS, marker=MARKERS), "lines.markersize": 4}
    shape = {"figure.constrained_layout.use": True, "figure.figsize": (8, 3.2)}
    plt.rcParams.update(STYLE | lines | shape)
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, flax {flax.__version__}; {jax.device_count()} x {device}")
    if jax.__version_info__ < (0, 7, 2):
        raise RuntimeError("JAX 0.7.2 or newer is needed: choose a newer version of the runtime")
