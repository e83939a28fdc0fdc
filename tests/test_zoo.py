"""The zoo: public models from end to end, and a model that fails."""

import subprocess
import sys

import pytest

from experiments.zoo import models, program
from experiments.zoo.haiku_models import mlp, mobilenet

SHOWN = {"haiku-mlp": "haiku", "jax-resnet": "jax_resnet", "jaxkan": "jaxkan"}
"""Models that CI has: their packages are small."""


@pytest.mark.long
def test_models_of_three_packages(tmp_path):
    """In a process of its own: the warnings of other people's packages are not ours."""
    for package in SHOWN.values():
        pytest.importorskip(package)
    output = tmp_path / "table.md"
    command = [sys.executable, "-m", "experiments.zoo", "--output", output, "--only", *SHOWN]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split(" | ") for line in output.read_text().splitlines() if " | " in line]
    assert [row[0].strip("| ") for row in rows] == ["model", *SHOWN]
    shrunk = program.HEADER.index("FLOPs left")
    assert not any("refused" in cell for row in rows for cell in row[:shrunk])
    assert [row[shrunk] for row in (rows[1], rows[3])] == ["refused"] * 2  # see `NO_FILTERS`
    assert 0.3 < float(rows[2][shrunk]) <= 0.5


def test_a_step_that_fails_is_a_cell_and_the_code(tmp_path, monkeypatch, capsys):
    def broken():
        raise RuntimeError("no such model\nand more")

    output = tmp_path / "table.md"
    monkeypatch.setattr(program, "MODELS", {"b": models.Model("MLP", "numpy", broken)})
    assert program.main(["--output", str(output)]) == 1
    assert "| b | MLP | 2 | refused | – |" in output.read_text()
    assert "- **b**, load: RuntimeError: no such model\n" in output.read_text()
    assert "error: b, load: RuntimeError: no such model\n" in capsys.readouterr().err
    known = models.Model("MLP", "numpy", broken, refuses=frozenset({"load"}))
    monkeypatch.setattr(program, "MODELS", {"b": known})
    assert program.main([]) == 0


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(program, "MODELS", {"b": models.Model("MLP", "nowhere", mlp)})
    with pytest.raises(SystemExit) as ended:
        program.main([])
    assert ended.value.code == 2
    assert "nowhere: not installed" in capsys.readouterr().err


def test_glue_is_counted_with_the_helpers_of_its_file():
    assert models.lines_of_glue(mlp) == 7
    assert models.lines_of_glue(mobilenet) > 20
