"""The flag that XLA's CPU backend needs to compute our scores right, and large pages of memory.

Imports nothing of JAX, which reads the flag when it starts. What goes wrong without it:
`ntksap_jax/_platform.py`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

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


LARGE_PAGES = "glibc.malloc.hugetlb=1"
"""XLA's CPU backend takes its memory from the system for each call of a program and gives it back.
In pages of 4 kB, a finite-difference sample of ResNet-20 faults 78,000 of them in, and takes half
as much processor time again as in pages of 2 MB: PyTorch keeps its memory, and gains nothing."""


def restart_with_large_pages() -> None:
    """Starts the program that Python is about to run anew where glibc may ask for large pages.

    It reads its settings only when a process starts. Children inherit them.
    """
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    mode = offered.read_text() if offered.exists() else ""
    before = os.environ.get("GLIBC_TUNABLES", "")
    tunables = with_large_pages(before, mode=mode, libc=platform.libc_ver())
    if tunables != before:
        os.environ["GLIBC_TUNABLES"] = tunables
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def with_large_pages(tunables: str, *, mode: str, libc: tuple[str, str]) -> str:
    """Returns `tunables` with `LARGE_PAGES`: unchanged if set, of no use or unknown to the libc."""
    name, version = libc
    is_known = name == "glibc" and [int(n) for n in version.split(".")[:2]] >= [2, 35]
    if not is_known or "[madvise]" not in mode or LARGE_PAGES.split("=")[0] in tunables:
        return tunables
    return ":".join(filter(None, [tunables, LARGE_PAGES]))
