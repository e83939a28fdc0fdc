"""The structured-pruning program, end to end on the embedded digits, as a user runs it."""

import dataclasses
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_runs import one_device  # noqa: F401
from test_training import read_events

from experiments.report import program as report
from experiments.storage import run_folder
from experiments.storage.run_folder import read_summary
from experiments.tpp import config as config_lib
from experiments.tpp import job, measure, networks, regularise, selection, summary
from experiments.tpp import program as tpp
from experiments.tpp.methods import METHODS
from experiments.tpp.presets import PRESETS
from experiments.training import steps
from ntksap_jax import structured

TINY = [
    *("demo", "--model", "linear_mlp", "--width", "10", "--pretrain-epochs", "2"),
    *("--pretrain-lr", "0.1", "--pretrain-drop-epochs", "1", "--no-augment"),
    *("--update-interval", "1", "--increment", "0.05", "--stabilise-steps", "23"),
    *("--zero-out-interval", "3", "--finetune-epochs", "3", "--latency-repeats", "3"),
]
TPP = "digits-linear_mlp-w10-tpp-ratio0.8-lr0.01-seed0"
L1 = TPP.replace("tpp", "l1")


def load(folder, name="network.safetensors"):
    return structured.load(folder / name, networks.make("linear_mlp", width=10, num_classes=10))


