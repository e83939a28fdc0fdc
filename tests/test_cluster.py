"""A sweep on a Ray cluster: with a stand-in for Ray, and with Ray itself where it is installed."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.shell.errors import UserError
from experiments.storage import locking
from experiments.sweep import cluster, worker
from experiments.sweep.cells import Cell
from experiments.sweep.cluster import Needs

REPOSITORY = Path(__file__).parent.parent


def machine(**resources):
    return {"Alive": True, "Resources": {key: float(value) for key, value in resources.items()}}


def needs(cpus=1.0, gpus=0.0, tpus=0.0):
    return Needs(cpus_per_cell=cpus, gpus_per_cell=gpus, tpus_per_cell=tpus)


# -- A stand-in ----------------------------------------------------------------------------------


class RayError(Exception):
    pass


class Lost(RayError):
    """As Ray's errors do, it says a lot."""

    def __str__(self):
        return "The worker died.\nMore lines."


class FakeRay:
    """Ends the cells in the order in which it got them, each as `ends` says."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, machines, ends=()):
        self.machines, self.ends = machines, ends
        self.calls, self.cancelled = [], []

    def nodes(self):
        return self.machines

    def remote(self, function):
        assert function is worker.run_for_ray
        return SimpleNamespace(options=self.options)

    def options(self, **given):
        self.given = given
        return SimpleNamespace(remote=self.call)

    def call(self, *arguments):
        self.calls.append(arguments)
        return len(self.calls) - 1

    def wait(self, references, *, num_returns=1, timeout=None):
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        end = self.ends[reference]
        if isinstance(end, Exception):
            raise end
        return end

    def cancel(self, reference, force=False):
        self.cancelled.append((reference, force))


@pytest.fixture
def fake(monkeypatch):
    def install(machines, ends=()):
        ray = FakeRay(machines, ends)
        monkeypatch.setattr(cluster, "_ray", lambda: ray)
        return ray

    return install


CELLS = [Cell("experiments.cifar", ("demo",), Path(f"runs/{i}"), "accuracy") for i in range(4)]


def test_ray_gets_every_cell_with_what_it_takes_and_how_often_to_try(fake, monkeypatch):
    monkeypatch.setenv("JAX_X", "1")
    monkeypatch.setenv("SECRET", "1")
    ends = [(0, 5.0), (2, 1.0), worker.Stopped(), Lost()]
    ray = fake([], ends)
    outcomes = list(cluster.run(CELLS, needs=needs(2, 0.5, 4), retries=3))
    assert [outcome.cell for outcome in outcomes] == CELLS
    assert [(outcome.code, outcome.seconds) for outcome in outcomes] == [
        *((0, 5.0), (2, 1.0), (75, 0.0), (1, 0.0))
    ]
    assert outcomes[3].lost == "its process or machine was lost (Lost: The worker died.)"
    assert ray.given == {
        **{"num_cpus": 2, "num_gpus": 0.5, "resources": {"TPU": 4}},
        **{"max_retries": 3, "retry_exceptions": [worker.Stopped]},
    }
    environment, place, *command = ray.calls[1]
    assert command == ["experiments.cifar", ("demo",), "runs/1"]
    assert place == str(Path.cwd())
    assert environment["NPROC"] == "2"
    assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
    assert environment["JAX_X"] == "1"
    assert "SECRET" not in environment


def test_closing_has_what_runs_save_and_ends_what_does_not(fake, monkeypatch):
    ray = fake([], [(0, 1.0)])
    outcomes = cluster.run(CELLS[:3], needs=Needs(), retries=0)
    assert next(outcomes).cell == CELLS[0]
    monkeypatch.setattr(ray, "wait", lambda references, **options: (references[:1], references[1:]))
    outcomes.close()
    assert ray.cancelled == [(1, False), (2, False), (2, True)]


@pytest.mark.parametrize(
    ("taken", "number"),
    [
        (needs(), 12),
        (needs(3), 3),
        (needs(gpus=1), 2),
        (needs(gpus=0.1), 8),  # Of 20 tenths of a GPU, the cores suffice for 8.
    ],
)
def test_room_is_counted_machine_by_machine(fake, taken, number):
    gone = machine(CPU=8) | {"Alive": False}
    fake([machine(CPU=8, GPU=2), machine(CPU=4), machine(GPU=1), gone])
    assert cluster.num_at_once(taken) == number


def test_a_cell_that_no_machine_has_room_for_is_a_mistake(fake):
    fake([machine(CPU=2), machine(CPU=4, GPU=1)])
    with pytest.raises(UserError, match=r"takes, 4 CPU, 2 GPU; there are: 2 CPU; 4 CPU, 1 GPU"):
        cluster.num_at_once(needs(4, 2))


# -- On a machine --------------------------------------------------------------------------------

STAND_IN = """
import os, signal, sys, time

