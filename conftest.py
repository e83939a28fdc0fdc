"""Test configuration: at the top, because the doctests in ntksap_jax/ need it too."""

import gc
import os
import shutil
from pathlib import Path

import experiments  # noqa: F401  (sets XLA_FLAGS; must come before jax)

if "--xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    # Tests compile far more than they compute: unoptimised machine code of the same operations, in
    # a third of the time. CI also runs those against recorded values with optimisation.
    os.environ["XLA_FLAGS"] += (
        " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    )

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Compiled programs outlive the run: the next one needs two thirds of the time. Nothing else
    # removes those of code that is gone.
    compiled = Path(__file__).parent / ".pytest_cache" / "d" / "jax"
    if sum(path.stat().st_size for path in compiled.glob("*")) > 3 << 30:
        shutil.rmtree(compiled, ignore_errors=True)
    # As variables, because the workers and the programs that tests start inherit them.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # isort: skip
import hypothesis
import pytest

from ntksap_jax import ops

if not hasattr(jax, "enable_x64"):  # as in jax 0.7.2
    jax.enable_x64 = jax.experimental.enable_x64

# Compiles oneDNN's convolution now, if ever, and not within the time of a test.
CONVOLUTION = ops.cpu_convolution()

# Several devices, so that sharding is tested on any machine.
jax.config.update("jax_num_cpu_devices", 8)

# The same examples on every run, and no verdict that depends on how busy the machine is.
hypothesis.settings.register_profile("ntksap_jax", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("ntksap_jax")


# What JAX keeps of thousands of compiled programs is not garbage: up to a fifth of all time went
# into looking through it again and again.
gc.set_threshold(100_000, 50, 50)

SLOW_FILES = (
    *("test_model_axis.py", "test_golden.py", "test_shrinking.py", "test_sweep.py"),
    *("test_sharding.py", "test_distributed.py", "test_tpp_program.py", "test_durability.py"),
    *("test_benchmark.py", "test_ntk.py", "test_ops.py", "test_filters.py", "test_search.py"),
    *("test_docs.py", "test_notebooks.py", "test_any_model.py"),
)
"""Those that take longest start first, so that no worker ends long before the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts slow files first."""
    items.sort(key=lambda item: item.path.name not in SLOW_FILES)


def pytest_report_header() -> str:
    """Adds to pytest's header what results depend on."""
    flags = os.environ.get("XLA_FLAGS", "")
    return f"jax: {jax.__version__}, XLA_FLAGS={flags!r}, convolutions on CPU: {CONVOLUTION}"
