"""Compiles conv2d.cpp against jaxlib and oneDNN, once, into the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import jax
import jaxlib

SOURCE = Path(__file__).with_name("conv2d.cpp")

# Of the packages of oneDNN on PyPI, the one that needs nothing but the compiler's own libgomp. It
# is not renewed. The current one, `onednn`, is linked to SYCL and TBB: Intel's runtimes, and
# threads that compete with XLA's.
LIBRARY, HEADERS = "onednn-cpu-gomp", "onednn-devel-cpu-gomp"

COMPILERS = ("c++", "g++", "clang++")


class Unavailable(Exception):
    """Says why there is no library."""


def version() -> str:
    """The version of oneDNN that is installed."""
    try:
        return metadata.version(LIBRARY)
    except metadata.PackageNotFoundError:
        raise Unavailable("the extra is not installed: pip install 'ntksap_jax[cpu]'") from None


def build() -> Path:
    """Returns the path of the library, compiled now if it is not in the cache.

    Raises:
        Unavailable: without the packages, a compiler or the instructions, or if compiling fails.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Unavailable("oneDNN's packages are for Linux on x86-64")
    if " avx2 " not in Path("/proc/cpuinfo").read_text():
        raise Unavailable("the processor has no AVX2")
    library, headers = _folder(LIBRARY, "libdnnl.so.3"), _folder(HEADERS, "dnnl.hpp")
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise Unavailable(f"no C++ compiler: {', '.join(COMPILERS)} not found, CXX is not set")
    command = [*shlex.split(compiler), "-std=c++20", "-O3", "-shared", "-fPIC", "-w", str(SOURCE)]
    command += [f"-I{jax.ffi.include_dir()}", f"-I{headers}"]
    command += [str(library / "libdnnl.so.3"), f"-Wl,-rpath,{library}"]
    versions = [version(), jaxlib.__version__]
    key = hashlib.sha256(repr((command, versions)).encode() + SOURCE.read_bytes()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ntksap_jax"
    target = cache / f"conv2d-{key[:16]}.so"
    if not target.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _compile(command, target)
        except OSError as error:
            raise Unavailable(f"it cannot be compiled into {cache}: {error}") from error
    return target


def _folder(package: str, name: str) -> Path:
    """Where a package has put a file."""
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        raise Unavailable("the extra is not installed: pip install 'ntksap_jax[cpu]'") from None
    # A header of the same name stands in include/oneapi/dnnl as well: the shortest path is meant.
    found = [Path(str(f.locate())).resolve() for f in files if f.name == name]
    found = sorted((path for path in found if path.exists()), key=lambda path: len(path.parts))
    if not found:
        raise Unavailable(f"{package} is installed, but its {name} is not found")
    return found[0].parent


def _compile(command: list[str], target: Path) -> None:
    import fcntl  # which Windows has not

    # The kernel frees the lock however its holder ends; others then find the library made.
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
            if done.returncode != 0:
                raise Unavailable(f"{command[0]} failed: {done.stderr[-1000:]}")
            made.replace(target)
