"""A sweep on a Ray cluster: with a stand-in for Ray, and with Ray itself where it is installed."""

import contextlib
import importlib.util
import os
import pickle
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

from experiments.processes import workers
from experiments.shell.errors import UserError
from experiments.storage import locking
from experiments.sweep import cluster
from experiments.sweep import program as sweep
from experiments.sweep.cluster import Needs

REPOSITORY = Path(__file__).parent.parent


def machine(name, **resources):
    return {
        "Alive": True,
        "NodeID": name,
        "NodeManagerHostname": name,
        "NodeManagerAddress": "10.0.0.1",
        "Resources": {key: float(value) for key, value in resources.items()},
    }


# -- A stand-in ----------------------------------------------------------------------------------


class RayError(Exception):
    pass


class Lost(RayError):
    """As Ray's errors do, it says a lot."""

    def __str__(self):
        return "The worker died.\nMore lines."


class FakeRay:
    """Carries out a call when it is waited for, in this process; counts what runs at once."""

    exceptions = SimpleNamespace(RayError=RayError, GetTimeoutError=TimeoutError)
    cloudpickle = pickle
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(
            NodeAffinitySchedulingStrategy=lambda node, *, soft: node
        )
    )

    def __init__(self, machines, losses=()):
        self.machines, self.losses = machines, list(losses)
        self.results, self.options_given, self.cancelled, self.most = {}, [], [], 0

    def nodes(self):
        return self.machines

    def remote(self, function):
        def options(**given):
            self.options_given.append(given)

            def call(*arguments):
                reference = len(self.results)
                self.results[reference] = (function, arguments)
                return reference

            return SimpleNamespace(remote=call)

        return SimpleNamespace(options=options)

    def wait(self, references, *, num_returns=1, timeout):
        self.most = max(self.most, len(references))
        return references[:num_returns], references[num_returns:]

    def get(self, reference, timeout=None):
        function, arguments = self.results[reference]
        if reference in self.losses:
            raise Lost
        return function(*arguments)

    def cancel(self, reference, force=False):
        self.cancelled.append((reference, force))


@pytest.fixture
def fake(monkeypatch):
    def install(machines, losses=()):
        ray = FakeRay(machines, losses)
        monkeypatch.setattr(cluster, "_ray", lambda: ray)
        return ray

    # Tasks change these, as they may in a process of their own.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return install


def double(task):
    return task, 2 * int(task[1:])


def run(tasks, **options):
    said = []
    outcomes = cluster.run(
        tasks,
        double,
        needs=Needs(),
        group=lambda task: task[0],
        on_lost=lambda task, why: said.append(f"{task}: {why}"),
        **options,
    )
    with contextlib.closing(outcomes):
        return list(outcomes), said


def test_every_task_is_done_once_group_by_group_as_many_as_there_is_room_for(fake):
    ray = fake(
        [machine("a", CPU=2), machine("b", CPU=1), machine("gone", CPU=8) | {"Alive": False}]
    )
    tasks, started = [f"{group}{number}" for number in range(4) for group in "xy"], []
    outcomes, said = run(tasks, retries=0, on_start=started.append)
    assert started == ["x0", "x1", "x2", "x3", "y0", "y1", "y2", "y3"]
    assert sorted(outcome.task for outcome in outcomes) == sorted(tasks)
    assert [outcome.result for outcome in outcomes] == [double(each.task) for each in outcomes]
    assert not any(outcome.lost or outcome.preempted for outcome in outcomes)
    assert ray.most == 3
    assert said == []


def test_a_task_whose_process_is_lost_is_tried_again_so_many_times(fake):
    fake([machine("a", CPU=1)], losses=[1, 2, 4, 5, 6])
    outcomes, said = run(["x0", "x1", "x2", "x3"], retries=2)
    assert [(each.task, bool(each.lost)) for each in outcomes] == [
        ("x0", False),
        ("x1", False),
        ("x2", True),
        ("x3", False),
    ]
    why = "its process or machine was lost (Lost: The worker died.)"
    assert outcomes[2].lost == f"{why}, 3 times"
    assert outcomes[2].result is None
    assert said == [f"x1: {why}", f"x1: {why}, 2 times", f"x2: {why}", f"x2: {why}, 2 times"]


def test_closing_has_what_runs_save_and_ends_what_does_not(fake, monkeypatch):
    ray = fake([machine("a", CPU=3)])
    outcomes = cluster.run(["x0", "x1", "x2"], double, needs=Needs(), retries=0)
    assert next(outcomes).task == "x0"
    monkeypatch.setattr(ray, "wait", lambda references, **options: (references[:1], references[1:]))
    outcomes.close()
    assert ray.cancelled == [(1, False), (2, False), (2, True)]


