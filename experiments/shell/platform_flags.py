"""The one flag that XLA's CPU backend needs to compute our scores right.

Imports nothing of JAX, which reads the flag when it starts. What goes wrong without it:
`ntksap_jax/_platform.py`.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys

# Empty: no operation goes to the YNNPACK library. It is also faster so.
YNNPACK_OFF = "--xla_cpu_experimental_ynn_fusion_type="

# XLA ends the process at a flag it does not know. These releases were tried.
_JAXLIBS_WITH_THE_FLAG = ("0.10.", "0.11.", "0.12.")


def turn_ynnpack_off() -> None:
    """Adds the flag to the environment variable XLA_FLAGS, if JAX can still see it.

    If JAX is imported already, its backend may be running, and the flag would come too late. Then
    nothing is set, so that the library, which looks for the flag when it first computes, warns.
    """
    if "jax" in sys.modules:
        return
    os.environ["XLA_FLAGS"] = with_ynnpack_off(
        os.environ.get("XLA_FLAGS", ""), jaxlib_version=importlib.metadata.version("jaxlib")
    )


def with_ynnpack_off(xla_flags: str, *, jaxlib_version: str) -> str:
    """Returns `xla_flags` with the flag appended.

    Unchanged if the user set the flag, to whatever value; if this jaxlib may not know it; or if
    `xla_flags` is the name of a file with flags, to which nothing can be appended.
    """
    names_a_file = bool(xla_flags.strip()) and not xla_flags.lstrip().startswith("-")
    is_set = YNNPACK_OFF.rstrip("=") in xla_flags
    if is_set or names_a_file or not jaxlib_version.startswith(_JAXLIBS_WITH_THE_FLAG):
        return xla_flags
    return f"{xla_flags} {YNNPACK_OFF}".strip()
