"""The configuration of the main job: presets, ranges, and the way to JSON and back."""

import json
from pathlib import Path

import pytest

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config, SearchConfig, TrainingConfig
from experiments.cifar.presets import PRESETS
from experiments.processes.config import ProcessConfig
from experiments.shell.configuration import to_dict
from experiments.shell.errors import UserError
from experiments.sweep.programs import replace


@pytest.mark.parametrize(
    ("name", "model", "training", "search"),
    [
        ("paper-cifar10", "resnet20", (160, 128, 0.1, (80, 120), False, 1e-4), (20, 5, 100)),
        ("paper-cifar100", "vgg16_bn", (160, 128, 0.1, (60, 120), True, 5e-4), (100, 4, 250)),
        ("paper-tiny", "resnet18", (200, 256, 0.2, (100, 150), False, 1e-4), (100, 8, 250)),
    ],
)
def test_the_presets_of_the_paper_hold_its_numbers(name, model, training, search):
    _, config = PRESETS[name]
    ours = config.training
    assert config.model == model and (ours.momentum, ours.lr_schedule) == (0.9, "step")
    assert ours.warmup_epochs == 0
    assert training == (
        *(ours.epochs, ours.batch_size, ours.learning_rate),
        *(ours.drop_epochs, ours.nesterov, ours.weight_decay),
    )
    ours = config.search
    assert search == (ours.rounds, ours.num_samples, ours.noise_batch_size)
    assert (ours.estimator, ours.sigma, ours.calibrate) == ("finite_difference", 0.01, "two_pass")
    assert 1 - ours.density == pytest.approx(0.9560, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "cifar01"}, r"--dataset: unknown data set 'cifar01'\. Did you mean cifar10\?"),
        ({"density": 0.0}, r"--density: expected greater than 0, got 0"),
        ({"density": float("nan")}, "--density: expected a finite number"),
        ({"scope": "2:5"}, r'--scope: expected --density 0.4 with it, not 0.05, got "2:5"'),
        ({"scope": "3:2"}, r"--scope: 3:2: "),
        ({"scope": "rows"}, r'--scope: expected global, layer, .* got "rows"'),
        ({"reinit": False, "fresh_share": 0.5}, "--fresh-share: expected 1 with --no-reinit"),
        ({"momentum": 0.0, "nesterov": True}, "--nesterov: expected a positive --momentum"),
        ({"drop_epochs": (80, 80)}, r"--drop-epochs: expected increasing integers, got \[80, 80\]"),
        ({"warmup_epochs": 160.0}, r"--warmup-epochs: expected less than --epochs \(160\)"),
        ({"label": "a/b"}, "--label: expected at most 100 letters, digits"),
        ({"data_dir": Path("a\0b")}, "--data-dir: expected printable characters only"),
    ],
)
def test_a_value_that_makes_no_sense_is_an_error_that_names_the_flag(values, message):
    with pytest.raises(UserError, match=message) as error:
        replace(Config(), values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_processes": 2}, "--num-processes: expected --distributed with it"),
        ({"distributed": True, "num_processes": 2, "process_id": 2}, "--process-id: expected less"),
        ({"distributed": True, "coordinator": "localhost"}, "--coordinator: expected to match"),
    ],
)
def test_where_the_processes_are_has_to_make_sense_too(values, message):
    with pytest.raises(UserError, match=message):
        ProcessConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 3}, r"config.json: unknown field 'sed'\. Did you mean seed\?"),
        ({"search": {"densty": 1}}, r"config.json: search: unknown field 'densty'\. Did you mean"),
        ({"search": 3}, "config.json: search: expected an object, got 3"),
        ({"seed": "3"}, 'config.json: seed: expected a valid integer, got "3"'),
        ({"runs_dir": "x" * 5000}, "config.json: runs_dir: expected at most 1000 characters"),
        ([], "config.json: expected an object"),
    ],
)
def test_a_file_is_checked_against_the_same_fields(values, message):
    with pytest.raises(UserError, match=message) as error:
        config_lib.from_dict(values, "config.json")
    assert len(str(error.value)) < 600


def test_a_configuration_survives_json():
    config = Config(
        dataset="digits",
        data_dir=Path("data"),
        seed=3,
        search=SearchConfig(density=0.3, estimator="vjp"),
        training=TrainingConfig(epochs=3, drop_epochs=(1, 2), nesterov=True),
        compare=("random", "dense"),
        runs_dir=Path("elsewhere"),
        resume=True,
    )
    assert config_lib.from_dict(json.loads(json.dumps(to_dict(config)))) == config
    old = to_dict(Config())
    old["search"]["vmap_samples"] = 1  # As version 0.1 wrote it.
    assert config_lib.from_dict(old) == Config()


def test_each_criterion_has_a_run_of_its_own():
    config = replace(Config(), {"compare": ("dense",), "seed": 7})
    runs = [config_lib.with_criterion(config, name) for name in ("ntk_sap", "dense")]
    assert [config_lib.run_name(run) for run in runs] == [
        "cifar10-resnet20-ntk_sap-0.05-seed7",
        "cifar10-resnet20-dense-1-seed7",
    ]
    assert all(run.compare == () for run in runs)