def test_a_task_takes_the_resources_that_were_asked_for(fake):
    ray = fake([machine("a", CPU=8, GPU=1, TPU=4)])
    list(cluster.run(["x1"], double, needs=Needs(2, 0.5, 4), retries=0))
    assert ray.options_given == [
        {"num_cpus": 2, "num_gpus": 0.5, "resources": {"TPU": 4}, "max_retries": 0}
    ]
    assert os.environ["NPROC"] == "2"
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"


@pytest.mark.parametrize(
    ("needs", "number"),
    [
        (Needs(), 12),
        (Needs(3), 3),
        (Needs(1, gpus=1), 2),
        (Needs(1, gpus=0.1), 8),  # Of 20 tenths of a GPU, the cores suffice for 8.
        (Needs(1, tpus=1), 0),
    ],
)
def test_room_is_counted_machine_by_machine(needs, number):
    machines = [machine("a", CPU=8, GPU=2), machine("b", CPU=4), machine("head", GPU=1)]
    assert cluster.num_at_once(needs, machines) == number


# -- In a worker ---------------------------------------------------------------------------------


def save_and_end(number):
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        time.sleep(5)
    pytest.fail("nothing stopped it")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_task_that_is_told_to_end_may_save(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    call = pickle.dumps((save_and_end, number))
    assert cluster._carry_out(str(tmp_path), {}, call) == (None, True)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_preempted_task_is_tried_again_and_in_the_end_left_interrupted(fake, monkeypatch):
    fake([machine("a", CPU=1)])
    monkeypatch.setattr(cluster, "_carry_out", lambda *arguments: (None, True))
    [outcome], said = run(["x1"], retries=1)
    assert outcome.preempted
    assert said == ["x1: its process was preempted"]


# -- Mistakes ------------------------------------------------------------------------------------


def test_each_machine_must_see_the_folder(fake, tmp_path, monkeypatch):
    ray = fake([machine("a", CPU=2), machine("b", CPU=2), machine("head", GPU=1)])
    cluster.check(tmp_path, Needs())
    assert [given["scheduling_strategy"] for given in ray.options_given] == ["a", "b"]
    assert list(tmp_path.iterdir()) == []

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    answer = cluster._answer

    def on_b_elsewhere(folder, path):
        if len(list(tmp_path.glob(".sweep-*"))) == 2:  # The token, and the answer of a.
            path = elsewhere / Path(path).name
        return answer(folder, str(path))

    monkeypatch.setattr(cluster, "_answer", on_b_elsewhere)
    with pytest.raises(UserError, match=r"machine b \(10.0.0.1\) with 2 CPU cannot .*No such file"):
        cluster.check(tmp_path, Needs())
    assert list(tmp_path.iterdir()) == [elsewhere]


def test_a_cell_that_no_machine_has_room_for_is_a_mistake(fake, tmp_path):
    fake([machine("a", CPU=2), machine("b", CPU=4, GPU=1)])
    with pytest.raises(UserError, match=r"takes, 4 CPU, 2 GPU; .*b \(10.0.0.1\) with 4 CPU, 1 GPU"):
        cluster.check(tmp_path, Needs(4, 2))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "2"], "--workers: with --cluster, as many cells run at once as"),
        (["--cpus-per-cell", "0"], "--cpus-per-cell: expected a whole number or a fraction of one"),
        (["--gpus-per-cell", "1.5"], "--gpus-per-cell: expected a whole number or a fraction"),
        (["--tpus-per-cell", "nan"], "--tpus-per-cell: expected a whole number or a fraction"),
        (["--retries", "-1"], "--retries: expected an integer of at least 0, got -1"),
        ([], "--cluster needs Ray, which is not installed: pip install 'ntksap_jax[cluster]'"),
    ],
)
def test_a_mistake_is_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # As if it were not installed.
    options = ["demo", "--seed", "0", "--runs-dir", str(tmp_path), "--cluster", "auto", *flags]
    with pytest.raises(SystemExit) as stop:
        sweep.main(options)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_without_a_cluster_nothing_of_ray_is_imported():
    assert "ray" not in sys.modules
    assert workers.Outcome is cluster.Outcome


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
        pytest.skip("Ray is not installed: pip install 'ntksap_jax[cluster]'")
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
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


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
    assert len(re.findall(r"^tried again: digits-mlp-.*: its process or machine", out, re.M)) == 1
    assert out.splitlines()[-1] == "6 cells: 6 complete"
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 6
    assert not list(tmp_path.glob("runs/.sweep-*"))
