"""What a run came to: summary.json, its pictures, and the table that the program ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments.shell import pictures as common_pictures
from experiments.storage import run_folder
from experiments.storage.run_folder import Row
from experiments.tpp import config as config_lib
from experiments.tpp import measure, pictures, shared
from experiments.tpp.config import Config
from experiments.tpp.job import Job
from experiments.tpp.measure import Network
from experiments.tpp.selection import Keep
from experiments.training import summary as common
from experiments.training.steps import Score
from ntksap_jax import structured

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "method": lambda run: run["method"],
    "parameters": lambda run: f"{run['parameters']:,}",
    "FLOPs": lambda run: f"{run['flops']:,}",
    "speed-up": lambda run: f"{run['speedup_flops']:.2f}x",  # In FLOPs; the next two are measured.
    "batch 1": lambda run: f"{run['speedup_measured']['1']:.2f}x",
    "batch 128": lambda run: f"{run['speedup_measured']['128']:.2f}x",
    "pruned": lambda run: f"{run['pruned_accuracy']:.2%}",
    "last epoch": lambda run: f"{run['last_accuracy']:.2%}",
    "best epoch": lambda run: f"{run['best_accuracy']:.2%}",
    "JSV pruned": lambda run: f"{run['pruned_jsv']['mean']:.4f}",
    "JSV at the end": lambda run: f"{run['final_jsv']['mean']:.4f}",
}
"""Of the table: what they say of a run."""


def make(
    config: Config,
    job: Job,
    keep: Keep,
    *,
    start: Any,
    pruned: Network,
    pruned_score: Score,
    final: Network,
    epochs: Sequence[Row],
) -> dict[str, Any]:
    """Measures the network before and after, and returns what goes into summary.json.

    `start` are the variables of the dense network; `pruned` is the small network right after
    pruning, `final` that at the end; without training there are no `epochs`.
    """
    whole, left = structured.cost(job.channels), structured.cost(job.channels, keep)
    if job.is_linear:
        jsv = measure.linear_jsv(pruned.model, job.images)
    else:
        jsv = measure.sampled_jsv(pruned.model, job.images, job.keys.measure, config.jsv_images)
    dense = shared.dense_folder(config, job)
    trained = run_folder.is_complete(dense)
    last = epochs[-1]["test_accuracy"] if epochs else pruned_score.accuracy
    best = max((row["test_accuracy"] for row in epochs), default=pruned_score.accuracy)
    latency = measure.latency(
        {"dense": Network(job.model, start), "small": final},
        job.images.dataset.image_shape,
        repeats=config.latency_repeats,
    )
    full = structured.expand(job.channels, keep)
    return {
        **common.common(config, job.images, epochs),
        "network": config_lib.network_name(config),
        "method": config.method,
        "size": config_lib.size_name(config),
        "ratio": config.ratio,
        "finetune_lr": config.finetune.finetune_lr,
        "dense_accuracy": run_folder.read_summary(dense)["test_accuracy"] if trained else None,
        "pruned_accuracy": pruned_score.accuracy,
        "last_accuracy": last,
        "best_accuracy": best,
        "pruned_jsv": jsv(pruned.variables),
        "final_jsv": jsv(final.variables),
        "jsv_is_exact": job.is_linear,
        "filters": {path: [int(kept.sum()), len(kept)] for path, kept in full.items()},
        "dense_parameters": whole.params,
        "parameters": left.params,
        "dense_flops": whole.flops,
        "flops": left.flops,
        "speedup_flops": whole.flops / left.flops,
        "latency_seconds": latency,
        "speedup_measured": {
            size: times["dense"][1] / times["small"][1] for size, times in latency.items()
        },
        "device": jax.devices()[0].device_kind,
    }


def draw(
    folder: Path, results: dict[str, Any], regularised: Sequence[Row], epochs: Sequence[Row]
) -> None:
    """Draws the pictures of a run into its folder, those of its tables where they have rows."""
    title = f"{results['network']}, {results['method']}, {results['size']}"
    write = run_folder.write_picture
    write(folder / "filters.png", pictures.filters(results["filters"], title))
    if regularised:
        write(folder / "regularise.png", pictures.regularisation(regularised, title))
    if epochs:
        curves = common_pictures.training_curves({results["method"]: epochs}, title)
        write(folder / "training.png", curves)


def show(folders: Sequence[Path], summaries: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the summary table."""
    first = summaries[0]
    accuracies = [results["dense_accuracy"] for results in summaries]
    known = [value for value in accuracies if value is not None]
    accuracy = f", test accuracy {known[0]:.2%}" if known else ""
    common.show(
        console,
        f"{first['network']}: {first['dense_parameters']:,} parameters, "
        f"{first['dense_flops']:,} FLOPs{accuracy}",
        COLUMNS,
        folders=folders,
        summaries=summaries,
    )
