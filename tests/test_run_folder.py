"""The run folder: when it may be used, what survives, and what a damaged file says."""

import json

import jax
import pytest

from experiments.shell.errors import UserError
from experiments.storage import run_folder

CONFIG = {"seed": 0, "runs_dir": "runs", "save_minutes": 10.0, "resume": False}
RESUME = CONFIG | {"resume": True}


def prepare(folder, config=CONFIG, data_source="digits 1.0"):
    run_folder.make(folder)
    run_folder.prepare(folder, config, data_source=data_source)


# -- May the folder be used? ---------------------------------------------------------------------


def test_a_new_or_empty_folder_is_fine(tmp_path):
    run_folder.check(tmp_path / "new", CONFIG)
    run_folder.check(tmp_path, CONFIG)
    assert run_folder.describe(tmp_path) == ""


def test_a_run_that_is_there_needs_resume(tmp_path):
    prepare(tmp_path)
    with pytest.raises(UserError, match="holds an interrupted run. Use --resume"):
        run_folder.check(tmp_path, CONFIG)
    run_folder.check(tmp_path, RESUME)
    assert "goes on" in run_folder.describe(tmp_path)
    run_folder.write_json(tmp_path / "summary.json", {"accuracy": 1.0})
    with pytest.raises(UserError, match="holds a complete run"):
        run_folder.check(tmp_path, CONFIG)
    run_folder.check(tmp_path, RESUME)
    assert run_folder.read_summary(tmp_path) == {"accuracy": 1.0}


def test_resuming_with_another_configuration_or_other_images_names_the_difference(tmp_path):
    prepare(tmp_path)
    with pytest.raises(UserError, match=r"another configuration \(seed: 0 -> 1\)"):
        run_folder.check(tmp_path, RESUME | {"seed": 1})
    with pytest.raises(UserError, match=r"other images \(digits 1.0\) than .* \(digits 2.0\)"):
        prepare(tmp_path, RESUME, data_source="digits 2.0")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not a run folder"):
        run_folder.check(tmp_path, RESUME)
    with pytest.raises(UserError, match="is a file"):
        run_folder.check(tmp_path / "thesis.tex", RESUME)


def test_every_start_is_recorded_with_versions_and_devices(tmp_path):
    prepare(tmp_path)
    prepare(tmp_path, RESUME)
    sessions = json.loads((tmp_path / "environment.json").read_text())
    assert len(sessions) == 2
    assert sessions[0]["packages"]["jax"] == jax.__version__
    assert len(sessions[0]["devices"]) == jax.device_count()


def test_differences_are_named_and_only_those_that_matter():
    old = CONFIG | {"training": {"epochs": 2}}
    new = RESUME | {"training": {"epochs": 4}, "runs_dir": "x", "label": "b"}
    assert run_folder.differences(old, old) == []
    assert run_folder.differences(old, new) == ["epochs: 2 -> 4", "label: (none) -> b"]


# -- Files ---------------------------------------------------------------------------------------


def test_tables_keep_numbers_exactly(tmp_path):
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "name": "a"}, {"epoch": 2, "loss": 1e-30, "name": "b"}]
    run_folder.write_table(tmp_path / "metrics.csv", rows)
    assert run_folder.read_table(tmp_path / "metrics.csv") == rows
    assert run_folder.read_table(tmp_path / "none.csv") == []


def test_what_killed_programs_wrote_aside_is_removed(tmp_path):
    (tmp_path / ".metrics.csv.123").write_text("epo")
    (tmp_path / "lock").touch()
    # Such as one that was killed at its very start leaves behind.
    run_folder.check(tmp_path, CONFIG)
    (tmp_path / ".keep").touch()
    prepare(tmp_path)
    names = [".keep", "config.json", "environment.json", "lock"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_the_identity_of_a_run_is_what_it_computes(tmp_path):
    prepare(tmp_path / "a")
    prepare(tmp_path / "b", RESUME | {"runs_dir": "b", "save_minutes": 1.0})
    prepare(tmp_path / "c", CONFIG | {"seed": 1})
    a, b, c = (run_folder.identity(tmp_path / name) for name in "abc")
    assert a == b
    assert len({a, c, run_folder.identity(tmp_path / "a", "m")}) == 3
