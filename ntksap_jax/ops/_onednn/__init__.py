"""The three sums of a convolution by oneDNN: on CPU up to five times as fast as by XLA.

It is used by itself where the extra `cpu` is installed and a C++ compiler is found. The environment
variable NTKSAP_CONV=xla keeps it from that; NTKSAP_CONV=onednn warns where it is not possible. XLA
keeps what it is better at, and what must not hold foreign code: see `applies`.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import threading
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax.ops._geometry import Geometry
from ntksap_jax.ops._onednn import _build

TARGET = "ntksap_conv2d"

_SMALL_IMAGE = 16
"""Pixels up to which oneDNN's vectors are mostly empty: XLA's products take half its time."""

_loading = threading.Lock()


def cpu_convolution() -> str:
    """Says which convolution `conv2d` uses on CPU, and why if it is not the faster one.

    Compiles oneDNN's at first use, which takes ten seconds, once.

    Returns:
        "oneDNN" with its version, or "XLA" with the reason.

    Raises:
        ValueError: if the environment variable NTKSAP_CONV is neither "xla" nor "onednn".

    >>> cpu_convolution().split()[0] in ("oneDNN", "XLA")
    True
    """
    with _loading:
        loaded, text = _load()
    return f"oneDNN {text}" if loaded else f"XLA ({text})"


@functools.cache
def _load() -> tuple[bool, str]:
    """Registers the handler; returns True and oneDNN's version, or False and what is missing."""
    wanted = os.environ.get("NTKSAP_CONV", "")
    if wanted not in ("", "xla", "onednn"):
        raise ValueError(f"NTKSAP_CONV is {wanted!r}: set it to 'xla' or 'onednn', or not at all")
    if wanted == "xla":
        return False, "NTKSAP_CONV=xla"
    try:
        library = ctypes.CDLL(str(_build.build()))
    except (_build.Unavailable, OSError) as error:
        if wanted:
            warnings.warn(f"NTKSAP_CONV=onednn, but XLA convolves: {error}", stacklevel=2)
        return False, str(error)
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.ntksap_conv2d), platform="cpu")
    return True, _build.version()


def applies(context: Any, left: Any, geometry: Geometry) -> bool:
    """Whether a sum is oneDNN's, where `context` is that of its lowering.

    Exported programs run where oneDNN may not be; programs for several devices are split by XLA,
    which has to know what is in them; a single image would keep a single core busy. For a kernel of
    one pixel that strides, oneDNN 2023.2.0 packs the inputs into memory of its own in vectors of 8
    channels, and writes past its end where they are fewer.
    """
    single = getattr(context.module_context.axis_context, "num_devices", None) == 1
    if not single or context.module_context.lowering_parameters.for_export:
        return False
    overruns = geometry.kernel_size == (1, 1) and geometry.strides != (1, 1)
    pixels = min(math.prod(geometry.input_size), math.prod(geometry.output_size))
    return (
        left.dtype == jnp.float32
        and not overruns
        and (pixels > _SMALL_IMAGE or geometry.groups > 1)
        and cpu_convolution().startswith("oneDNN")
        and math.prod(left.shape[:-3]) >= len(os.sched_getaffinity(0))  # which Linux has
    )


def convolve(
    which: int, shape: tuple[int, ...], left: jax.Array, right: jax.Array, geometry: Geometry
) -> jax.Array:
    """The outputs (`which` = 0), input gradient (1) or kernel gradient (2), of this shape."""
    (top, bottom), (before, after) = geometry.padding
    steps = [*geometry.strides, top, bottom, before, after, *geometry.dilation, geometry.groups]
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(shape, left.dtype))
    return call(left, right, sum=np.int64(which), steps=np.array(steps, np.int64))
