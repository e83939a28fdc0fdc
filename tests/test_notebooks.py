"""The notebooks: in step with their scripts, and each run from a clean kernel at a small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

from experiments.benchmark import aot
from experiments.notebooks.aot import tagged_cells

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "notebooks"
NAMES = ("quickstart", "your_own_model", "inside_ntk_sap", "structured", "many_devices")
SHOWN_BYTES = 500_000
"""Of the outputs of a run: a reader who keeps them should not keep megabytes."""


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def execute(name, monkeypatch, folder, *, devices=None):
    """Runs a notebook in an empty folder, as if it had cloned the repository there.

    Returns what it printed and how many pictures it drew; an error in a cell raises.
    """
    (folder / "ntksap_jax-clone").symlink_to(ROOT)
    monkeypatch.setenv("NTKSAP_SMALL", "1")
    if devices:
        flag = f"--xla_force_host_platform_device_count={devices}"
        monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {flag}")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    shown = outputs(notebook)
    assert len(json.dumps(shown)) < SHOWN_BYTES
    text = "".join(output.text for output in shown if output.output_type == "stream")
    return text, sum("image/png" in output.get("data", {}) for output in shown)


# -- The files -------------------------------------------------------------------------------------


def test_the_list_is_complete():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_made_of_its_script_and_begins_as_all_do(name):
    script = jupytext.read(FOLDER / f"{name}.py")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    first, second = (
        [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in one.cells]
        for one in (notebook, script)
    )
    assert first == second, "run `make notebooks`"
    assert notebook.metadata["kernelspec"] == script.metadata["kernelspec"]
    assert not outputs(notebook)
    start = next(cell.source for cell in script.cells if cell.cell_type == "code")
    assert 'REPOSITORY = ""' in start and "git" in start
    assert "pip" not in start


# -- Runs ------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "lines", "pictures"),
    [
        (
            "quickstart",
            [
                "kept 8 of 152 weights",
                "pruned weights that are not 0 after training: 0",
                "equal: True",
            ],
            2,
        ),
        (
            "your_own_model",
            [f"{model}: 519 of 5192 weights kept" for model in ("linen", "nnx", "plain", "Equinox")]
            + ["pruned weights that moved: 0"],
            0,
        ),
        ("inside_ntk_sap", ["outputs: 6 inputs with 4 each"], 4),
        ("structured", ["equal: True"], 1),
    ],
)
def test_a_notebook_runs(name, lines, pictures, monkeypatch, tmp_path):
    text, drawn = execute(name, monkeypatch, tmp_path)
    assert all(line in text for line in lines)
    assert drawn == pictures


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 8])
def test_many_devices(monkeypatch, tmp_path, devices):
    text, _ = execute("many_devices", monkeypatch, tmp_path, devices=devices)
    assert f"{devices} device(s), 8 samples: at most {8 // devices} for each" in text
    assert f"each device has {128 // devices} of 128 examples" in text
    assert f"each device has (256, {256 // min(devices, 2)})" in text


# -- On a TPU --------------------------------------------------------------------------------------


def test_cells_are_taken_by_their_tag():
    source = (FOLDER / "quickstart.py").read_text()
    cells = tagged_cells(source, "tpu")
    assert "def train_step(" in cells and "nts.prune(" not in cells
    assert not tagged_cells(source, "gpu")


@pytest.mark.long
@pytest.mark.skipif(not aot.compiler_is_installed(), reason="libtpu is not installed")
def test_the_quickstarts_programs_compile_for_a_tpu():
    """A score costs about nine forward passes over its inputs, a training step three."""
    environment = {**os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "default"}
    command = [sys.executable, "-m", "experiments.notebooks.aot"]
    finished = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    costs = json.loads(finished.stdout)
    forward = costs["evaluation"]["flops"] / 360
    assert 6 < costs["score"]["flops"] / (100 * forward) < 12
    assert 2 < costs["training step"]["flops"] / (64 * forward) < 4.5
    assert all(cost["temporary_bytes"] < 16e9 for cost in costs.values())
