"""The configuration: presets, checks, and the way to JSON and back."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config, SearchConfig, TrainingConfig
from experiments.cifar.presets import PRESETS
from experiments.shell.errors import UserError


def replace(config, **values):
    """Replaces a field, wherever in the configuration it is."""
    for part in ("search", "training"):
        own = {
            name: values.pop(name)
            for name in [f.name for f in dataclasses.fields(getattr(config, part))]
            if name in values
        }
        config = dataclasses.replace(
            config, **{part: dataclasses.replace(getattr(config, part), **own)}
        )
    return dataclasses.replace(config, **values)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_the_checks_and_say_in_one_line_what_they_are(name):
    description, config = PRESETS[name]
    config_lib.check(config)
    assert description.endswith(".")


def test_the_preset_for_cifar10_holds_the_papers_numbers():
    _, config = PRESETS["paper-cifar10"]
    assert (config.dataset, config.model) == ("cifar10", "resnet20")
    assert dataclasses.asdict(config.training) == {
        "epochs": 160,
        "batch_size": 128,
        "learning_rate": 0.1,
        "lr_schedule": "step",
        "drop_epochs": (80, 120),
        "warmup_epochs": 0.0,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-4,
    }
    search = config.search
    assert (search.rounds, search.num_samples, search.noise_batch_size) == (20, 5, 100)
    assert (search.estimator, search.sigma) == ("finite_difference", 0.01)
    assert 1 - search.density == pytest.approx(0.9560, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "model", "training", "search"),
    [
        ("paper-cifar100", "vgg16_bn", (160, 128, 0.1, (60, 120), True, 5e-4), (100, 4, 250)),
        ("paper-tiny", "resnet18", (200, 256, 0.2, (100, 150), False, 1e-4), (100, 8, 250)),
    ],
)
def test_the_other_presets_of_the_paper_hold_its_numbers(name, model, training, search):
    _, config = PRESETS[name]
    ours = config.training
    assert config.model == model and (ours.momentum, ours.lr_schedule) == (0.9, "step")
    assert training == (
        *(ours.epochs, ours.batch_size, ours.learning_rate),
        *(ours.drop_epochs, ours.nesterov, ours.weight_decay),
    )
    ours = config.search
    assert search == (ours.rounds, ours.num_samples, ours.noise_batch_size)
    assert (ours.estimator, ours.sigma, ours.calibrate) == ("finite_difference", 0.01, "two_pass")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "cifar01"}, r"unknown data set 'cifar01'\. Did you mean cifar10\?"),
        ({"model": "resnet-20"}, r"unknown model 'resnet-20'\. Did you mean resnet20\?"),
        ({"criterion": "ntksap"}, r"unknown criterion 'ntksap'\. Did you mean ntk_sap\?"),
        ({"compare": ("randm",)}, r"unknown criterion 'randm'\. Did you mean random\?"),
        ({"density": 0.0}, r"--density: expected a fraction in \(0, 1\], got 0.0"),
        ({"density": 1.01}, "--density"),
        ({"density": float("nan")}, "--density"),
        ({"rounds": 0}, "--rounds: expected an integer of at least 1, got 0"),
        ({"num_samples": 0}, "--num-samples"),
        ({"vmap_samples": 2}, r"--vmap-samples: expected a divisor of --num-samples \(5\)"),
        ({"noise_batch_size": 1}, "--noise-batch-size"),
        ({"sigma": 0.0}, "--sigma"),
        ({"epochs": 0}, "--epochs: expected an integer of at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
        ({"weight_decay": -1e-4}, "--weight-decay"),
        ({"momentum": 1.0}, "--momentum"),
        ({"momentum": 0.0, "nesterov": True}, "--momentum"),
        ({"drop_epochs": (80, 80)}, "--drop-epochs"),
        ({"warmup_epochs": 160.0}, "--warmup-epochs"),
        ({"seed": -1}, "--seed"),
        ({"save_minutes": 0.0}, "--save-minutes: expected a positive number, got 0.0"),
    ],
)
def test_a_value_that_makes_no_sense_is_an_error_that_names_the_flag(values, message):
    config_lib.check(Config())
    config_lib.check(Config(compare=("ntk_sap", "random")))  # the main criterion runs once
    with pytest.raises(UserError, match=message):
        config_lib.check(replace(Config(), **values))


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
    assert config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(config)))) == config
    assert config_lib.from_dict(config_lib.to_dict(Config())) == Config()


def test_differences_are_named_and_only_those_that_matter():
    old = config_lib.to_dict(Config())
    new = config_lib.to_dict(
        replace(Config(), epochs=4, criterion="random", resume=True, runs_dir=Path("x"))
    )
    assert config_lib.differences(old, old) == []
    assert config_lib.differences(old, new) == ["criterion: ntk_sap -> random", "epochs: 160 -> 4"]
    del old["seed"]
    assert "seed: (none) -> 0" in config_lib.differences(old, new)


def test_each_criterion_has_a_run_of_its_own():
    config = replace(Config(), density=0.05, compare=("dense",), seed=7)
    runs = [config_lib.with_criterion(config, name) for name in ("ntk_sap", "dense")]
    assert [config_lib.run_name(run) for run in runs] == [
        "cifar10-resnet20-ntk_sap-0.05-seed7",
        "cifar10-resnet20-dense-1-seed7",
    ]
    assert all(run.compare == () for run in runs)
