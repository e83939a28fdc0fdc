"""Rows of plans and summaries that are the same in all programs that train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments.shell import console as screen
from experiments.storage import run_folder
from experiments.training.inputs import Inputs
from ntksap_jax import ops


def plan(
    images: Inputs,
    rows: Mapping[str, str],
    seed: int,
    folders: Sequence[Path],
    *,
    augmented: bool = True,
) -> list[tuple[str, str]]:
    """Returns a plan, without rows that are empty: images, `rows`, seed, devices, ..."""
    dataset, count = images.dataset, jax.process_count()
    shape = "x".join(map(str, dataset.image_shape))
    note = f" ({dataset.note})" if dataset.note else ""
    processes = f" in {count} processes" if count > 1 else ""
    on_one_cpu = jax.default_backend() == "cpu" and images.mesh.size == 1
    every = {
        "data set": f"{dataset.name}: {dataset.num_train:,} training and "
        f"{dataset.num_test:,} test images of {shape}, {dataset.num_classes} classes{note}",
        "augmentation": dataset.augmentation if augmented else "none",
        **rows,
        "seed": str(seed),
        "devices": f"{images.mesh.size} x {jax.devices()[0].device_kind}{processes}, "
        f"jax {jax.__version__}",
        "convolutions": ops.cpu_convolution() if on_one_cpu else "",
        "writes to": "\n".join(f"{folder}{run_folder.describe(folder)}" for folder in folders),
    }
    return [(name, value) for name, value in every.items() if value]


def common(config: Any, images: Inputs, epochs: Sequence[run_folder.Row]) -> dict[str, Any]:
    """Returns the part of summary.json that every run has."""
    return {
        "dataset": config.dataset,
        "dataset_source": images.dataset.source,
        "dataset_note": images.dataset.note,
        "model": config.model,
        "seed": config.seed,
        "label": config.label,
        "epochs": len(epochs),
        "training_seconds": round(sum(row["seconds"] for row in epochs), 3),
    }


def show(
    console: Console,
    title: str,
    columns: Mapping[str, Callable[[dict[str, Any]], str]],
    *,
    folders: Sequence[Path],
    summaries: Sequence[dict[str, Any]],
) -> None:
    """Prints the table that a program ends with."""
    rows = [[text(results) for text in columns.values()] for results in summaries]
    screen.show_table(console, title, list(columns), rows)
    if summaries[0]["dataset_note"]:
        console.print(f"{summaries[0]['dataset']}: {summaries[0]['dataset_note']}")
    for folder in folders:
        console.print(f"results in {folder}", soft_wrap=True)
