"""Several processes at one run, on loopback: real ones, two with two simulated devices each."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import kill_harness
import numpy as np
import pytest

from experiments import data
from experiments.cifar import config as config_lib
from experiments.cifar import program as cifar
from experiments.cifar.presets import PRESETS
from experiments.processes import roll_call
from experiments.shell import command_line
from experiments.shell.configuration import to_dict
from experiments.shell.errors import UserError
from experiments.storage import run_folder
from experiments.tpp import program as tpp

OPTIONS = [
    *("demo", "--model", "mlp", "--density", "0.1", "--rounds", "3", "--num-samples", "3"),
    *("--noise-batch-size", "20", "--epochs", "3", "--compare"),
]
NAME = kill_harness.NAME
DEVICES_EACH = 2
PATIENCE = 600.0
"""Seconds for processes on a busy machine; those that hang are killed then, and the test fails."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def two_processes(folder, *arguments, others=(), through="flags", program="experiments.cifar"):
    """Starts two processes of a run, and kills them in the end.

    Args:
        folder: where they run; each has a folder of its own and shares none with the other.
        arguments: of both.
        others: more of them, for process 1 only.
        through: how they find each other.
        program: what they run.
    """
    port, processes = free_port(), []
    try:
        for number, more in enumerate([(), others]):
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(DEVICES_EACH),
                "PYTHONPATH": str(kill_harness.ROOT),
            }
            flags = ["--distributed"]
            if through == "slurm":
                environment |= {
                    "SLURM_JOB_ID": "7",
                    "SLURM_STEP_NODELIST": "localhost",
                    "SLURM_NTASKS": "2",
                    "SLURM_PROCID": str(number),
                    "SLURM_LOCALID": str(number),
                    "JAX_COORDINATOR_PORT": str(port),
                }
            else:
                flags += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
                flags += ["--process-id", str(number)]
            own = folder / f"process-{number}"
            own.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", program, *arguments, *more, *flags]
            with (folder / f"output-{number}.txt").open("a") as output:
                processes.append(
                    subprocess.Popen(
                        command, cwd=own, env=environment, stdout=output, stderr=output
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def codes(processes):
    """Waits for their end, which must come in time; returns the exit codes."""
    deadline = time.monotonic() + PATIENCE
    return [process.wait(max(1.0, deadline - time.monotonic())) for process in processes]


def output(folder, number):
    return (folder / f"output-{number}.txt").read_text()


def written(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of two processes that nobody disturbed, as Slurm would start them."""
    folder = tmp_path_factory.mktemp("together")
    with two_processes(folder, *OPTIONS, through="slurm") as processes:
        assert codes(processes) == [0, 0], output(folder, 0) + output(folder, 1)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The runs of this process alone, on as many devices."""
    runs = tmp_path_factory.mktemp("alone")
    cifar.main([*OPTIONS, "--runs-dir", str(runs)])
    return runs


@pytest.mark.long
def test_two_processes_come_to_the_result_of_one(together, alone):
    kill_harness.assert_near(together / "process-0" / "runs", alone)


@pytest.mark.long
def test_the_leader_alone_writes(together):
    assert written(together / "process-1") == []
    assert output(together, 1).replace("\n", "").count("Plan") == 0
    [session] = json.loads(
        (together / "process-0" / "runs" / NAME / "environment.json").read_text()
    )
    assert len(session["devices"]) == 2 * DEVICES_EACH


@pytest.mark.long
def test_preempted_in_one_process_all_save_and_the_run_goes_on(together, tmp_path):
    folder = tmp_path
    runs = folder / "process-0" / "runs"
    with two_processes(folder, *OPTIONS) as processes:
        kill_harness.wait_for(processes, runs / NAME / "metrics.csv")
        processes[1].send_signal(signal.SIGTERM)  # Of the one that does not lead.
        assert codes(processes) == [75, 75], output(folder, 0) + output(folder, 1)
    assert "preempted, all is saved; to go on" in output(folder, 0)
    assert not (runs / NAME / "summary.json").exists()
    with two_processes(folder, *OPTIONS, "--resume") as processes:
        assert codes(processes) == [0, 0], output(folder, 0) + output(folder, 1)
    assert kill_harness.result(runs) == kill_harness.result(together / "process-0" / "runs")
    assert written(folder / "process-1") == []


TPP = [
    *("demo", "--model", "mlp", "--width", "10", "--pretrain-epochs", "2", "--increment", "0.1"),
    *("--pretrain-drop-epochs", "1", "--update-interval", "1", "--stabilise-steps", "23"),
    *("--zero-out-interval", "3", "--finetune-epochs", "2", "--latency-repeats", "3"),
    *("--jsv-images", "4", "--compare"),
]


@pytest.mark.long
def test_filters_are_pruned_by_two_processes_as_by_one(tmp_path):
    with two_processes(tmp_path, *TPP, program="experiments.tpp") as processes:
        assert codes(processes) == [0, 0], output(tmp_path, 0) + output(tmp_path, 1)
    assert written(tmp_path / "process-1") == []
    tpp.main([*TPP, "--runs-dir", str(tmp_path / "alone")])
    [ours] = (tmp_path / "process-0" / "runs" / "tpp").glob("digits-*")
    theirs = tmp_path / "alone" / ours.name
    assert (ours / "keep.json").read_bytes() == (theirs / "keep.json").read_bytes()
    for name in ("regularise.csv", "metrics.csv"):
        tables = [run_folder.read_table(folder / name) for folder in (ours, theirs)]
        for row, other in zip(*tables, strict=True):
            del row["seconds"], other["seconds"]
            assert row == pytest.approx(other, rel=1e-3, abs=1e-5)


# -- What goes wrong -----------------------------------------------------------------------------


def hold(*args, seconds=60.0):
    """Holds a roll call; returns its error, if any."""
    try:
        roll_call.hold(*args, seconds=seconds)
    except UserError as error:
        return str(error)
    return None


def hold_all(*calls, seconds=60.0):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(hold, *c, seconds=seconds) for c in calls]]


def test_all_are_there():
    address = f"127.0.0.1:{free_port()}"
    assert hold_all(*[(address, number, 4) for number in (3, 1, 0, 2)]) == [None] * 4


def test_who_did_not_come_is_named():
    address = f"localhost:{free_port()}"
    found = hold_all((address, 0, 5), (address, 3, 5), seconds=2.0)
    assert found[0] == found[1]
    assert "--distributed: processes 1, 2 and 4 of 5 did not come within 2 s. " in found[0]


def test_nobody_waits_for_a_process_that_went_away():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hold, f"127.0.0.1:{port}", 0, 3, seconds=60.0)
        for line in (b"GET / HTTP/1.1\n", b"ntksap_jax 1 of 3\n"):
            connect(port, line).close()
        assert hold_all(*[(f"127.0.0.1:{port}", number, 3) for number in (1, 2)]) == [None] * 2
        assert waiting.result() is None


