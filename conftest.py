"""Test configuration: at the top, because the doctests in ntksap_jax/ need it too."""

import os

import experiments  # noqa: F401  (sets XLA_FLAGS; must come before jax)

import jax  # isort: skip
import hypothesis

# Several devices, so that sharding is tested on any machine.
jax.config.update("jax_num_cpu_devices", 4)

# The same examples on every run, and no verdict that depends on how busy the machine is.
hypothesis.settings.register_profile("ntksap_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ntksap_jax")


def pytest_report_header() -> str:
    """Adds to pytest's header what results depend on."""
    return f"jax: {jax.__version__}, XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