@pytest.fixture(scope="module", autouse=True)
def few_rows():
    """A row of the table, and with it a checkpoint, for every eleven steps with a penalty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regularise, "MAX_ROWS", 4)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    tpp.main([*TINY, "--compare", "l1", "--runs-dir", str(runs)])
    return runs


def test_everything_is_written(undisturbed):
    files = {path.name for path in (undisturbed / TPP).iterdir()}
    assert files == {
        *("checkpoints", "config.json", "environment.json", "filters.png", "keep.json", "lock"),
        *("metrics.csv", "network.safetensors", "pruned.safetensors", "regularise.csv"),
        *("regularise.png", "summary.json", "training.png"),
    }
    assert not (undisturbed / L1 / "regularise.csv").exists()
    rows = run_folder.read_table(undisturbed / TPP / "regularise.csv")
    assert rows[-1]["step"] == 20 + 23 + 1
    assert rows[-1]["strength"] == pytest.approx(1)
    assert rows[-1]["pruned_size"] == rows[-1]["penalty"] == 0


def test_the_summary_counts_what_is_left(undisturbed):
    results = read_summary(undisturbed / TPP)
    widths = [64, *[10] * 6, 10]
    small = [64, *[2] * 6, 10]
    assert results["filters"]["hidden_0/kernel"] == [2, 10]
    for key, sizes in (("dense_flops", widths), ("flops", small)):
        assert results[key] == 2 * sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))
    assert results["parameters"] == results["flops"] // 2 + sum(small[1:])
    assert results["speedup_flops"] == results["dense_flops"] / results["flops"]
    for times in results["latency_seconds"].values():
        assert all(0 < low <= median <= high for low, median, high in times.values())


def test_the_saved_network_is_the_one_that_was_measured(undisturbed):
    config = config_lib.with_method(PRESETS["demo"][1], "l1")
    made = job.make(config)
    for name, key in (
        ("pruned.safetensors", "pruned_accuracy"),
        ("network.safetensors", "last_accuracy"),
    ):
        model, variables = load(undisturbed / TPP, name)
        score = measure.evaluate(made.images, measure.Network(model, variables))
        assert score.accuracy == read_summary(undisturbed / TPP)[key]
    # The Jacobian of a linear network is the product of its matrices.
    params = variables["params"]
    matrices = [params[f"hidden_{i}"]["kernel"] for i in range(6)] + [params["fc"]["kernel"]]
    values = np.linalg.svd(np.linalg.multi_dot(matrices), compute_uv=False)
    found = read_summary(undisturbed / TPP)["final_jsv"]["mean"]
    np.testing.assert_allclose(found, values[:10].mean(), rtol=1e-4)
    columns = run_folder.read_table(undisturbed / TPP / "metrics.csv")
    assert columns[-1]["jsv_mean"] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_runs_of_one_name_are_one_run(method):
    """The dense network whatever the ratio, one from scratch whatever the rate of fine-tuning."""
    config = config_lib.Config(compare=("dense", "l1"))
    others = [
        dataclasses.replace(config, ratio=0.9),
        dataclasses.replace(config, ratio=0.9, flops_budget=0.3),
        dataclasses.replace(config, finetune=config_lib.FinetuneConfig(finetune_lr=1e-3)),
    ]
    run = config_lib.with_method(config, method)
    for other in (config_lib.with_method(each, method) for each in others):
        assert (other == run) == (config_lib.run_name(other) == config_lib.run_name(run))


def test_the_runs_share_one_dense_network(undisturbed):
    (dense,) = (undisturbed / "dense").iterdir()
    accuracy = read_summary(dense)["test_accuracy"]
    assert accuracy == read_summary(undisturbed / TPP)["dense_accuracy"]
    assert accuracy == read_summary(undisturbed / L1)["dense_accuracy"]


@pytest.mark.long
def test_a_run_that_was_ended_in_every_stage_ends_as_the_undisturbed_one(
    undisturbed, tmp_path, monkeypatch, capsys
):
    make_train_step, seen = steps.make_train_step, []

    def make(*args):
        """Makes a step before whose 30th call in a stage SIGTERM comes, once in each stage."""
        number, train_step = len(seen), make_train_step(*args)
        seen.append(0)

        def counted(*args):
            seen[number] += 1
            if seen[number] == 30:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(*args)

        return counted

    monkeypatch.setattr(summary, "draw", lambda *args: None)
    flags = ["--compare", "--runs-dir", str(tmp_path), "--tensorboard", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(steps, "make_train_step", make)
        for _ in range(3):  # Pretraining, regularisation, fine-tuning.
            with pytest.raises(SystemExit) as stop:
                tpp.main([*TINY, *flags])
            assert stop.value.code == 75
            assert "--resume" in capsys.readouterr().err
    tpp.main([*TINY, *flags])
    old, new = (load(folder / TPP)[1] for folder in (undisturbed, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, old, new)
    for name in ("metrics", "regularise"):
        rows = [run_folder.read_table(f / TPP / f"{name}.csv") for f in (undisturbed, tmp_path)]
        for row, other in zip(*rows, strict=True):
            assert {**row, "seconds": 0} == {**other, "seconds": 0}
    events = read_events(tmp_path / TPP / "tensorboard" / "metrics")
    table = run_folder.read_table(tmp_path / TPP / "metrics.csv")
    expected = [(row["step"], pytest.approx(row["test_loss"])) for row in table]
    assert events["test_loss"] == expected


@pytest.mark.long
def test_a_convolutional_network_is_pruned_before_training_and_runs(tmp_path):
    tpp.main(
        [
            *("demo", "--model", "resnet8", "--width", "4", "--method", "snip", "--compare"),
            *("--flops-budget", "0.6", "--patterns", "block_*/conv1", "--pretrain-epochs", "1"),
            *("--no-augment", "--jsv-images", "2"),
            *("--batch-size", "704", "--latency-repeats", "3", "--runs-dir", str(tmp_path)),
        ]
    )
    (folder,) = tmp_path.iterdir()
    results = read_summary(folder)
    assert results["flops"] <= 0.6 * results["dense_flops"]
    assert results["dense_accuracy"] is None
    model, variables = structured.load(
        folder / "network.safetensors", networks.make("resnet8", width=4, num_classes=10)
    )
    cost = structured.cost(structured.trace(model, (8, 8, 1), train=False))
    assert (cost.flops, cost.params) == (results["flops"], results["parameters"])
    assert math.isfinite(results["final_jsv"]["mean"])
    assert np.all(np.isfinite(model.apply(variables, jnp.ones((1, 8, 8, 1)), train=False)))


def test_filters_go_until_the_measured_time_is_within_the_budget(monkeypatch):
    """With a clock that counts parameters: the choice is then that of --params-budget."""

    def timed(networks, shape, *, repeats):
        assert shape[0] == selection.LATENCY_BATCH_SIZE
        sizes = {
            name: sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
            for name, network in networks.items()
        }
        return {name: [size - 1, size, size + 1] for name, size in sizes.items()}

    monkeypatch.setattr(measure, "latency_at", timed)
    config = dataclasses.replace(
        PRESETS["demo"][1], latency_budget=0.5, model="linear_mlp", width=10
    )
    made = job.make(config)
    variables = job.init_variables(made, made.model, jax.random.key(0))
    kept = selection.by_l1(config, made, variables)
    same = dataclasses.replace(config, latency_budget=None, params_budget=0.5)
    for path, want in selection.by_l1(same, made, variables).items():
        np.testing.assert_array_equal(kept[path], want)


def test_the_report_compares_runs(undisturbed, tmp_path, monkeypatch):
    handed_over = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: handed_over.extend(arguments))
    tpp.main(["report", str(undisturbed), "--out", str(tmp_path)])
    assert handed_over[1:4] == ["-m", "experiments.report", str(undisturbed)]
    assert report.main(handed_over[3:]) == 0
    table = (tmp_path / "table.md").read_text()
    assert "| l1 lr 0.01 | ratio0.8 |" in table
    assert f"| {100 * read_summary(undisturbed / TPP)['best_accuracy']:.2f} (1) |" in table
    assert (tmp_path / "digits-linear_mlp-w10-jsv.svg").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ratio", "1"], "--ratio: expected less than 1, got 1"),
        (["--method", "tp"], "Did you mean tpp?"),
        (["--patterns", "convolution_*"], "matches no layer"),
        (["--patterns", "fc"], "cannot be removed"),
        (["--flops-budget", "0.5", "--params-budget", "0.5"], "expected no --flops-budget"),
        (["--latency-budget", "0.5", "--method", "ntk-sap"], "Use --flops-budget"),
        (["--ratioo", "0.5"], "Did you mean --ratio?"),
        (["--finetune-drop-epochs", "3", "2"], "increasing"),
        (["--batch-size", "5000"], "training images"),
        (["--stabilise-steps", "3"], "--stabilise-steps: got 3, expected at least 21"),
        (["--flops-budget", "0.05"], "--flops-budget 0.05: a cost of 124 cannot be reached"),
        (["--method", "snip", "--params-budget", "0.01"], "--params-budget 0.01: a cost of"),
        (["--latency-budget", "1e-9"], "--latency-budget 1e-09: a cost of"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        tpp.main([*TINY, "--compare", "--runs-dir", str(tmp_path), *flags])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert message in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_complete_run_is_not_overwritten_and_another_configuration_not_resumed(
    undisturbed, capsys
):
    for flags, message in (([], "a complete run"), (["--reg-lr", "0.1", "--resume"], "reg_lr")):
        with pytest.raises(SystemExit) as stop:
            tpp.main([*TINY, "--compare", "--runs-dir", str(undisturbed), *flags])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_the_help_lists_the_presets_and_the_report(capsys):
    with pytest.raises(SystemExit):
        tpp.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in PRESETS)
    assert "experiments.tpp report RUNS_DIR makes" in shown


def test_every_preset_can_be_made():
    for _, config in PRESETS.values():
        assert networks.make(config.model, width=config.width, num_classes=100) is not None
        assert config_lib.run_name(config).endswith("seed0")