def connect(port, line):
    """Says a line to process 0 as soon as it listens."""
    while True:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(line)
            return connection


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([(1, 3), (1, 3)], "two processes say that they are process 1"),
        ([(1, 4)], "process 1 of 4, but process 0 was told that they are 3"),
    ],
)
def test_processes_that_contradict_each_other_end_at_once(others, message):
    address = f"127.0.0.1:{free_port()}"
    errors = hold_all((address, 0, 3), *[(address, *other) for other in others])
    assert message in errors[0]
    assert errors == [errors[0]] * len(errors)


def test_process_0_is_not_there_or_cannot_listen():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at port {port}: Address already in use" in hold(
            f"127.0.0.1:{port}", 0, 2, seconds=0.5
        )
    error = hold(f"127.0.0.1:{port}", 1, 2, seconds=0.5)
    assert f"waited 0.5 s for process 0 at 127.0.0.1:{port}: Connection refused." in error


def test_alone_in_the_world(capfd, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit) as stop:
        cifar.main([*OPTIONS, "--distributed", "--num-processes", "2"])
    assert stop.value.code == 2
    assert "error: --distributed: this is no job of Slurm, Open MPI" in capfd.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cifar.main(
            [*OPTIONS, "--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
            + ["--num-processes", "2", "--process-id", "0", "--start-seconds", "1"]
        )
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith("error: --distributed: process 1 of 2 did not come within 1 s. Look")
    assert error.count("\n") == 1


@pytest.mark.long
def test_an_error_in_one_process_ends_the_others(tmp_path):
    with two_processes(tmp_path, *OPTIONS, others=["--num-samples", "4"]) as processes:
        assert codes(processes) == [1, 1]
    assert "error: process 1 of 2 on " in output(tmp_path, 1)
    assert " ends because process 1 on " in output(tmp_path, 0)
    for number in (0, 1):
        assert "another --num-samples than process 0: 4, not 3" in output(tmp_path, number)


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_does_not_leave_the_other_waiting(tmp_path, number):
    with two_processes(tmp_path, *OPTIONS, "--epochs", "1000") as processes:
        kill_harness.wait_for(processes, tmp_path / "process-0" / "runs" / NAME / "metrics.csv")
        processes[number].kill()
        ended = codes(processes)
    # JAX aborts who waits for a dead process, unless the broken connection is noticed first.
    assert ended[number] == -signal.SIGKILL and ended[1 - number] in (1, -signal.SIGABRT)


# -- Parts of batches ----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 3])
def test_parts_are_those_of_the_whole_batches(start):
    dataset = data.load("digits")
    key = jax.random.key(0)

    def batches(part):
        return [
            *dataset.train_batches(key, 2, 64, start=start, part=part),
            *dataset.test_batches(100, part=part),
        ]

    parts = zip(*[batches((index, 4)) for index in range(4)], strict=True)
    for whole, split in zip(batches((0, 1)), parts, strict=True):
        for array, *rows in zip(whole, *split, strict=True):
            np.testing.assert_array_equal(array, np.concatenate(rows))


def test_what_processes_are_there_may_differ_when_a_run_is_resumed():
    _, config = PRESETS["demo"]
    other = command_line.parse(["demo", "--distributed", "--num-processes", "3"], PRESETS, prog="")
    plain = [to_dict(each) for each in (config, other)]
    assert plain[0] != plain[1] and run_folder.differences(*plain) == []
    assert config_lib.from_dict(plain[1]) == other
    del plain[0]["processes"]  # As older versions wrote it.
    assert config_lib.from_dict(plain[0]) == config
