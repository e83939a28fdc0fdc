"""What a run came to: summary.json, the pictures, and the table that the program ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config
from experiments.cifar.job import Job
from experiments.shell import console as screen
from experiments.shell import pictures
from experiments.storage import run_folder
from experiments.training import summary as common
from ntksap_jax import connectivity, flops, masks
from ntksap_jax.types import Mask

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "criterion": lambda run: run["criterion"],
    "density": lambda run: f"{run['density']:.4g}",
    "weights kept": lambda run: f"{run['kept_weights']:,}",
    "FLOPs kept": lambda run: f"{run['kept_flops'] / run['dense_flops']:.1%}",
    "live channels": lambda run: f"{min(run['live_channels'].values()):.0%} at least",
    "accuracy, last epoch": lambda run: f"{run['last_test_accuracy']:.2%}",
    "best epoch": lambda run: f"{run['best_test_accuracy']:.2%} ({run['best_epoch']})",
    "search": lambda run: screen.duration(run["search_seconds"]),
    "training": lambda run: screen.duration(run["training_seconds"]),
}
"""Of the table: what they say of a run."""


def make(
    config: Config,
    job: Job,
    mask: Mask,
    rounds: Sequence[run_folder.Row],
    epochs: Sequence[run_folder.Row],
) -> dict[str, Any]:
    """Returns the results of a run, as they go into summary.json.

    `rounds` are the rows of search.csv, none if there was no search; `epochs` those of metrics.csv.
    """
    best = max(epochs, key=lambda row: row["test_accuracy"])
    pruned = masks.num_prunable(mask) - masks.num_kept(mask)
    densities = masks.layer_densities(mask)
    found = connectivity.analyse(job.network, mask)
    layers = [path for path in job.kernel_flops if path in densities]
    return {
        **common.common(config, job.images, epochs),
        "criterion": config.search.criterion,
        "image_size": job.images.dataset.image_shape[0],
        "rounds": len(rounds),
        "scope": config.search.scope,
        "variants": config_lib.variants(config.search),
        "density": masks.density(mask),
        "dense_parameters": job.num_parameters,
        "kept_parameters": job.num_parameters - pruned,
        "prunable_weights": masks.num_prunable(mask),
        "kept_weights": masks.num_kept(mask),
        "dense_flops": sum(job.kernel_flops.values()),
        "kept_flops": flops.kept(job.kernel_flops, mask),
        "last_test_accuracy": epochs[-1]["test_accuracy"],
        "best_test_accuracy": best["test_accuracy"],
        "best_epoch": best["epoch"],
        "search_seconds": round(sum(row["seconds"] for row in rounds), 3),
        "mask_sha256": masks.digest(mask),
        # In the order of the forward pass, as `flops.count` lists them.
        "layer_densities": {path: densities[path] for path in layers},
        "effective_density": found.effective_density,
        "live_channels": {path: found.live_channels[path] for path in layers},
        "dead_layers": [path for path in layers if path in found.dead_layers],
        "dead_outputs": found.dead_outputs,
        "is_collapsed": found.is_collapsed,
    }


def draw(
    folder: Path,
    results: dict[str, Any],
    rounds: Sequence[run_folder.Row],
    epochs: Sequence[run_folder.Row],
) -> None:
    """Draws the pictures of a run into its folder."""
    criterion = results["criterion"]
    title = _title([results])
    write = run_folder.write_picture
    write(folder / "training.png", pictures.training_curves({criterion: epochs}, title))
    if rounds:
        densities = {criterion: results["layer_densities"]}
        write(folder / "layers.png", pictures.layer_densities(densities, title))
        write(folder / "search.png", pictures.search_rounds(rounds, title))


def show(folders: Sequence[Path], summaries: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the summary table; of several runs, draws the comparison into the first folder."""
    if len(folders) > 1:
        _draw_comparison(folders, summaries)
    first = summaries[0]
    common.show(
        console,
        f"{first['model']} on {first['dataset']}: {first['dense_parameters']:,} parameters, "
        f"{first['prunable_weights']:,} of them prunable",
        COLUMNS,
        folders=folders,
        summaries=summaries,
    )


def _draw_comparison(folders: Sequence[Path], summaries: Sequence[dict[str, Any]]) -> None:
    epochs = {
        results["criterion"]: run_folder.read_table(folder / "metrics.csv")
        for folder, results in zip(folders, summaries, strict=True)
    }
    pruned = [results for results in summaries if results["criterion"] != "dense"]
    run_folder.write_picture(
        folders[0] / "comparison.png", pictures.training_curves(epochs, _title(pruned))
    )
    densities = {results["criterion"]: results["layer_densities"] for results in pruned}
    run_folder.write_picture(
        folders[0] / "comparison_layers.png", pictures.layer_densities(densities, _title(pruned))
    )


def _title(summaries: Sequence[dict[str, Any]]) -> str:
    first = summaries[0]
    criterion = f", {first['criterion']}" if len(summaries) == 1 else ""
    return f"{first['model']} on {first['dataset']}{criterion}, density {first['density']:.3g}"
