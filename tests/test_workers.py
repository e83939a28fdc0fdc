"""Workers of a sweep: every cell once by its command, whatever happens to the workers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.sweep import local, worker
from experiments.sweep.cells import Cell

STAND_IN = """
import os, signal, sys, time
from pathlib import Path

def main(arguments):
    kind, *rest = arguments
    print("does", kind, os.getpid(), *sorted(os.sched_getaffinity(0)), flush=True)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exits":
        os._exit(3)
    if kind == "mistake":
        print("error: a mistake", file=sys.stderr)
        sys.exit(2)
    if kind == "bug":
        1 / 0
    if kind == "saves":
        saved = []
        signal.signal(signal.SIGTERM, lambda *_: saved.append(True))
        Path("began").touch()
        while not saved:
            time.sleep(0.01)
        Path("saved").touch()
        sys.exit(75)
    if kind == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    """Stands for a program that trains."""
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "program.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def cell(tmp_path, number, kind):
    return Cell("stand_in", (kind,), tmp_path / f"cell{number}", "accuracy")


def run(cells, **options):
    with contextlib.closing(local.run(cells, **options)) as outcomes:
        return {ended.cell: ended for ended in outcomes}


def logged(cell):
    command, *lines = (cell.folder / "log.txt").read_text().splitlines()
    assert command == f"$ python -m stand_in {cell.arguments[0]}"
    return lines


def is_alive(pid):
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("kind", "code", "last"),
    [
        ("works", 0, "does works"),
        ("mistake", 2, "error: a mistake"),
        ("bug", 1, "error: ZeroDivision"),
    ],
)
def test_a_cell_is_its_command_with_its_output_in_the_log(
    tmp_path, kind, code, last, capfd, monkeypatch
):
    made = cell(tmp_path, 0, kind)
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", os.fdopen(1, "w", closefd=False))
            patched.setattr(sys, "stderr", os.fdopen(2, "w", closefd=False))
            assert worker.run_cell("stand_in", [kind], made.folder) == code
    os.write(1, b"goes where it went before\n")
    log = (made.folder / "log.txt").read_text()
    assert log.count(f"$ python -m stand_in {kind}\n") == 2
    assert log.splitlines()[-1].startswith(last)
    assert capfd.readouterr().out == "goes where it went before\n"


@pytest.mark.long
def test_every_cell_is_done_once_each_worker_with_its_cores(tmp_path):
    cells = [cell(tmp_path, number, "works") for number in range(6)]
    ended = run(cells, num_workers=2)
    assert set(ended) == set(cells)
    assert all(each.code == 0 and each.seconds >= 0 for each in ended.values())
    words = [logged(each)[0].split() for each in cells]
    pids = {line[2] for line in words}
    assert len(pids) == 2
    shares = local.share_cores(local.available_cores(), 2)
    assert {tuple(map(int, line[3:])) for line in words} <= set(shares)
    assert not any(is_alive(int(pid)) for pid in pids)


@pytest.mark.long
def test_a_worker_that_is_lost_costs_only_its_cell(tmp_path):
    kinds = ["works", "killed", "works", "exits", "mistake", "bug", "works"]
    cells = [cell(tmp_path, number, kind) for number, kind in enumerate(kinds)]
    ended = run(cells, num_workers=1)
    assert [each.code for each in ended.values()] == [0, -signal.SIGKILL, 0, 3, 2, 1, 0]
    assert list(ended) == cells


@pytest.mark.long
def test_closing_has_cells_save_and_kills_what_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "STOP_SECONDS", 2.0)
    cells = [
        cell(tmp_path, number, kind) for number, kind in enumerate(["saves", "hangs", "works"])
    ]
    outcomes = local.run(cells, num_workers=3)
    assert next(outcomes).cell == cells[2]
    wait_for(tmp_path / "began")
    wait_for(cells[1].folder / "log.txt")
    pids = [int(logged(each)[0].split()[2]) for each in cells]
    outcomes.close()
    assert (tmp_path / "saved").exists()
    assert not any(map(is_alive, pids))


@pytest.mark.long
def test_a_worker_whose_sweep_is_killed_has_its_cell_save_and_ends(tmp_path):
    folder = str(tmp_path / "cell")
    command = [sys.executable, "-m", "experiments.sweep.worker"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        process.stdin.write(json.dumps(["stand_in", ["saves"], folder]) + "\n")
        process.stdin.flush()
        wait_for(tmp_path / "began")
        process.stdin.close()  # As when the process at the other end is gone.
        assert process.stdout.read() == "75\n"
        process.wait(10)
    assert (tmp_path / "saved").exists()


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("asked", [None, "/x"])
def test_what_workers_compile_is_kept_where_the_user_says_or_in_the_users_cache(monkeypatch, asked):
    for name in ("JAX_COMPILATION_CACHE_DIR", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(local.pooch, "os_cache", lambda project: "/cache")
    if asked:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", asked)
    variables = local._environment(2)
    assert variables["JAX_COMPILATION_CACHE_DIR"] == (asked or "/cache/compiled")
    assert variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in local._environment(1)


def test_cores_are_shared_out():
    assert local.share_cores(range(4), 1) == [(0, 1, 2, 3)]
    assert local.share_cores(range(5), 3) == [(0, 1), (2, 3), (4,)]
    assert local.share_cores(range(2), 5) == [(0,), (1,), (0,), (1,), (0,)]
