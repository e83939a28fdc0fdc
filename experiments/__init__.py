"""The programs: run the main one with `python -m experiments.cifar`."""

import sys

from experiments.shell.interruption import guard_imports
from experiments.shell.platform_flags import restart_with_large_pages, turn_ynnpack_off

# Here, because Python runs this file before any program of the package, and so before JAX.
if sys.argv[:1] == ["-m"]:  # Python is about to run one, and has not found it yet.
    restart_with_large_pages()
    guard_imports()
turn_ynnpack_off()
