"""Run folders as the programs write them, with results that a test chooses."""

import dataclasses
import json

import jax
import pytest
from matplotlib.figure import Figure

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config, TrainingConfig
from experiments.processes import distributed
from experiments.shell.configuration import to_dict
from experiments.storage import run_folder
from ntksap_jax import sharding

LAYERS = ("conv/kernel", "block_0/conv1/kernel", "block_0/conv2/kernel", "fc/kernel")
TINY = Config(
    dataset="digits", model="resnet8", training=TrainingConfig(epochs=3, lr_schedule="cosine")
)


@pytest.fixture(scope="module", autouse=True)
def blank_pictures():
    """Has files in the place of pictures, which take most of a short run; where it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, path, **options: path.write_bytes(b""))
        yield


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Has programs train on one device in place of eight that take turns; where it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "data_mesh", lambda: sharding.data_mesh(jax.devices()[:1]))
        yield


def configure(criterion, density=1.0, seed=0, base=TINY, **search):
    """A configuration of one run; keywords are options of the search."""
    options = dataclasses.replace(base.search, criterion=criterion, density=density, **search)
    return dataclasses.replace(base, search=options, seed=seed)


def write(root, config, accuracy, *, spectrum=(), **summary):
    """Writes the folder of a complete run, and returns it.

    `accuracy` is a fraction; keywords go into summary.json; `spectrum` are lists of eigenvalues,
    one an epoch from 0.
    """
    folder = root / config_lib.run_name(config)
    folder.mkdir(parents=True)
    search = config.search
    results = {
        "dataset": config.dataset,
        "dataset_source": f"{config.dataset} 1.0",
        "dataset_note": "",
        "model": config.model,
        "criterion": search.criterion,
        "seed": config.seed,
        "variants": config_lib.variants(search),
        "density": search.density,
        "effective_density": 0.9 * search.density,
        "dense_flops": 1000,
        "kept_flops": int(1000 * search.density),
        "last_test_accuracy": accuracy,
        "best_test_accuracy": accuracy + 0.001,
        "best_epoch": config.training.epochs,
        "search_seconds": 2.0,
        "training_seconds": 30.0,
        "layer_densities": {layer: search.density for layer in LAYERS},
        "live_channels": dict.fromkeys(LAYERS, 0.5),
        "dead_layers": [],
        "mask_sha256": "0" * 64,
        **summary,
    }
    write_json(folder / "config.json", to_dict(config))
    write_json(folder / "summary.json", results)
    session = {
        "command": f"demo --seed {config.seed}",
        "python": "3.11.7",
        "packages": {"jax": "0.10.2"},
        "devices": ["cpu: cpu"],
    }
    write_json(folder / "environment.json", [session])
    if spectrum:
        eigenvalues = [{f"eigenvalue_{i}": x for i, x in enumerate(values)} for values in spectrum]
        rows = [
            {"epoch": i, "kernel_distance": 0.1 * i, **row} for i, row in enumerate(eigenvalues)
        ]
        run_folder.write_table(folder / "spectrum.csv", rows)
    return folder


def write_filters(root, method, ratio, seed, accuracy):
    """Writes the folder of a complete run of `experiments.tpp`, and returns it."""
    folder = root / f"digits-mlp-{method}-ratio{ratio}-seed{seed}"
    folder.mkdir(parents=True)
    speedup = 1.0 if method == "dense" else 1 / (1 - ratio)
    results = {
        "network": "digits-mlp",
        "method": method,
        "size": f"ratio{ratio}",
        "ratio": ratio,
        "finetune_lr": 0.01,
        "label": "",
        "seed": seed,
        "pruned_accuracy": accuracy - 0.3,
        "last_accuracy": accuracy,
        "best_accuracy": accuracy,
        "pruned_jsv": {"mean": 0.5},
        "final_jsv": {"mean": 0.9},
        "parameters": 100,
        "flops": 1000,
        "speedup_flops": speedup,
        "speedup_measured": {"1": 1.1, "128": 1.5},
        "latency_seconds": {"1": {"dense": [0.1, 0.2, 0.3]}},
    }
    write_json(folder / "config.json", {"method": method})
    write_json(folder / "summary.json", results)
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value))
