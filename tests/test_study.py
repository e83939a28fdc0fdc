"""Studies: paired differences, their intervals, and the program."""

import csv
import statistics

import fake_runs
import numpy as np
import pytest
from fake_runs import blank_pictures  # noqa: F401

from experiments.report import runs, setups
from experiments.study import paired
from experiments.study import program as study

GRID = """
preset = "demo"
runs_dir = "runs"
baseline = "random"
[set]
model = "mlp"
epochs = 1
warmup_epochs = 0
density = 0.1
[grid]
criterion = ["random", "magnitude"]
seed = [0, 1]
[[grids]]
criterion = ["magnitude"]
balanced = [true]
label = ["balanced"]
seed = [0, 1]
"""


def run(*arguments):
    """Runs the program; returns its exit code."""
    try:
        study.main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code
    return 0


# -- Intervals -----------------------------------------------------------------------------------


def test_interval_of_many_values_is_the_normal_one():
    """Mean ± 1.96 σ / √n, σ² with n in the denominator: what a resample's values vary by."""
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    half = 1.96 * values.std() / np.sqrt(len(values))
    want = values.mean() - half, values.mean() + half
    np.testing.assert_allclose(paired.interval(list(values)), want, atol=0.02)


def test_interval_of_few_values():
    """Of three, all draws are the smallest with probability 1/27 > 2.5 %; of one there is none."""
    assert paired.interval([1.0, -2.0, 4.0]) == (-2.0, 4.0)
    assert paired.interval([1.5, 1.5]) == (1.5, 1.5)
    assert paired.interval([1.0]) is None


# -- Pairs ---------------------------------------------------------------------------------------


def section_of(folder, accuracies):
    """Accuracies by (criterion, label, density, seed)."""
    for (criterion, label, density, seed), accuracy in accuracies.items():
        config = fake_runs.configure(criterion, density, seed)
        fake_runs.write(folder, fake_runs.dataclasses.replace(config, label=label), accuracy)
    [section] = setups.group(runs.find([folder]).runs)
    return section


def test_only_the_seeds_that_both_have_are_compared(tmp_path):
    section = section_of(
        tmp_path,
        {
            ("random", "", 0.1, 0): 0.50,
            ("random", "", 0.1, 1): 0.70,
            ("random", "", 0.1, 2): 0.10,
            ("random", "", 0.01, 0): 0.30,
            ("random", "", 0.01, 1): 0.40,
            ("snip", "b", 0.1, 1): 0.75,
            ("snip", "b", 0.1, 0): 0.52,
            ("snip", "b", 0.01, 1): 0.41,
            ("snip", "", 0.02, 7): 0.99,
        },
    )
    found = {(each.arm, each.density): each for each in paired.compare(section, "random")}
    # Of 0.02 the baseline has no run; so there is no mean over all densities either.
    assert found.keys() == {("random", 0.1), ("random", 0.01), ("snip b", 0.1), ("snip b", 0.01)}
    both, single, same = (
        found[key] for key in (("snip b", 0.1), ("snip b", 0.01), ("random", 0.1))
    )
    assert (both.seeds, single.seeds, same.seeds) == (2, 1, 3)
    assert both.accuracy == pytest.approx(63.5) and both.difference == pytest.approx(3.5)
    assert (both.low, both.high) == (pytest.approx(2.0), pytest.approx(5.0))
    assert single.difference == pytest.approx(1.0) and single.low is None
    assert (same.difference, same.low, same.high) == (0, 0, 0)


def test_the_mean_over_densities_is_compared_seed_by_seed(tmp_path):
    table = {
        ("random", 0.1): (0.5, 0.6),
        ("random", 0.01): (0.2, 0.1),
        ("snip", 0.1): (0.6, 0.6),
        ("snip", 0.01): (0.2, 0.3),
    }
    section = section_of(
        tmp_path,
        {
            (criterion, "", density, seed): accuracy
            for (criterion, density), row in table.items()
            for seed, accuracy in enumerate(row)
        },
    )
    [_, overall] = [each for each in paired.compare(section, "random") if each.density is None]
    assert overall.arm == "snip" and overall.difference == pytest.approx(7.5)
    assert (overall.low, overall.high) == (pytest.approx(5), pytest.approx(10))


def test_names_that_do_not_tell_arms_apart_are_refused(tmp_path):
    for samples in (1, 2):
        config = fake_runs.configure("ntk_sap", 0.1, seed=samples, num_samples=samples)
        fake_runs.write(tmp_path, config, 0.5)
    [section] = setups.group(runs.find([tmp_path]).runs)
    with pytest.raises(paired.UserError, match="two arms are called 'ntk_sap'"):
        paired.compare(section, "ntk_sap")
    assert paired.compare(section._replace(lines=section.lines[:1]), "erk") == []


# -- The program ---------------------------------------------------------------------------------


def test_mistakes_end_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.toml").write_text(GRID.replace('baseline = "random"', ""))
    (tmp_path / "tpp.toml").write_text('preset = "tpp:demo"\n[grid]\nseed = [0]\n')
    assert run() == 2
    (tmp_path / "other.toml").write_text(GRID.replace('"random"', '"randon"', 1))
    for words, match in {
        "digit": "got 'digit'",
        "none.toml": "unknown baseline in none.toml",
        "other.toml": "Did you mean random? Known: random, magnitude, magnitude balanced",
        "tpp.toml": "a study is of experiments.cifar",
    }.items():
        capsys.readouterr()
        assert run(words) == 2
        assert match in (error := capsys.readouterr().err) and error.count("\n") == 1


@pytest.mark.parametrize("name", study.NAMED)
def test_the_studies_that_come_with_it_can_be_listed(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(name, "--list") == 0
    assert " cells left" in capsys.readouterr().out


@pytest.mark.long
def test_a_study_is_carried_out_compared_and_resumed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(GRID)
    assert run("my.toml") == 0
    assert "6 of 6 cells left" in capsys.readouterr().out
    out = tmp_path / "runs" / "study"
    with (out / "study.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    with (out / "runs.csv").open() as file:
        accuracies = [
            (row["line"], float(row["last_test_accuracy"])) for row in csv.DictReader(file)
        ]
    assert rows.keys() == {"random", "magnitude", "magnitude balanced"}
    mean = {
        wanted: statistics.fmean(x for line, x in accuracies if line.startswith(wanted))
        for wanted in ("random", "magnitude, label balanced")
    }
    want = mean["magnitude, label balanced"] - mean["random"]
    assert float(rows["magnitude balanced"]["difference"]) == pytest.approx(want)
    assert (out / "setup1.png").exists()

    # Again: nothing is left to do, and the table is the same.
    before = (out / "study.csv").read_bytes()
    assert run("my.toml", "--list") == 0
    assert "0 of 6 cells left" in capsys.readouterr().out
    assert (out / "study.csv").read_bytes() == before
