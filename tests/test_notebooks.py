"""The notebooks: pairs in step, and every one run from a clean kernel at a small size."""

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

FOLDER = Path(__file__).parents[1] / "experiments" / "notebooks"
NAMES = ("quickstart", "your_own_model", "inside_ntk_sap", "structured", "many_devices")
STORED_BYTES = 4_000
"""Of the outputs in a notebook that is committed: none, or hardly any."""
SHOWN_BYTES = 500_000
"""Of the outputs of a run: a reader who keeps them should not keep megabytes."""


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    """The script and the notebook made of it."""
    script = jupytext.read(FOLDER / f"{request.param}.py")
    return script, nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def cells(notebook):
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def output_bytes(notebook):
    return sum(len(json.dumps(cell.get("outputs", []))) for cell in notebook.cells)


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return ["image/png" in output.get("data", {}) for output in outputs].count(True)


def execute(name, monkeypatch, folder, *, devices=None):
    """Runs a notebook from a clean kernel in an empty folder; an error in a cell raises."""
    monkeypatch.setenv("NTKSAP_SMALL", "1")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    if devices:
        flag = f"--xla_force_host_platform_device_count={devices}"
        monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {flag}")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert output_bytes(notebook) < SHOWN_BYTES
    return notebook


# -- The files -------------------------------------------------------------------------------------


def test_the_list_is_complete():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


def test_the_notebook_is_made_of_the_script(pair):
    script, notebook = pair
    assert cells(notebook) == cells(script), "run `make notebooks`"
    assert notebook.metadata["kernelspec"] == script.metadata["kernelspec"]


def test_next_to_nothing_is_stored(pair):
    assert output_bytes(pair[1]) < STORED_BYTES


def test_all_install_in_the_same_way(pair):
    """One cell, copied: it asks for the repository, and installs nothing but the library."""
    first = next(cell.source for cell in pair[0].cells if cell.cell_type == "code")
    quickstart = jupytext.read(FOLDER / "quickstart.py")
    assert first == next(cell.source for cell in quickstart.cells if cell.cell_type == "code")
    assert "--no-deps" in first


# -- Runs ------------------------------------------------------------------------------------------


def test_quickstart(monkeypatch, tmp_path):
    notebook = execute("quickstart", monkeypatch, tmp_path)
    text = printed(notebook)
    assert "kept 8 of 152 weights" in text
    assert "pruned weights that are not 0 after training: 0" in text
    assert text.rstrip().endswith("equal: True")
    assert pictures(notebook) == 2


@pytest.mark.long
def test_your_own_model(monkeypatch, tmp_path):
    notebook = execute("your_own_model", monkeypatch, tmp_path)
    text = printed(notebook)
    for name in ("linen", "nnx", "plain", "Equinox"):
        assert f"\n{name}: 519 of 5192 weights kept" in text
    assert "pruned weights that moved: 0" in text
    assert pictures(notebook) == 1


@pytest.mark.long
def test_inside_ntk_sap(monkeypatch, tmp_path):
    notebook = execute("inside_ntk_sap", monkeypatch, tmp_path)
    assert pictures(notebook) == 6


@pytest.mark.long
def test_structured(monkeypatch, tmp_path):
    notebook = execute("structured", monkeypatch, tmp_path)
    assert printed(notebook).rstrip().endswith("equal: True")
    assert pictures(notebook) == 2


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 8])
def test_many_devices(monkeypatch, tmp_path, devices):
    notebook = execute("many_devices", monkeypatch, tmp_path, devices=devices)
    text = printed(notebook)
    assert f"{devices} device(s), 8 samples: at most {8 // devices} for each" in text
    assert f"each device has {128 // devices} of 128 examples" in text
    assert f"each device has (256, {256 // min(devices, 2)})" in text
    assert pictures(notebook) == 2


# -- On a TPU --------------------------------------------------------------------------------------


def test_cells_are_found_by_their_tag():
    source = (FOLDER / "quickstart.py").read_text()
    found = tagged_cells(source, "tpu")
    assert "def train_step(" in found
    assert "nts.prune(" not in found
    assert not tagged_cells(source, "gpu")


@pytest.mark.long
@pytest.mark.skipif(not aot.compiler_is_installed(), reason="libtpu is not installed")
def test_the_quickstarts_programs_compile_for_a_tpu():
    """A score costs about nine forward passes over its inputs, a training step three."""
    environment = {**os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "default"}
    command = [sys.executable, "-m", "experiments.notebooks.aot"]
    finished = subprocess.run(
        command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    costs = json.loads(finished.stdout)
    forward = costs["evaluation"]["flops"] / 360
    assert 6 < costs["score"]["flops"] / (100 * forward) < 12
    assert 2 < costs["training step"]["flops"] / (64 * forward) < 4.5
    assert all(cost["temporary_bytes"] < 16e9 for cost in costs.values())
