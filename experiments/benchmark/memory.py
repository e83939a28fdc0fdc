"""The memory of this process, in MiB."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident() -> float:
    """Returns what the process holds now; where the system does not tell, `peak()`."""
    held = _read("VmRSS")
    return peak() if held is None else held


def peak() -> float:
    """Returns what the process held at most.

    On Linux not `ru_maxrss`, which starts at what the *parent* held when it started the process.
    """
    most = _read("VmHWM")
    if most is not None:
        return most
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def give_back() -> None:
    """Gives what was freed, such as a compiler's memory, back to the system, where glibc is."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def restart_peak() -> bool:
    """Lets `peak` start again from what is in use now; returns False where the system cannot."""
    give_back()
    if _read("VmHWM") is None:
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _read(name: str) -> float | None:
    with contextlib.suppress(OSError):
        if match := re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE):
            return int(match[1]) / 1024
    return None
