"""The programs: run the main one with `python -m experiments.cifar`."""

from experiments.shell.platform_flags import turn_ynnpack_off

# Here, because Python runs this file before any program of the package, and so before JAX.
turn_ynnpack_off()
