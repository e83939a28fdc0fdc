"""Starts the real program, kills it at random moments, starts it again, and compares the results.

A moment is a random time after a random change in the run folder, so that searches, trainings and
the writing of files are all hit, however fast the machine is.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from experiments.storage import run_folder

ROOT = Path(__file__).parents[1]
NAME = "digits-mlp-ntk_sap-0.1-seed0"
COMMAND = [
    *(sys.executable, "-m", "experiments.cifar", "demo", "--model", "mlp", "--density", "0.1"),
    *("--rounds", "4", "--num-samples", "1", "--noise-batch-size", "20", "--epochs", "4"),
    # A checkpoint every few steps.
    *("--compare", "--save-minutes", "0.001", "--resume", "--runs-dir"),
]
PATIENCE = 600.0
"""Seconds for one start on a busy machine; a program that hangs is killed then, and the test fails.
"""
PREEMPTED = 75


def start(runs, devices=1):
    """Starts the program, whose output is kept beside its runs."""
    runs.mkdir(exist_ok=True)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    with (runs / "output.txt").open("a") as output:
        return subprocess.Popen(
            [*COMMAND, runs], cwd=ROOT, env=environment, stdout=output, stderr=output
        )


def finish(process, runs, expected=0):
    """Waits for the end of a program that nobody kills."""
    try:
        code = process.wait(PATIENCE)
    finally:
        process.kill()
    assert code == expected, (runs / "output.txt").read_text()


def rows(table):
    """Reads a table, but for its seconds."""
    found = run_folder.read_table(table)
    assert found, table
    return [{**row, "seconds": None} for row in found]


def result(runs):
    """Returns all that must not depend on interruptions: every number but the seconds."""
    folder = runs / NAME
    summary = json.loads((folder / "summary.json").read_text())
    seconds = ("search_seconds", "training_seconds")
    return {
        "summary": {name: value for name, value in summary.items() if name not in seconds},
        "mask": (folder / "mask.sha256").read_text(),
        "rounds": rows(folder / "search.csv"),
        "epochs": rows(folder / "metrics.csv"),
    }


def assert_near(runs, others):
    """Asserts that results are the same but for rounding."""
    masks = []
    for each in (runs, others):
        mask = safetensors.numpy.load_file(each / NAME / "mask.safetensors")
        masks.append(np.concatenate([mask[name].ravel() for name in sorted(mask)]))
    assert masks[0].sum() == masks[1].sum()
    assert (masks[0] == masks[1]).mean() >= 0.9999
    ours, theirs = result(runs), result(others)
    for table in ("rounds", "epochs"):
        for row, other in zip(ours[table], theirs[table], strict=True):
            assert row.keys() == other.keys()
            for column in row.keys() - {"sha256", "seconds"}:
                assert row[column] == pytest.approx(other[column], rel=1e-3), column


def wait_for(processes, path):
    """Waits for a file that running programs write."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        assert all(process.poll() is None for process in processes), "a process ended"
        time.sleep(0.01)


def _names(folder):
    """Returns what changes whenever something is written: the names in a folder and its age."""
    found = []
    for path in (folder, folder / "search", folder / "checkpoints"):
        try:
            found.append((path.stat().st_mtime_ns, *sorted(os.listdir(path))))
        except FileNotFoundError:
            continue
    return found


def _wait_for_changes(process, folder, number):
    """Returns whether so many changes were seen before the program ended."""
    last, deadline = _names(folder), time.monotonic() + PATIENCE
    while number > 0 and process.poll() is None:
        assert time.monotonic() < deadline, "the program hangs"
        time.sleep(0.001)
        number -= last != (last := _names(folder))
    return process.poll() is None


def kill_once(rng, runs, signal_number):
    """Starts the program, kills it at a random moment; says whether it had not ended before."""
    # The search changes the folder a few times only, the training often.
    number = rng.choice([rng.randrange(1, 10), rng.randrange(1, 60)])
    process = start(runs)
    try:
        if _wait_for_changes(process, runs / NAME, number):
            time.sleep(rng.choice([0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.5)]))
        process.send_signal(signal_number)
        code = process.wait(PATIENCE)
    finally:
        process.kill()
    if code == 0:
        return False
    # Before the run begins there is nothing to save, and SIGTERM does what it does to any program.
    began = (runs / NAME / "config.json").exists()
    expected = {signal.SIGKILL: (-9,), signal.SIGTERM: (PREEMPTED,) if began else (PREEMPTED, -15)}
    assert code in expected[signal_number], (runs / "output.txt").read_text()
    return True


def kill_until(rng, folder, signals, undisturbed):
    """Kills runs once for each signal, lets each end, and compares it.

    Args:
        rng: decides the moments.
        folder: gets a folder of runs for each run that came to its end.
        signals: what to kill with, one after the other.
        undisturbed: the `result` of a run that was left alone.
    """
    pending = list(signals)
    while pending:
        runs = folder / str(len(pending))
        # A few kills a run, so that its end is reached and compared often.
        for _ in range(rng.randrange(2, 6)):
            if not pending or not kill_once(rng, runs, pending[0]):
                break
            pending.pop(0)
        finish(start(runs), runs)
        assert result(runs) == undisturbed, runs