def main(arguments):
    assert os.environ["SET"] == "1"
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    if arguments:
        os.kill(os.getpid(), int(arguments[0]))
        sys.exit(75 if stopped else 1)
"""


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT])
def test_a_cell_that_is_told_to_end_saves_and_counts_as_stopped(tmp_path, monkeypatch, number):
    (tmp_path / "on_ray").mkdir()
    (tmp_path / "on_ray" / "program.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    arguments = [] if number is None else [str(int(number))]
    call = ({"SET": "1"}, str(tmp_path), "on_ray", arguments, "cell")
    if number is None:
        assert worker.run_for_ray(*call)[0] == 0
    else:
        with pytest.raises(worker.Stopped):
            worker.run_for_ray(*call)
    signal.signal(signal.SIGTERM, before[0])
    assert signal.getsignal(signal.SIGINT) is before[1]


def test_without_ray_a_sweep_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UserError, match="needs Ray, which is not installed: pip install -e"),
        cluster.connected("auto"),
    ):
        pass


# -- Ray itself ----------------------------------------------------------------------------------

GRID = """
preset = "demo"
runs_dir = "runs"
[set]
model = "mlp"
epochs = 2
warmup_epochs = 0
[grid]
criterion = ["magnitude", "random"]
density = [0.1]
seed = [0, 1, 2]
"""


@pytest.fixture
def address():
    """Of a cluster of one machine with room for two cells; it is ended afterwards."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install -e '.[cluster]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # Short: the names of sockets have 107 characters.
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"),
        *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"),
        "--object-store-memory=100000000",
    ]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        started = any("Ray runtime started" in line for line in process.stdout)
        assert started
        yield f"127.0.0.1:{port}"
        process.terminate()
        process.stdout.close()
    shutil.rmtree(folder, ignore_errors=True)


def environment():
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def holder(runs):
    """Waits for a cell to begin, and returns the process that is at it."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for lock in runs.glob("*/lock"):
            found = re.match(r"process (\d+) on", lock.read_text())
            if found and locking.is_held(lock.parent):
                return int(found[1])
        time.sleep(0.05)
    pytest.fail("no cell began")


def start_sweep(folder, address):
    command = [sys.executable, "-m", "experiments.sweep", "table.toml", "--cluster", address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(), **pipes)


@pytest.mark.long
def test_six_cells_survive_the_end_of_the_sweep_and_the_loss_of_a_worker(address, tmp_path):
    (tmp_path / "table.toml").write_text(GRID)
    again = f"python -m experiments.sweep table.toml --cluster {address}"

    for number, code, how in (
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 75, "preempted, all is saved"),
    ):
        with start_sweep(tmp_path, address) as process:
            holder(tmp_path / "runs")
            process.send_signal(number)
            _, error = process.communicate(timeout=200)
        assert process.returncode == code, error
        assert error == f"{how}; to go on where it stopped: {again}\n"

    with start_sweep(tmp_path, address) as process:
        os.kill(holder(tmp_path / "runs"), signal.SIGKILL)
        out, error = process.communicate(timeout=500)
    assert process.returncode == 0, error
    assert "cells to do" not in error
    assert re.search(r"^\d to do on the cluster, 2 at once; ", out, re.MULTILINE)
    assert out.splitlines()[-1] == "6 cells: 6 complete"
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 6
