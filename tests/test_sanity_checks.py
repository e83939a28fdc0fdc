"""The sanity checks and pretrained weights of the main program, as a user asks for them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import rich.console
import safetensors.numpy
from fake_runs import blank_pictures, one_device  # noqa: F401

from experiments.cifar import choices, factories, job
from experiments.cifar import config as config_lib
from experiments.cifar import program as cifar
from experiments.cifar.presets import PRESETS
from experiments.shell import command_line
from experiments.storage import run_folder
from ntksap_jax import masks

OPTIONS = [
    *("demo", "--model", "mlp", "--density", "0.1", "--epochs", "1", "--warmup-epochs", "0"),
    *("--batch-size", "256", "--criterion", "magnitude", "--compare", "magnitude"),
]
LABELS = {"balanced": False, "rescaled": True}  # Both of balanced scores; the second rescales.
CELL = "digits-mlp-magnitude{}-0.1-seed0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that differ in one sanity check each, and a trained dense network."""
    folder = tmp_path_factory.mktemp("runs")
    plain = command_line.parse([*OPTIONS, "--runs-dir", str(folder)], PRESETS, prog="cifar")
    console = rich.console.Console(quiet=True)
    checks = ("shuffle_mask", "redraw_weights", "invert_scores")
    for check in ({}, *({name: True} for name in checks)):
        search = dataclasses.replace(plain.search, **check)
        cifar.run(dataclasses.replace(plain, search=search), console)
    for label, rescale in LABELS.items():
        search = dataclasses.replace(plain.search, balanced=True, rescale=rescale)
        cifar.run(dataclasses.replace(plain, search=search, label=label), console)
    dense = config_lib.with_criterion(plain, "dense")
    cifar.run(dataclasses.replace(dense, runs_dir=folder / "dense"), console)
    return folder


def load(folder, variant=""):
    return safetensors.numpy.load_file(folder / CELL.format(variant) / "mask.safetensors")


def summary(folder, variant=""):
    return json.loads((folder / CELL.format(variant) / "summary.json").read_text())


def test_shuffling_acts_within_layers(runs):
    plain, shuffled = load(runs), load(runs, "-shuffled")
    for name, leaf in plain.items():
        assert leaf.sum() == shuffled[name].sum()
        assert (leaf != shuffled[name]).any()
    assert summary(runs, "-shuffled")["variants"] == ["shuffled"]
    assert summary(runs)["mask_sha256"] != summary(runs, "-shuffled")["mask_sha256"]


def test_redrawing_leaves_the_mask_and_changes_what_is_trained(runs):
    assert summary(runs)["mask_sha256"] == summary(runs, "-redrawn")["mask_sha256"]
    losses = {
        run_folder.read_table(runs / CELL.format(variant) / "metrics.csv")[0]["train_loss"]
        for variant in ("", "-redrawn")
    }
    assert len(losses) == 2


def test_balanced_scores_keep_other_weights_and_rescaling_trains_the_same_ones(runs):
    names = [CELL.format(""), *(f"digits-mlp-magnitude-0.1-{x}-seed0" for x in LABELS)]
    plain, balanced, rescaled = (
        json.loads((runs / name / "summary.json").read_text()) for name in names
    )
    assert balanced["mask_sha256"] == rescaled["mask_sha256"] != plain["mask_sha256"]
    # The last layer has a fiftieth of the weights, and as large a share of the scores.
    assert balanced["layer_densities"]["fc/kernel"] > 2 * plain["layer_densities"]["fc/kernel"]
    assert balanced["last_test_accuracy"] != rescaled["last_test_accuracy"]


def test_redrawn_weights_are_other_weights_of_the_same_distribution():
    config = config_lib.Config(dataset="digits", model="mlp")
    made = job.make_job(config)
    original, redrawn = (
        job.init_variables(config, made, redrawn=redrawn)["params"] for redrawn in (False, True)
    )
    for before, after in zip(jax.tree.leaves(original), jax.tree.leaves(redrawn), strict=True):
        if before.ndim == 2:
            assert np.mean(np.asarray(before) == np.asarray(after)) < 0.01
            assert float(np.std(before)) == pytest.approx(float(np.std(after)), rel=0.2)


def test_inverting_prunes_what_was_kept(runs):
    plain, inverted = load(runs), load(runs, "-inverted")
    assert not any((leaf & inverted[name]).any() for name, leaf in plain.items())


def test_the_summary_says_what_is_alive(runs):
    results = summary(runs)
    assert 0 < results["effective_density"] <= results["density"]
    assert results["live_channels"].keys() == results["layer_densities"].keys()
    assert results["is_collapsed"] == (results["dead_outputs"] == 10)
    dense = json.loads((runs / "dense" / "digits-mlp-dense-1-seed0" / "summary.json").read_text())
    assert dense["effective_density"] == 1.0 and dense["dead_layers"] == []


def test_pretrained_weights_are_those_that_are_scored(runs, tmp_path):
    source = runs / "dense" / "digits-mlp-dense-1-seed0"
    config = config_lib.Config(dataset="digits", model="mlp", weights=source)
    made = job.make_job(config)
    params = job.init_variables(config, made)["params"]
    cifar.main([*OPTIONS, "--weights", str(source), "--runs-dir", str(tmp_path)])
    found = masks.load(tmp_path / CELL.format("") / "mask.safetensors", like=params)
    values = np.concatenate(
        [np.abs(np.asarray(leaf)).ravel() for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    )
    kept = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(found)])
    assert values[kept].min() >= values[~kept].max()
    assert masks.digest(found) != summary(runs)["mask_sha256"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples-per-class", "500", "--criterion", "snip"], "cannot draw a subset of digits"),
        (
            ["--model", "linear_mlp", "--weights", "{runs}/dense/digits-mlp-dense-1-seed0"],
            "its network is mlp, this run's is linear_mlp",
        ),
    ],
)
def test_what_does_not_fit_the_data_or_the_network_is_said(flags, message, runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cifar.main([*OPTIONS, "--runs-dir", str(tmp_path), *(x.format(runs=runs) for x in flags)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, made in choices.CRITERIA.items() if made])
def test_every_criterion_can_be_chosen(name):
    config = config_lib.with_criterion(config_lib.Config(dataset="digits", model="mlp"), name)
    made = job.make_job(config)
    assert callable(factories.make_score(made.network, config.search))
    one_shot = {"random", "erk", "magnitude", "snip", "grasp"}
    assert config.search.num_rounds == (1 if name in one_shot else 20)
