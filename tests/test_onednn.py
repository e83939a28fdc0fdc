"""oneDNN's convolution: when it is used, what it answers to errors, and threads. Sums: test_ops."""

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ntksap_jax import ops
from ntksap_jax.ops import _onednn
from ntksap_jax.ops._geometry import Geometry
from ntksap_jax.ops._onednn import _build

needs_onednn = pytest.mark.skipif(
    not ops.cpu_convolution().startswith("oneDNN"), reason=ops.cpu_convolution()
)
GEOMETRY = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), 1, (8, 8), (3, 3))


def draw(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def program(x, w, **options):
    def squares(x, w):
        return jnp.sum(ops.conv2d(x, w, **options) ** 2)

    return jax.jit(jax.grad(squares, (0, 1))).lower(x, w).as_text()


# -- Whether it is used ----------------------------------------------------------------------------


@pytest.fixture
def load(monkeypatch):
    """Loads anew, without registering a handler twice."""
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)
    return _onednn._load.__wrapped__


def test_the_user_can_choose_xla(load, monkeypatch):
    monkeypatch.setenv("NTKSAP_CONV", "xla")
    assert load() == (False, "NTKSAP_CONV=xla")


def test_another_choice_is_an_error(load, monkeypatch):
    monkeypatch.setenv("NTKSAP_CONV", "mkl")
    with pytest.raises(ValueError, match="NTKSAP_CONV is 'mkl': set it to 'xla' or 'onednn'"):
        load()


def make_unavailable(monkeypatch, tmp_path, what):
    """Takes something away; returns what the reason has to say of it."""
    if what == "packages":
        monkeypatch.setattr(_build, "LIBRARY", "no-such-package")
        return "pip install 'ntksap_jax[cpu]'"
    if what == "platform":
        monkeypatch.setattr(_build.platform, "machine", lambda: "aarch64")
        return "x86-64"
    monkeypatch.setattr(_build, "version", lambda: "2023.2.0")
    monkeypatch.setattr(_build, "_folder", lambda *_: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "/no/such/compiler")
    if what == "compiler":
        return "/no/such/compiler"
    if what == "headers":
        monkeypatch.setenv("CXX", "false")
        return "false failed"
    if what == "folder":
        (tmp_path / "cache").touch()
        return "cannot be compiled into"
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(_build, "build", lambda: broken)
    return "broken.so"


@pytest.mark.parametrize(
    "what", ["packages", "platform", "compiler", "headers", "folder", "library"]
)
def test_what_is_missing_leaves_it_to_xla(load, monkeypatch, tmp_path, what):
    if _build.platform.system() != "Linux" or _build.platform.machine() != "x86_64":
        pytest.skip("there it is always the platform")
    reason = make_unavailable(monkeypatch, tmp_path, what)
    monkeypatch.setenv("NTKSAP_CONV", "")
    loaded, text = load()
    assert not loaded and reason in text
    monkeypatch.setenv("NTKSAP_CONV", "onednn")
    with pytest.warns(UserWarning, match=f"NTKSAP_CONV=onednn, but .*{re.escape(reason)}"):
        load()


@needs_onednn
def test_it_runs_where_it_is_faster():
    x, w = draw((16, 8, 8, 3)), draw((3, 3, 3, 4))
    assert program(x, w).count(f"@{_onednn.TARGET}(") == 3  # each of the sums, once


@needs_onednn
def test_the_compiler_merges_equal_sums():
    """As the pass for the batch's statistics and the one that is differentiated have them."""
    x, w = draw((16, 8, 8, 3)), draw((3, 3, 3, 4))
    twice = jax.jit(lambda x, w: ops.conv2d(x, w) - jnp.sin(ops.conv2d(x, w))).lower(x, w)
    assert twice.as_text().count(f"@{_onednn.TARGET}(") == 2
    assert twice.compile().as_text().count(f'"{_onednn.TARGET}"') == 1


@needs_onednn
def test_xla_keeps_small_images_few_images_and_other_types():
    w = draw((3, 3, 3, 4))
    assert _onednn.TARGET not in program(draw((16, 4, 4, 3)), w)
    assert _onednn.TARGET not in program(draw((1, 8, 8, 3)), w)
    half = jnp.bfloat16
    assert _onednn.TARGET not in program(draw((16, 8, 8, 3)).astype(half), w.astype(half))
    # oneDNN writes past its own memory here, which ends the process now and then.
    assert _onednn.TARGET not in program(
        draw((6, 16, 16, 4)), draw((1, 1, 4, 8)), strides=(2, 2), padding="VALID"
    )
    depthwise = program(draw((16, 2, 2, 8)), draw((3, 3, 1, 8)), groups=8)
    assert _onednn.TARGET in depthwise


