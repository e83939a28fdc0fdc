"""Numbers on CPU are right, under the flag that our entry points set."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shell import platform_flags
from experiments.shell.platform_flags import (
    LARGE_PAGES,
    YNNPACK_OFF,
    with_large_pages,
    with_ynnpack_off,
)
from ntksap_jax import _platform

ROOT = Path(__file__).parent.parent
DTYPES = [(np.float32, 32_769, 1e-5), (np.float64, 16_385, 1e-13)]


@pytest.mark.parametrize(("dtype", "rows", "rtol"), DTYPES)
def test_sum_of_squares_of_a_vmapped_product(dtype, rows, rtol):
    # jax-ml/jax#39103: jaxlib 0.10.2 gets the last row wrong at these sizes.
    x = np.zeros((rows, 3), dtype)
    x[:, 0] = np.arange(rows)
    with jax.enable_x64(dtype == np.float64):
        matrix = jnp.eye(3, dtype=dtype)
        got = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(x)
    np.testing.assert_allclose(got, np.sum(x.astype(np.float64) ** 2, axis=1), rtol=rtol)


@pytest.mark.parametrize(("dtype", "_", "rtol"), DTYPES)
def test_batched_product_with_a_broadcast_operand(dtype, _, rtol):
    # jaxlib 0.10.2 to 0.12.0.1 return NaN or anything at all.
    e = np.random.default_rng(0).uniform(size=(5, 60, 60)).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        got = jax.jit(lambda e, c: jnp.sum((e @ jnp.full_like(e, c)) * e, axis=-1))(e, dtype(0.5))
    e = e.astype(np.float64)
    np.testing.assert_allclose(got, 0.5 * np.sum(e, axis=-1) ** 2, rtol=rtol)


USERS = "--xla_dump_to=here"


@pytest.mark.parametrize(
    ("flags", "jaxlib", "result"),
    [
        ("", "0.10.2", YNNPACK_OFF),
        (USERS, "0.12.0.1", f"{USERS} {YNNPACK_OFF}"),
        # The user's choice, and a file of flags, are left alone; so is a jaxlib that may end at it.
        (f"{YNNPACK_OFF}dot,reduce", "0.12.0.1", f"{YNNPACK_OFF}dot,reduce"),
        ("flags.txt", "0.12.0.1", "flags.txt"),
        ("", "0.9.2", ""),
        ("", "0.13.0", ""),
    ],
)
def test_the_flag_is_appended_where_jaxlib_knows_it(flags, jaxlib, result):
    assert with_ynnpack_off(flags, jaxlib_version=jaxlib) == result


def test_every_affected_jaxlib_gets_the_flag():
    for jaxlib in ("0.10.2", "0.11.0", "0.11.2", "0.12.0", "0.12.0.1"):
        assert _platform.miscompiles(jaxlib)
        assert with_ynnpack_off("", jaxlib_version=jaxlib) == YNNPACK_OFF


def test_flag_is_not_set_behind_a_running_jax(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    platform_flags.turn_ynnpack_off()
    assert "XLA_FLAGS" not in os.environ


def _run(code: str) -> str:
    """What `code` prints in a fresh process on CPU whose user has set no flags."""
    environ = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, cwd=ROOT, env=environ, text=True, timeout=120).strip()


@pytest.mark.long
def test_programs_set_the_flag_before_jax_is_imported():
    code = "import experiments, os, sys; print('jax' in sys.modules, os.environ['XLA_FLAGS'])"
    flags = with_ynnpack_off("", jaxlib_version=version("jaxlib"))
    assert _run(code) == f"False {flags}".strip()


@pytest.mark.parametrize(
    ("before", "mode", "libc", "after"),
    [
        ("", "always [madvise] never", ("glibc", "2.36"), LARGE_PAGES),
        ("a.b=1", "always [madvise] never", ("glibc", "2.36"), f"a.b=1:{LARGE_PAGES}"),
        ("glibc.malloc.hugetlb=0", "always [madvise] never", ("glibc", "2.36"), None),
        ("", "[always] madvise never", ("glibc", "2.36"), None),
        ("", "", ("glibc", "2.36"), None),
        ("", "always [madvise] never", ("glibc", "2.31"), None),
        ("", "always [madvise] never", ("", ""), None),
    ],
)
def test_large_pages_are_asked_for_where_they_help(before, mode, libc, after):
    expected = before if after is None else after
    assert with_large_pages(before, mode=mode, libc=libc) == expected


@pytest.mark.long
def test_a_program_starts_anew_once_with_its_words_and_its_process():
    environ = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-X", "utf8", "-m", "experiments.benchmark", "--list", "--case", "t"]
    done = subprocess.run(command, cwd=ROOT, env=environ, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["train-resnet20-masked", "train-resnet20-dense"]


@pytest.mark.long
def test_importing_the_library_does_not_start_jax():
    # Once the backend runs, its number of devices can no longer be set.
    code = (
        "import jax, ntksap_jax; jax.config.update('jax_num_cpu_devices', 3);"
        "print(jax.device_count('cpu'))"
    )
    assert _run(code) == "3"


@pytest.fixture
def bare_cpu(monkeypatch):
    """A process on an affected CPU backend, without the flag, that has not warned yet."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"jaxlib": "0.12.0.1"}[name])
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    _platform.warn_if_miscompiling.cache_clear()
    yield monkeypatch
    _platform.warn_if_miscompiling.cache_clear()


def test_library_warns_once_and_says_what_to_set(bare_cpu, recwarn):
    _platform.warn_if_miscompiling()
    _platform.warn_if_miscompiling()
    (warning,) = recwarn
    assert warning.category is RuntimeWarning
    assert "jax/issues/39103" in str(warning.message)
    assert f"XLA_FLAGS='{YNNPACK_OFF}'" in str(warning.message)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("importlib.metadata.version", lambda name: "0.10.1"),
        ("jax.default_backend", lambda: "gpu"),
        ("os.environ", {"XLA_FLAGS": f"--xla_dump_to=here {YNNPACK_OFF}"}),
    ],
    ids=["unaffected version", "accelerator", "flag set"],
)
def test_library_is_silent_where_numbers_are_right(bare_cpu, recwarn, target, value):
    bare_cpu.setattr(target, value)
    _platform.warn_if_miscompiling()
    assert not recwarn.list
