"""The main program, end to end on the embedded digits, as a user runs it."""

import json
import shlex
import shutil
from unittest import mock

import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from fake_runs import blank_pictures  # noqa: F401

from experiments.cifar import program as cifar
from experiments.cifar import search_files
from experiments.storage.run_folder import read_table
from ntksap_jax import masks

OPTIONS = [
    *("demo", "--model", "mlp", "--density", "0.1", "--rounds", "3", "--num-samples", "2"),
    *("--noise-batch-size", "20", "--epochs", "4", "--compare"),
]
NTK_SAP = "digits-mlp-ntk_sap-0.1-seed0"
PRUNABLE = 64 * 300 + 300 * 100 + 100 * 10


def params_of_last_checkpoint(folder):
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        return manager.restore(manager.latest_step(), args=args).state["params"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The runs folder of one undisturbed command that also trained the dense network."""
    runs = tmp_path_factory.mktemp("runs")
    cifar.main([*OPTIONS, "dense", "random", "--runs-dir", str(runs)])
    return runs


def test_everything_is_written(undisturbed):
    names = (
        "checkpoints comparison.png comparison_layers.png config.json environment.json layers.png "
        "lock mask.safetensors mask.sha256 metrics.csv search.csv search.json search.png "
        "summary.json training.png"
    )
    assert sorted(path.name for path in (undisturbed / NTK_SAP).iterdir()) == names.split()
    epochs = read_table(undisturbed / NTK_SAP / "metrics.csv")
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4]
    assert not (undisturbed / "digits-mlp-dense-1-seed0" / "search.csv").exists()


def test_the_density_is_exact_after_every_round(undisturbed):
    kept = [row["num_kept"] for row in read_table(undisturbed / NTK_SAP / "search.csv")]
    assert kept == [round(0.1 ** (t / 3) * PRUNABLE) for t in (1, 2, 3)]
    mask = safetensors.numpy.load_file(undisturbed / NTK_SAP / "mask.safetensors")
    assert sum(int(leaf.sum()) for leaf in mask.values()) == kept[-1]


def test_the_summary_agrees_with_the_files(undisturbed):
    folder = undisturbed / NTK_SAP
    results = json.loads((folder / "summary.json").read_text())
    epochs = read_table(folder / "metrics.csv")
    assert results["prunable_weights"] == PRUNABLE
    assert results["dense_parameters"] == PRUNABLE + 410
    assert results["kept_parameters"] == round(0.1 * PRUNABLE) + 410
    # All kernels of an MLP are used once: the share of FLOPs is that of the weights.
    assert results["kept_flops"] / results["dense_flops"] == results["density"]
    assert results["last_test_accuracy"] == epochs[-1]["test_accuracy"]
    assert results["best_test_accuracy"] == max(row["test_accuracy"] for row in epochs)
    assert results["mask_sha256"] == (folder / "mask.sha256").read_text().strip()
    layers = [f"{layer}/kernel" for layer in ("hidden_0", "hidden_1", "fc")]
    assert list(results["layer_densities"]) == layers


def test_networks_learn_and_ntk_sap_prunes_better_than_chance(undisturbed):
    ntk_sap, random, dense = (
        read_table(undisturbed / f"digits-mlp-{name}-seed0" / "metrics.csv")[-1]["test_accuracy"]
        for name in ("ntk_sap-0.1", "random-0.1", "dense-1")
    )
    assert ntk_sap > 0.5  # Chance is 0.1.
    assert dense > 0.9
    assert ntk_sap > random


def test_pruned_weights_are_exactly_zero_and_the_others_are_not(undisturbed):
    params = masks.leaf_paths(params_of_last_checkpoint(undisturbed / NTK_SAP))
    mask = safetensors.numpy.load_file(undisturbed / NTK_SAP / "mask.safetensors")
    for name, leaf in mask.items():
        np.testing.assert_array_equal(np.asarray(params[name]) != 0, leaf)


# -- Interrupted, and resumed --------------------------------------------------------------------


def test_ctrl_c_says_how_to_go_on(undisturbed, tmp_path, monkeypatch, capfd):
    arguments = [*OPTIONS, "--runs-dir", str(tmp_path)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(search_files, "save_mask", mock.Mock(side_effect=KeyboardInterrupt))
        cifar.main(arguments)
    assert stop.value.code == 130
    again = shlex.join(["python", "-m", "experiments.cifar", *arguments, "--resume"])
    assert capfd.readouterr().err == f"interrupted; to go on where it stopped: {again}\n"
    cifar.main([*arguments, "--resume"])
    digests = [(runs / NTK_SAP / "mask.sha256").read_text() for runs in (undisturbed, tmp_path)]
    assert digests[0] == digests[1]


def test_a_complete_run_is_shown_again(undisturbed, capsys):
    before = (undisturbed / NTK_SAP / "metrics.csv").stat().st_mtime_ns
    cifar.main([*OPTIONS, "dense", "random", "--runs-dir", str(undisturbed), "--resume"])
    assert "complete: shown again" in capsys.readouterr().out
    assert (undisturbed / NTK_SAP / "metrics.csv").stat().st_mtime_ns == before


# -- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("demoo", "unknown preset 'demoo'. Did you mean demo?"),
        ("demo --density 1.5", "--density: expected less than or equal to 1, got 1.5"),
        ("demo --weights nowhere", "--weights nowhere: no complete run is there"),
        ("demo --spectrum-samples 41", "give 4100 eigenvalues, expected at most 4000"),
        ("demo --density 1e-9", "--density: 1e-09 of 77072 weights is none"),
        ("demo --rounds 80000", "--rounds: 80000 is more than the 77072 weights"),
        ("demo --warmup-epochs 0.999 --epochs 1", "--warmup-epochs: 0.999 leaves none of the 22"),
        ("demo --batch-size 2000", "--batch-size: 2000 is more than the 1433 training images"),
        ("demo --batch-size 63", "--batch-size: 63 cannot be split over 8 devices"),
        ("demo --model vgg16_bn", "--model vgg16_bn cannot take the images of digits"),
        ("demo --dataset cifar10 --data-dir nowhere", "cifar10 is not prepared in nowhere"),
    ],
)
def test_a_mistake_ends_with_one_line_before_anything_is_written(
    line, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cifar.main(line.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "holds a complete run. Use --resume"),
        (["--resume", "--learning-rate", "0.2"], "(learning_rate: 0.1 -> 0.2)"),
    ],
)
def test_a_folder_of_another_run_is_not_overwritten(flags, message, undisturbed, capsys):
    with pytest.raises(SystemExit) as stop:
        cifar.main([*OPTIONS, "--runs-dir", str(undisturbed), *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_tables_are_written_again_from_what_is_verified(undisturbed, tmp_path):
    folder = tmp_path / NTK_SAP
    shutil.copytree(undisturbed / NTK_SAP, folder)
    (folder / "summary.json").unlink()
    (folder / "search.csv").unlink()
    (folder / "metrics.csv").write_bytes(b"damaged")
    cifar.main([*OPTIONS, "--runs-dir", str(tmp_path), "--resume"])
    for name in ("metrics.csv", "search.csv"):
        assert (folder / name).read_bytes() == (undisturbed / NTK_SAP / name).read_bytes()