@needs_onednn
def test_exported_programs_and_those_for_several_devices_have_none():
    x, w = draw((16, 8, 8, 3)), draw((3, 3, 3, 4))
    exported = jax.export.export(jax.jit(ops.conv2d))(x, w)
    assert _onednn.TARGET not in exported.mlir_module()
    if jax.device_count() == 1:
        pytest.skip("has one device")
    mesh = Mesh(jax.devices()[:2], ("data",))
    rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    assert _onednn.TARGET not in program(rows, w)


# -- What it computes ------------------------------------------------------------------------------


@needs_onednn
def test_an_error_is_an_exception():
    x, w = draw((2, 8, 8, 3)), draw((3, 3, 3, 4))

    def wrong(shape, w):
        return jax.jit(lambda x, w: _onednn.convolve(0, shape, x, w, GEOMETRY))(x, w)

    with pytest.raises(jax.errors.JaxRuntimeError, match="expected operands of 4 or 5 axes"):
        wrong((2, 8, 8), w)
    with pytest.raises(jax.errors.JaxRuntimeError, match="conv2d by oneDNN: could not create"):
        wrong((2, 7, 8, 4), w)
    np.testing.assert_allclose(wrong((2, 8, 8, 4), w), ops.conv2d(x, w), atol=1e-5)  # and goes on


@needs_onednn
def test_stacks_loops_and_threads_at_once():
    """Kernels of their own for each example of a scan, from four threads."""
    xs, ws = draw((3, 2, 5, 8, 8, 3)), draw((3, 2, 3, 3, 3, 8), seed=1)

    def gradient(x, w):
        return jax.grad(lambda w: jnp.sum(jnp.sin(ops.conv2d(x, w))))(w)

    looped = jax.jit(lambda xs, ws: jax.lax.map(lambda p: jax.vmap(gradient)(*p), (xs, ws)))
    assert _onednn.TARGET in looped.lower(xs, ws).as_text()
    expected = [[gradient(x, w) for x, w in zip(*p, strict=True)] for p in zip(xs, ws, strict=True)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: looped(xs, ws), range(20)):
            np.testing.assert_allclose(found, expected, atol=1e-4)


# -- How it is built -------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that notes when it starts and waits while the file `wait` is there."""
    script = tmp_path / "compiler"
    script.write_text(
        f"""#!/bin/sh
        echo $$ >> {tmp_path}/started
        while [ -e {tmp_path}/wait ]; do sleep 0.05; done
        for last; do :; done; echo made > "$last"
        """
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", f"{script} --with-options")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_build, "version", lambda: "2023.2.0")
    monkeypatch.setattr(_build, "_folder", lambda *_: tmp_path)
    monkeypatch.setattr(_build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(_build.platform, "machine", lambda: "x86_64")
    return tmp_path


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="is built on Linux")


def started(compiler):
    """The process numbers of the compilers that have started; waits for the first."""
    deadline = time.monotonic() + 60
    while not (file := compiler / "started").exists() or not file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return file.read_text().split()


@linux
def test_who_comes_at_once_builds_once(compiler):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        [target] = set(pool.map(lambda _: _build.build(), range(4)))
    assert target.read_text() == "made\n"
    assert len(started(compiler)) == 1


@linux
@pytest.mark.long
def test_a_build_that_was_killed_is_made_again(compiler):
    """Killed with SIGKILL: its lock is free, and no half of a library is taken for a whole one."""
    (compiler / "wait").touch()
    program = f"""
import pathlib
from ntksap_jax.ops._onednn import _build
_build.version = lambda: "2023.2.0"
_build._folder = lambda *_: pathlib.Path({str(compiler)!r})
_build.build()
"""
    with subprocess.Popen([sys.executable, "-c", program]) as builder:
        try:
            [process] = started(compiler)
        finally:
            builder.kill()
    os.kill(int(process), signal.SIGKILL)
    (compiler / "wait").unlink()
    target = _build.build()
    assert target.read_text() == "made\n"
    assert len(started(compiler)) == 2


@needs_onednn
@pytest.mark.long
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_were_forked_or_spawned_convolve(method):
    """A forked child has no threads of XLA's, which alone would wait for them for ever."""
    program = f"""
import multiprocessing, sys, warnings
import experiments
import jax.numpy as jnp
import numpy as np
from ntksap_jax import ops

def convolve():
    return np.asarray(ops.conv2d(jnp.ones((16, 8, 8, 3)), jnp.ones((3, 3, 3, 4)))).sum()

def child(expected):
    sys.exit(int(convolve() != expected))

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    expected = convolve()
    process = multiprocessing.get_context({method!r}).Process(target=child, args=(expected,))
    process.start()
    process.join(60)
    process.kill()
    process.join()
    sys.exit(process.exitcode)
"""
    # Of a file, which a spawned child reads again.
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        subprocess.run([sys.executable, file.name], check=True)
